"""Penn-Treebank tokenisation of captions, as COCO's caption metrics want it: by Java where it runs, else by our own.

COCO's official code (Chen et al., 2015, arXiv:1504.00325) runs Stanford's PTBTokenizer with `-preserveLines -lowerCase`
and drops eighteen punctuation tokens. The fallback below was written against that program's behaviour, not its source:
the rules are those that show in what a caption looks like after the punctuation has been dropped.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

TokenizerName = Literal["ptb-java", "fallback"]

JAR = "stanford-corenlp-3.4.1.jar"

DROPPED = frozenset(
    ["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"]
)
"""What the official code drops. Brackets arrive lowered, as ``-lrb-``, and so they stay, as in its figures."""


def tokenize(captions: Sequence[str], tokenizer: TokenizerName) -> list[str]:
    """Lowered tokens joined by spaces, without punctuation; one line for each caption, in order.

    Raises:
        RuntimeError: `tokenizer` is "ptb-java" and Java or the jar is missing or fails.
    """
    lines = [" ".join(re.split(r"[\r\n\v\f\x1c-\x1e\x85\u2028\u2029]", caption)) for caption in captions]
    tokenized = _java(lines) if tokenizer == "ptb-java" else _fallback(lines)
    return [" ".join(token for token in tokens if token not in DROPPED) for tokens in tokenized]


@cache
def best_tokenizer() -> TokenizerName:
    """`ptb-java` where Java runs and pycocoevalcap's jar is installed, else `fallback`."""
    jar = _jar()
    if shutil.which("java") is None or jar is None:
        return "fallback"
    started = subprocess.run(["java", "-version"], capture_output=True, check=False)
    return "ptb-java" if started.returncode == 0 else "fallback"


def _jar() -> Path | None:
    package = find_spec("pycocoevalcap")
    if package is None or package.submodule_search_locations is None:
        return None
    jar = Path(package.submodule_search_locations[0]) / "tokenizer" / JAR
    return jar if jar.is_file() else None


def _java(lines: Sequence[str]) -> list[list[str]]:
    """One process for all lines. Text goes through a pipe, so a read-only installation works too."""
    jar = _jar()
    if jar is None:
        raise RuntimeError(f'tokenizer "ptb-java": {JAR} is not in the pycocoevalcap package; choose "fallback"')
    command = ["java", "-Dfile.encoding=UTF-8", "-Dstdout.encoding=UTF-8", "-cp", str(jar)]
    command += ["edu.stanford.nlp.process.PTBTokenizer", "-encoding", "UTF-8", "-preserveLines", "-lowerCase"]
    text = "".join(f"{line}\n" for line in lines)
    done = subprocess.run(command, input=text.encode(), capture_output=True, check=False)
    tokenized = done.stdout.decode().split("\n")[:-1]
    if done.returncode != 0 or len(tokenized) != len(lines):
        raise RuntimeError(
            f'tokenizer "ptb-java": {len(tokenized)} lines for {len(lines)} captions, exit code {done.returncode}: '
            f"{done.stderr.decode()[-500:]}"
        )
    return [line.rstrip().split(" ") for line in tokenized]


# --- the fallback -------------------------------------------------------------------------------------------------

_LETTER = r"[^\W\d_]"
_WORD = r"[^\W_]"
_COMPOUND = rf"{_WORD}+(?:-{_WORD}+)*"

_ABBREVIATIONS = """
    adm al ala alex apr ariz assn asst assoc atty aug ave bldg blvd brig bros calif capt cf cie cmdr co col colo conn
    corp cos cpl ct dec dept det dr drs esq est etc ext feb fla fri ft ga gen gov hon inc ind insp jan jr jul jun kan
    ky lt ltd maj mar md mfg mich minn mlle mme mo mon mont mr mrs ms msgr mt messrs neb nev nov oct okla penn ph ph.d
    plc pres prof profs pty pvt rd rep rev rt sen sep sept sgt spc sq sr st ste supt tel tenn thu thurs tue tues univ va
    vs vt wed wis
"""
_CAPITAL_ABBREVIATIONS = "Ark Az Del Ill La Mass Miss Ore Pa Tex Wash"
"""Abbreviations only where they are written with a capital: "la." ends a sentence, "La." is a state."""
_BEFORE_NUMBER = "art ca fig figs no nos op p pp prop"
"""Abbreviations only before a number: "no. 5"."""
_SENTENCE_STARTS = """
    A About According Additionally After An As At But Earlier He Her Here However If In It Last Many More Now Once One
    Other Our She Since So Some Such That The Their Then There These They This We What When While Yet You
"""
"""Before one of these, a single letter's period ends the sentence; also when they begin the next caption."""

_SPLIT_WORDS = "can|not gon|na got|ta wan|na lem|me gim|me more|'n 't|is 't|was d'|ye"
"""Written as one word, two tokens."""

_APOSTROPHE_WORDS = (
    "n' 'n 'n' 'em 'til 'till 'cause ol' o'clock c'mon ma'am ne'er e'er o'er dunkin' somethin' cont'd jack-o'lantern"
)


def _either(words: str) -> str:
    return "|".join(re.escape(word) for word in sorted(words.split(), key=len, reverse=True))


def _split_words() -> str:
    """A first half that only matches in front of its second half; the second half then matches as an ordinary word."""
    halves = (pair.split("|") for pair in _SPLIT_WORDS.split())
    return "|".join(rf"{first}(?={second}(?!{_WORD}))" for first, second in halves)


_TOKEN = re.compile(
    rf"""
      (?P<line>     \n )
    | (?P<tag>      </?[A-Za-z][^<>\n]*> )
    | (?P<address>  (?:https?://|www\.)[^\s"<>()]*[^\s"<>().,;:!?'\]] | [\w.+-]+@[\w-]+(?:\.[\w-]+)+ )
    | (?P<face>     [<>]?[:;=]['o*-]?(?:[()@|\[\]{{]|[DPdpO](?!{_WORD})) )
    | (?P<date>     \d{{1,2}}[-/]\d{{1,2}}[-/]\d{{2,4}}(?!{_WORD}) )
    | (?P<fraction> (?:\d+[-\ ])?\d+/\d+(?![^\W_]|[/-]) )
    | (?P<half>     (?i:{_split_words()}) )
    | (?P<quoted>   (?<!{_WORD})(?i:{_either(_APOSTROPHE_WORDS)})(?!{_WORD}) | (?<!{_WORD})'\d\ds?(?!{_WORD}) )
    | (?P<ending>   (?i:n't(?!{_WORD}) | '(?:s|m|d|ll|re|ve)(?!{_WORD})) | (?i:y')(?={_LETTER}) )
    | (?P<negated>  {_LETTER}+(?=(?i:n't)(?!{_WORD})) )
    | (?P<vowels>   {_LETTER}+(?<=[AEIOUaeiou])'(?=[AEIOUaeiou]){_LETTER}+ | [DdOoLl]'{_WORD}+ )
    | (?P<ampersand>[A-Z]+(?:&[A-Z]+)+ )
    | (?P<acronym>  (?:{_LETTER}\.){{2,}}(?:{_LETTER}(?!{_WORD}))?(?:-{_WORD}+)*|{_LETTER}\.{_LETTER}(?!{_WORD}) )
    | (?P<abbreviation> (?: (?i:{_either(_ABBREVIATIONS)}) | {_either(_CAPITAL_ABBREVIATIONS)}
                        | (?i:{_either(_BEFORE_NUMBER)})(?=\.\s?\d) )\.(?!{_LETTER}) )
    | (?P<initial>  {_LETTER}\.(?!{_LETTER}|\.|\s+(?:{_either(_SENTENCE_STARTS)})\b) )
    | (?P<hyphened> {_COMPOUND}(?:/{_COMPOUND}){{1,2}} | {_WORD}+(?:-{_WORD}+)+ )
    | (?P<dotted>   {_LETTER}{_WORD}*(?:[.!?]{_LETTER}{_WORD}*)+ )
    | (?P<number>   [-+]?\d*+(?:[.,:]\d++)++(?:-{_WORD}+)* | [-+]?\d++(?!{_LETTER}) )
    | (?P<word>     {_WORD}+ )
    | (?P<mention>  [\#@]{_LETTER}\w* )
    | (?P<marks>    \.{{3,}} | -{{2,}} | [?!]+ | _+ | \*+ | ~+ | '' | `` )
    | (?P<symbol>   \S )
    """,
    re.VERBOSE,
)

_SPELLED = str.maketrans(
    {
        "\u2018": "`", "\u2019": "'", "\u201c": "``", "\u201d": "''", '"': "''", "\u2013": "--", "\u2014": "--",
        "\u2026": "...", "\u00bd": " 1/2", "\u00bc": " 1/4", "\u00be": " 3/4", "\u2153": " 1/3", "\u2154": " 2/3",
        "\u00a3": " # ", "\u20ac": " $ ", "\u00a2": " cents ", "\u00a0": " ", "\u00ad": "",
    }
)  # fmt: skip
_ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": "''", "&apos;": "'"}
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}


def _fallback(lines: Sequence[str]) -> list[list[str]]:
    """All lines at once, since whether a letter's period is its own depends on how the next line begins."""
    text = "\n".join(lines)
    for entity, character in _ENTITIES.items():
        text = text.replace(entity, character)
    tokenized: list[list[str]] = [[]]
    for match in _TOKEN.finditer(text.translate(_SPELLED)):
        if match.lastgroup == "line":
            tokenized.append([])
        else:
            tokenized[-1].append(_spelled(match))
    return tokenized


def _spelled(match: re.Match[str]) -> str:
    """The token as Java prints it."""
    token = match.group().lower()
    match match.lastgroup:
        case "face":
            return "".join(_BRACKETS[mark] if mark in "()" else mark for mark in token)
        case "fraction":
            return token.replace(" ", "\u00a0")
        case "marks" if token[0] in ".-":
            return token[:3] if token[0] == "." else token[:2]
        case "symbol":
            return _BRACKETS.get(token, token)
        case _:
            return token
