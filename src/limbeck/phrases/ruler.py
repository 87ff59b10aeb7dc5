"""spaCy's attribute ruler as a table: what is a noun, by tag, word and dependency, without its matcher.

The tagger gives tags; the attribute ruler turns them into parts of speech by some 180 patterns, and its matcher costs
as much as the networks do. A pattern on one token is a function of the token's tag, word and dependency, so each such
triple is worked out once. A document that a pattern of several tokens might fit goes through spaCy's own ruler.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from spacy.attrs import DEP, LOWER, TAG
from spacy.pipeline import AttributeRuler
from spacy.symbols import IDS
from spacy.tokens import Doc

Key = tuple[int, int, int]
"""tag, word in lower case and dependency of a token, as numbers of the pipeline's strings"""
NOUNS = ("NOUN", "PROPN", "PRON")
_TESTED = {"TAG", "LOWER", "DEP", "IS_SPACE"}
_SET = {"POS", "DEP"}
"""what noun chunks are read from"""


@dataclass(frozen=True)
class _Verdict:
    noun: int | None
    """the part of speech where it is one of `NOUNS`"""
    dep: int | None
    fits: frozenset[tuple[int, int]]
    """(pattern of several tokens, place in it) that a token like this one fits"""


class RulerTable:
    """Sets what noun chunks are read from as an attribute ruler does, and nothing else."""

    def __init__(self, ruler: AttributeRuler) -> None:
        self._ruler = ruler
        self._strings = ruler.vocab.strings
        rules = _rules(ruler)
        self._single = [(pattern[0], attributes) for pattern, attributes in rules if len(pattern) == 1]
        self._several = [pattern for pattern, _ in rules if len(pattern) > 1]
        self._known: dict[Key, _Verdict] = {}

    @staticmethod
    def can_replace(ruler: AttributeRuler) -> bool:
        """Whether every pattern that matters is of the kinds that a table can hold."""
        return all(_known_kind(token) for pattern, _ in _rules(ruler) for token in pattern)

    def __call__(self, doc: Doc) -> Doc:
        """Set `pos` of nouns, proper nouns and pronouns, and `dep` where the ruler corrects it."""
        keys = [tuple(row) for row in doc.to_array([TAG, LOWER, DEP]).tolist()] if len(doc) else []
        known = self._known
        verdicts = [known[key] if key in known else self._work_out(key) for key in keys]
        if self._several and self._several_fit(verdicts):
            return self._ruler(doc)
        for place, verdict in enumerate(verdicts):
            if verdict.noun is not None:
                doc[place].pos = verdict.noun
            if verdict.dep is not None:
                doc[place].dep = verdict.dep
        return doc

    def _several_fit(self, verdicts: list[_Verdict]) -> bool:
        """Whether each place of some pattern of several tokens has a token that fits it, wherever that stands."""
        fits = {place for verdict in verdicts if verdict.fits for place in verdict.fits}
        return bool(fits) and any(
            all((number, place) in fits for place in range(len(pattern)))
            for number, pattern in enumerate(self._several)
        )

    def _work_out(self, key: Key) -> _Verdict:
        tag, lower, dep = (self._strings[number] for number in key)
        token = {"TAG": tag, "LOWER": lower, "DEP": dep, "IS_SPACE": lower.isspace()}
        set_to: dict[str, str] = {}
        for pattern, attributes in self._single:  # a later one has the last word, as in the ruler
            if _fits(pattern, token):
                set_to.update(attributes)
        fits = {
            (number, place)
            for number, pattern in enumerate(self._several)
            for place, wanted in enumerate(pattern)
            if _fits(wanted, token)
        }
        noun = IDS[set_to["POS"]] if "POS" in set_to and set_to["POS"] in NOUNS else None
        dep_after = self._strings.add(set_to["DEP"]) if "DEP" in set_to else None
        self._known[key] = _Verdict(noun, dep_after, frozenset(fits))
        return self._known[key]


def _rules(ruler: AttributeRuler) -> list[tuple[list[dict[str, Any]], dict[str, str]]]:
    """Patterns and what they set, of those that set something of what chunks are read from."""
    patterns: list[Any] = ruler.patterns
    entries = [entry for entry in patterns if _SET & entry["attrs"].keys()]
    return [(pattern, entry["attrs"]) for entry in entries for pattern in entry["patterns"]]


def _known_kind(token: Mapping[str, Any]) -> bool:
    return token.keys() <= _TESTED and all(
        isinstance(wanted, str | bool) or (isinstance(wanted, dict) and wanted.keys() <= {"IN", "NOT_IN"})
        for wanted in token.values()
    )


def _fits(pattern: Mapping[str, Any], token: Mapping[str, Any]) -> bool:
    for name, wanted in pattern.items():
        value = token[name]
        if not isinstance(wanted, dict):
            if value != wanted:
                return False
        elif ("IN" in wanted and value not in wanted["IN"]) or ("NOT_IN" in wanted and value in wanted["NOT_IN"]):
            return False
    return True
