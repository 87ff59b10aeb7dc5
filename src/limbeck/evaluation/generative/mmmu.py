"""MMMU: questions of 30 college subjects, with lettered options or open, from the parquet files of its dataset."""

from __future__ import annotations

import ast
import importlib.util
import io
import random
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from string import ascii_uppercase
from typing import Any, Literal

from PIL import Image
from pydantic import Field

from limbeck.data.examples import DataError, MadeImage, decode
from limbeck.data.records import BrokenRecord, existing_folder, field, kind_of
from limbeck.evaluation.generative.items import (
    LETTER,
    CommonConfig,
    Item,
    Scored,
    percent,
    percent_by,
    reading,
    short_answer,
)
from limbeck.evaluation.inputs import Row

_TAILS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
"""What an open answer is preceded by."""
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)
"""With thousands' commas; in scientific notation; plain."""


class MmmuConfig(CommonConfig):
    """MMMU as the hub's dataset lies on disk: a folder for each subject with <split>-*.parquet."""

    benchmark: Literal["mmmu"]
    folder: str
    split: str = "validation"
    images: Literal["first", "all"] = "first"
    """first: only image_1, as LLaVA-1.5 was run; all: every picture that question and options name"""
    max_new_tokens: int = Field(default=128, ge=1)


def load_mmmu(config: MmmuConfig, base: Path) -> list[Item]:
    """One item per question. Raises DataError, also where pyarrow is missing."""
    if importlib.util.find_spec("pyarrow") is None:
        raise DataError("benchmark mmmu reads parquet files and needs pyarrow: pip install 'limbeck[data]'")
    import pyarrow.parquet

    folder = existing_folder(base, config.folder, "benchmark mmmu, field folder")
    files = sorted(folder.glob(f"**/{config.split}-*.parquet"))
    if not files:
        raise DataError(f"{folder}: no <subject>/{config.split}-*.parquet")
    items: list[Item] = []
    for file in files:
        for number, record in enumerate(pyarrow.parquet.read_table(file).to_pylist()):
            with reading(file, f"row {number}"):
                items.append(_item(record, file, config))
            if len(items) == config.limit:
                return items
    return items


def score_mmmu(rows: Sequence[Row]) -> Scored:
    """Accuracy over all questions, and by subject; lettered and open ones by the official rules."""
    said = [
        multiple_choice_answer(row["prediction"], row["options"], row["id"])
        if row["options"]
        else open_answer(row["prediction"])
        for row in rows
    ]
    right = [
        one == row["answer"] if isinstance(one, str) else is_open_right(one, row["answers"])
        for one, row in zip(said, rows, strict=True)
    ]
    summary: dict[str, Any] = {"questions": len(rows), "accuracy": percent(right)}
    summary["by_kind"] = percent_by([row["kind"] for row in rows], right)
    return Scored(summary=summary, grades=[{"said": one, "accuracy": float(hit)} for one, hit in zip(said, right)])


def multiple_choice_answer(prediction: str, options: Sequence[str], id: str) -> str:
    """The letter meant: "(B)", else a lone B, else in an answer of more than five words an option's text.

    Of several the last. Where there is none the official script draws a letter; here the draw depends on the question's
    id alone, so that rows score the same in any order.
    """
    for mark in ",.!?;:'":
        prediction = prediction.strip(mark)
    prediction = f" {prediction} "
    letters = dict(zip(ascii_uppercase, options))
    for form in ("({})", " {} "):
        places = {letter: prediction.rfind(form.format(letter)) for letter in letters}
        if found := [letter for letter in letters if places[letter] >= 0]:
            return max(found, key=lambda letter: places[letter])
    if len(prediction.split()) > 5:
        text = prediction.lower()
        places = {letter: text.rfind(option.lower()) for letter, option in letters.items()}
        if found := [letter for letter in letters if places[letter] >= 0]:
            return max(found, key=lambda letter: places[letter])
    return random.Random(f"mmmu {id}").choice(list(letters))


def open_answer(prediction: str) -> list[str | float]:
    """What an open answer may mean: the ends of its sentences after words like "is", and the numbers in them."""
    text = prediction.strip().strip(".").lower()
    sentences = re.split(r"\.\s(?=[A-Z])|\n", text)
    ends: list[str] = []
    for number, sentence in enumerate(sentences):
        tails = (*_TAILS, "=") if number == len(sentences) - 1 else _TAILS
        shortest = ""
        for end in (sentence.split(tail)[-1].strip() for tail in tails if tail in sentence):
            if not shortest or len(end) < len(shortest):
                shortest = end
        if shortest and shortest not in tuple(":,.!?;'"):
            ends.append(shortest)
    ends = ends or [text]
    numbers = [number for end in ends for pattern in _NUMBERS for number in pattern.findall(end)]
    return list(dict.fromkeys(form for part in (*ends, *numbers) for form in _forms(part)))


def is_open_right(meant: Sequence[str | float], answers: Sequence[str]) -> bool:
    """Whether a number is one of the answers to two decimals, or an answer's words stand in a text."""
    forms = [form for answer in answers for form in _forms(answer)]
    return any(
        any(isinstance(form, str) and form in one for form in forms) if isinstance(one, str) else one in forms
        for one in meant
    )


def _forms(text: str) -> list[str | float]:
    """A text as it is compared: a number to two decimals, or lower case; one letter only beside a space."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
        return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def _item(record: dict[str, Any], file: Path, config: MmmuConfig) -> Item:
    id, question = field(record, "id", str), field(record, "question", str)
    options, answers = _texts(record, "options"), _texts(record, "answer")
    lettered = field(record, "question_type", str) == "multiple-choice"
    if lettered and (not options or answers[0] not in tuple(ascii_uppercase[: len(options)])):
        raise BrokenRecord(f"question {id}: answer {answers[0]!r} is no letter of its {len(options)} options")
    prompt = short_answer(question)
    if lettered:
        choices = "\n".join(f"({letter}) {option}" for letter, option in zip(ascii_uppercase, options))
        prompt = f"{question}\n{choices}\n\n{LETTER}"
    named = ["1"] if config.images == "first" else list(dict.fromkeys(re.findall(r"<image (\d+)>", prompt)))
    images = () if config.blind else tuple(_picture(record, f"image_{number}", file, id) for number in named)
    row = {
        "kind": file.parent.name,
        "question": question,
        "options": options if lettered else [],
        "answer": answers[0],
        "answers": answers,
    }
    return Item(id=id, prompt=prompt, images=images, row=row)


def _texts(record: dict[str, Any], name: str) -> list[str]:
    """A field that is a text, or a list of texts written out as one. Raises BrokenRecord."""
    value = field(record, name, str)
    if not value.startswith("["):
        return [value]
    try:
        texts = ast.literal_eval(value)
    except (ValueError, SyntaxError) as error:
        raise BrokenRecord(f"field {name!r}: not a list: {error}") from error
    if not isinstance(texts, list):
        raise BrokenRecord(f"field {name!r}: wanted a list of texts, found {kind_of(texts)}")
    return [str(text) for text in texts]


def _picture(record: dict[str, Any], name: str, file: Path, id: str) -> MadeImage:
    data = field(field(record, name, dict), "bytes", bytes)
    place = f"{file}#{id}/{name}"
    return MadeImage(place, partial(_decoded, data, place))


def _decoded(data: bytes, place: str) -> Image.Image:
    return decode(io.BytesIO(data), place)
