"""Questions with lettered options: ScienceQA and SEED-Bench."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Any, Literal

from pydantic import Field

from limbeck.data.examples import DataError
from limbeck.data.records import BrokenRecord, existing_file, field, kind_of, listed, read_json
from limbeck.evaluation.generative.items import (
    CommonConfig,
    Item,
    Pictures,
    Scored,
    multiple_choice,
    percent,
    percent_by,
    reading,
)
from limbeck.evaluation.inputs import Row

_SUBJECTS = {"natural science": "NAT", "social science": "SOC", "language science": "LAN"}


class ScienceQaConfig(CommonConfig):
    """ScienceQA, asked with LLaVA-1.5's prompt (context, question, options: CQM-A)."""

    benchmark: Literal["scienceqa"]
    problems: str
    """problems.json"""
    splits: str | None = None
    """pid_splits.json; null: every problem of `problems`"""
    split: str = "test"
    images: str | None = None
    """the split's folder of pictures, which has <id>/image.png"""
    subset: Literal["all", "image"] = "all"
    """image: only problems with a picture, 2,017 of the test split"""
    max_new_tokens: int = Field(default=64, ge=1)


class SeedBenchConfig(CommonConfig):
    """SEED-Bench's questions about pictures; those about videos are left out."""

    benchmark: Literal["seed_bench"]
    questions: str
    """SEED-Bench.json"""
    images: str | None = None
    """SEED-Bench-image"""
    max_new_tokens: int = Field(default=16, ge=1)


def load_scienceqa(config: ScienceQaConfig, base: Path) -> list[Item]:
    """One item per problem of the split; those without a picture are asked in text alone. Raises DataError."""
    file = existing_file(base, config.problems, "benchmark scienceqa, field problems")
    problems = read_json(file)
    if not isinstance(problems, dict):
        raise DataError(f"{file}: wanted an object of problems by id, found {kind_of(problems)}")
    ids = list(problems)
    if config.splits is not None:
        splits_file = existing_file(base, config.splits, "benchmark scienceqa, field splits")
        ids = [str(id) for id in listed(read_json(splits_file), config.split, splits_file)]
        if absent := [id for id in ids if id not in problems]:
            raise DataError(f"{file}: lacks {len(absent)} problems that {splits_file} lists, the first {absent[:5]}")
    if config.subset == "image":
        ids = [id for id in ids if problems[id]["image"]]
    pictures = Pictures(config, base, config.images, "scienceqa")
    items = []
    for id in ids[: config.limit]:
        with reading(file, f"problem {id}"):
            items.append(_science_item(id, problems[id], pictures))
    return items


def score_scienceqa(rows: Sequence[Row]) -> Scored:
    """Accuracy over all, of problems with a picture, and by the columns that papers print."""
    said = [scienceqa_answer(row["prediction"], len(row["options"])) for row in rows]
    right = [letter == row["answer"] for letter, row in zip(said, rows, strict=True)]
    summary: dict[str, Any] = {"questions": len(rows), "accuracy": percent(right)}
    columns = [(column, one) for row, one in zip(rows, right) for column in row["columns"]]
    summary["by_kind"] = percent_by([column for column, _ in columns], [one for _, one in columns])
    if "IMG" in summary["by_kind"]:
        summary["image_accuracy"] = summary["by_kind"]["IMG"]
    grades = [{"said": letter, "accuracy": float(one)} for letter, one in zip(said, right)]
    return Scored(summary=summary, grades=grades)


def scienceqa_answer(prediction: str, options: int) -> str | None:
    """The letter that LLaVA's script finds: alone, before ". ", or in "The answer is X"; None where it finds none."""
    text = prediction.replace("\n", ". ")
    letters = ascii_uppercase[:5]
    found = None
    if text.strip() and text.strip() in tuple(letters):
        found = text.strip()
    elif len(text) >= 3 and text[0] in letters and text[1:3] == ". ":
        found = text[0]
    else:
        match = re.search(r"The answer is ([A-E])\.", text) or re.search(r"The answer is ([A-E])", text)
        found = match.group(1) if match else None
    return found if found is not None and letters.index(found) < options else None


def load_seed_bench(config: SeedBenchConfig, base: Path) -> list[Item]:
    """One item per question about a picture. Raises DataError."""
    file = existing_file(base, config.questions, "benchmark seed_bench, field questions")
    content = read_json(file)
    records = listed(content, "questions", file)
    if not isinstance(content.get("question_type"), dict):
        raise DataError(f"{file}: wanted an object `question_type` of numbers by name beside `questions`")
    types = {number: name for name, number in content["question_type"].items()}
    pictures = Pictures(config, base, config.images, "seed_bench")
    items = []
    for number, record in enumerate(records):
        with reading(file, f"questions[{number}]"):
            if field(record, "data_type", str) != "image":
                continue
            text, kind = field(record, "question", str).strip(), field(record, "question_type_id", int)
            options = [field(record, f"choice_{letter}", str) for letter in "abcd"]
            answer = field(record, "answer", str)
            if answer not in tuple("ABCD") or kind not in types:
                raise BrokenRecord(f"wanted an answer from A to D and a known question_type_id, found {answer}, {kind}")
            image = field(record, "data_id", str)
            row = {"image_id": image, "kind": types[kind], "question": text, "options": options, "answer": answer}
            id = str(field(record, "question_id", (str, int)))
            items.append(Item(id=id, prompt=multiple_choice(text, options), images=pictures.of(image), row=row))
        if len(items) == config.limit:
            break
    if not items:
        raise DataError(f"{file}: no question about a picture (data_type `image`)")
    return items


def score_seed_bench(rows: Sequence[Row]) -> Scored:
    """Accuracy over the questions, and by their type; the answer is its first letter."""
    right = [row["prediction"].strip()[:1].upper() == row["answer"] for row in rows]
    kinds = percent_by([row["kind"] for row in rows], right)
    summary = {"questions": len(rows), "accuracy": percent(right), "by_kind": kinds}
    return Scored(summary=summary, grades=[{"accuracy": float(one)} for one in right])


def _science_item(id: str, problem: Any, pictures: Pictures) -> Item:
    text, hint = field(problem, "question", str), field(problem, "hint", str)
    options, number = field(problem, "choices", list), field(problem, "answer", int)
    image = field(problem, "image", (str, type(None)))
    if not 0 <= number < len(options) <= 5 or not all(isinstance(option, str) for option in options):
        raise BrokenRecord(f"wanted two to five texts as choices and the number of one, found {number} of {options}")
    asked = f"Context: {hint}\n{text}" if hint else text
    row = {
        "question": text,
        "options": options,
        "answer": ascii_uppercase[number],
        "columns": _science_columns(problem, hint, image),
    }
    shown = pictures.of(f"{id}/{image}") if image else ()
    return Item(id=id, prompt=multiple_choice(asked, options), images=shown, row=row)


def _science_columns(problem: Any, hint: str, image: str | None) -> list[str]:
    """Subject; TXT, IMG (both, where there are both) or NO; grades."""
    subject, grade = field(problem, "subject", str), field(problem, "grade", str)
    if subject not in _SUBJECTS or not grade.removeprefix("grade").isdecimal():
        raise BrokenRecord(f"wanted a subject of {', '.join(_SUBJECTS)} and a grade like grade7: {subject}, {grade}")
    given = [*(["TXT"] if hint else []), *(["IMG"] if image else [])]
    return [_SUBJECTS[subject], *(given or ["NO"]), "G1-6" if int(grade.removeprefix("grade")) <= 6 else "G7-12"]
