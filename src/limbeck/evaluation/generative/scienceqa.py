"""ScienceQA, asked for a letter as LLaVA-1.5 is, or for lecture, explanation and answer as LLaVA and CoMD are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Any, Literal

from pydantic import Field

from limbeck.data.scienceqa import Problem, problem_of, read_problems
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

LEA_TOKENS = 1024
"""LLaVA's bound on an answer with its lecture and explanation."""


class ScienceQaConfig(CommonConfig):
    """ScienceQA by either of LLaVA's prompts; papers report the test split's 4,241 problems or those with a picture."""

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
    target: Literal["letter", "lea"] = "letter"
    """what the prompt asks for: LLaVA-1.5's letter (CQM-A), or the lecture, explanation and answer that a model
    fine-tuned on source `scienceqa` writes (QCM-LEA; CoMD samples it at temperature 0.5)"""
    max_new_tokens: int = Field(
        default_factory=lambda others: LEA_TOKENS if others.get("target") == "lea" else 64, ge=1
    )
    """1024 by default for target lea"""


def load_scienceqa(config: ScienceQaConfig, base: Path) -> list[Item]:
    """One item per problem of the split; those without a picture are asked in text alone. Raises DataError."""
    file, records = read_problems(base, config.problems, config.splits, config.split, "benchmark scienceqa")
    pictures = Pictures(config, base, config.images, "scienceqa")
    items: list[Item] = []
    for id, record in records:
        with reading(file, f"problem {id}"):
            problem = problem_of(id, record)
            if problem.image or config.subset == "all":
                items.append(_item(problem, config.target, pictures))
        if len(items) == config.limit:
            break
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
    """The letter that LLaVA's script finds: alone, before ". ", or in its only "The answer is X."; else None."""
    letters = ascii_uppercase[:options]
    if prediction in tuple(letters):
        return prediction
    if prediction[:1] in tuple(letters) and prediction[1:3] == ". ":
        return prediction[0]
    found = re.findall(r"The answer is ([A-Z]).", prediction)
    return found[0] if len(found) == 1 and found[0] in letters else None


def _item(problem: Problem, target: Literal["letter", "lea"], pictures: Pictures) -> Item:
    asked = f"Context: {problem.hint}\n{problem.question}" if problem.hint else problem.question
    prompt = problem.lea_prompt if target == "lea" else multiple_choice(asked, problem.options)
    row = {
        "question": problem.question,
        "options": list(problem.options),
        "answer": problem.answer,
        "columns": problem.columns,
    }
    shown = pictures.of(problem.image) if problem.image else ()
    return Item(id=problem.id, prompt=prompt, images=shown, row=row)
