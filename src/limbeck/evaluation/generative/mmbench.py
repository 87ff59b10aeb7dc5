"""MMBench with CircularEval: a question counts as right only if it is, whichever option stands first."""

from __future__ import annotations

import base64
import binascii
import csv
import io
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from pydantic import Field

from limbeck.data.examples import BrokenImage, DataError, MadeImage, decode
from limbeck.data.records import existing_file
from limbeck.evaluation.generative.items import CommonConfig, Item, Scored, multiple_choice, percent, percent_by
from limbeck.evaluation.inputs import Row

_LETTERS = "ABCD"
_ROTATION = 1_000_000
"""A row's index modulo this is its question's: the official file holds the rotations as rows of their own."""
_MARKS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))


class MMBenchConfig(CommonConfig):
    """MMBench's TSV with its pictures inside; papers report dev, version 20230712. `limit` counts questions."""

    benchmark: Literal["mmbench"]
    path: str
    """mmbench_dev_20230712.tsv; where it holds no rotations they are made here"""
    circular: bool = True
    """ask every rotation of the options; else each question once"""
    max_new_tokens: int = Field(default=64, ge=1)


def load_mmbench(config: MMBenchConfig, base: Path) -> list[Item]:
    """One item per question and rotation. Raises DataError."""
    file = existing_file(base, config.path, "benchmark mmbench, field path")
    groups: dict[int, list[dict[str, str]]] = {}
    for record in _records(file):
        groups.setdefault(int(record["index"]) % _ROTATION, []).append(record)
    items = []
    for group, records in list(groups.items())[: config.limit]:
        records.sort(key=lambda record: int(record["index"]))
        first = records[0]
        images = () if config.blind else (_picture(file, first),)
        rounds = [_round(file, record) for record in records]
        if len(records) == 1:
            rounds = [_rotated(*rounds[0], by) for by in range(len(rounds[0][0]))]
        question = first["question"] if _missing(first["hint"]) else f"{first['hint']}\n{first['question']}"
        for number, (options, answer) in enumerate(rounds if config.circular else rounds[:1]):
            row = {
                "group": group,
                "rotation": number,
                "kind": first["category"],
                "ability": first["l2-category"],
                "question": question,
                "options": options,
                "answer": answer,
            }
            items.append(
                Item(id=f"{group}/{number}", prompt=multiple_choice(question, options), images=images, row=row)
            )
    if not items:
        raise DataError(f"{file}: no question in it")
    return items


def score_mmbench(rows: Sequence[Row]) -> Scored:
    """CircularEval in percent, overall and by category, beside the accuracy of the first rotation alone.

    Answers are matched by rule (`mmbench_answer`); one that no rule can read is wrong, and counted in `unmatched`: the
    official script would show it to a language model, so papers' figures may stand a little higher.
    """
    said = [mmbench_answer(row["prediction"], row["options"]) for row in rows]
    grades = [
        {"said": letter, **({"accuracy": float(letter == row["answer"])} if row["answer"] else {})}
        for letter, row in zip(said, rows, strict=True)
    ]
    unmatched = percent([letter is None for letter in said])
    groups: dict[int, list[tuple[Row, bool]]] = {}
    for letter, row in zip(said, rows, strict=True):
        if row["answer"]:
            groups.setdefault(row["group"], []).append((row, letter == row["answer"]))
    summary: dict[str, Any] = {"questions": len({row["group"] for row in rows}), "unmatched": unmatched}
    if groups:
        hits = [all(right for _, right in group) for group in groups.values()]
        firsts = [group[0][0] for group in groups.values()]
        summary |= {
            "accuracy": percent(hits),
            "first_rotation": percent([group[0][1] for group in groups.values()]),
            "by_kind": percent_by([row["kind"] for row in firsts], hits),
            "by_ability": percent_by([row["ability"] for row in firsts], hits),
        }
    return Scored(summary=summary, grades=grades)


def mmbench_answer(prediction: str, options: Sequence[str]) -> str | None:
    """The option meant: the only letter that stands alone, else the only option whose text is in the answer.

    A lone A in more than three words may be an article, so that answer is matched by text.
    """
    letters = _LETTERS[: len(options)]
    words = prediction.translate(_MARKS).split()
    alone = [letter for letter in letters if letter in words]
    if len(alone) == 1 and not ("A" in words and len(words) > 3):
        return alone[0]
    text = prediction.lower()
    named = [letter for letter, option in zip(letters, options) if option.lower() in text]
    return named[0] if len(named) == 1 else None


def _round(file: Path, record: dict[str, str]) -> tuple[list[str], str]:
    """The options up to the first that is missing, and the right one's letter, empty where it is secret."""
    options: list[str] = []
    for letter in _LETTERS:
        if _missing(record[letter]):
            break
        options.append(record[letter])
    answer = "" if _missing(record["answer"]) else record["answer"].strip()
    if len(options) < 2 or (answer and answer not in tuple(_LETTERS[: len(options)])):
        raise DataError(f"{file}: index {record['index']}: answer {answer!r} of {len(options)} options")
    return options, answer


def _rotated(options: list[str], answer: str, by: int) -> tuple[list[str], str]:
    """The options from number `by` on, those before it last, and the right one's new letter."""
    moved = options[by:] + options[:by]
    return moved, _LETTERS[(_LETTERS.index(answer) - by) % len(options)] if answer else ""


def _records(file: Path) -> Iterator[dict[str, str]]:
    """The rows, column names in lower case but for the options'."""
    csv.field_size_limit(sys.maxsize)
    with file.open(encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream, delimiter="\t")
        names = {name: name if name in tuple(_LETTERS) else name.lower() for name in reader.fieldnames or ()}
        wanted = {"index", "question", "A", "B", "image"}
        if absent := wanted - set(names.values()):
            raise DataError(f"{file}: no columns {', '.join(sorted(absent))}; it has {', '.join(names)}")
        optional = dict.fromkeys(("hint", "C", "D", "answer", "category", "l2-category"), "")
        for number, record in enumerate(reader, start=2):
            row = optional | {names[name]: value or "" for name, value in record.items() if name in names}
            if not row["index"].isdecimal():
                raise DataError(f"{file} row {number}, index: wanted a number, found {row['index']!r}")
            yield row


def _missing(value: str) -> bool:
    return value.strip().lower() in ("", "nan", "none")


def _picture(file: Path, record: dict[str, str]) -> MadeImage:
    name = f"{file}#{record['index']}"
    return MadeImage(name, partial(_decoded, record["image"], name))


def _decoded(text: str, name: str) -> Image.Image:
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise BrokenImage(f"{name}: not base64: {error}") from error
    return decode(io.BytesIO(data), name)
