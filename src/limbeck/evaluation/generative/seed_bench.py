"""SEED-Bench's questions about pictures, answered by a letter or by the likelihood of each choice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from limbeck.data.examples import DataError
from limbeck.data.records import BrokenRecord, existing_file, field, listed, read_json
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


class SeedBenchConfig(CommonConfig):
    """SEED-Bench's 14,233 questions about pictures, in nine dimensions; those about videos are left out."""

    benchmark: Literal["seed_bench"]
    questions: str
    """SEED-Bench.json"""
    images: str | None = None
    """SEED-Bench-image"""
    mode: Literal["letter", "likelihood"] = "letter"
    """letter: the options are shown and the model writes one's letter, as LLaVA-1.5 is asked (CoMD: temperature 0.1);
    likelihood: the question alone is asked and the likeliest of the four choices counts, as in the official script"""
    max_new_tokens: int = Field(default=16, ge=1)


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
            if config.mode == "likelihood" and not all(option.strip() for option in options):
                raise BrokenRecord(f"an empty choice has no likelihood: {options}")
            image = field(record, "data_id", str)
            row = {"image_id": image, "kind": types[kind], "question": text, "options": options, "answer": answer}
            ranked = config.mode == "likelihood"
            items.append(
                Item(
                    id=str(field(record, "question_id", (str, int))),
                    prompt=text if ranked else multiple_choice(text, options),
                    images=pictures.of(image),
                    choices=tuple(options) if ranked else (),
                    row=row,
                )
            )
        if len(items) == config.limit:
            break
    if not items:
        raise DataError(f"{file}: no question about a picture (data_type `image`)")
    return items


def score_seed_bench(rows: Sequence[Row]) -> Scored:
    """Accuracy over the questions, and by their type; the answer is its first character, a capital letter.

    By likelihood, `per_token` holds the same two for the choice whose mean over its tokens is greatest. The official
    script takes the sum for InstructBLIP (the losses of LAVIS's `modeling_t5`; those of its `modeling_llama` are
    divided by one number for all four); the interface to LLaVA that came with SEED-Bench-2 takes the mean.
    """
    summary = _accuracy(rows, [row["prediction"] for row in rows])
    if "log_probabilities" in rows[0]:
        means = [
            [total / tokens for total, tokens in zip(row["log_probabilities"], row["tokens"], strict=True)]
            for row in rows
        ]
        by_mean = _accuracy(rows, ["ABCD"[values.index(max(values))] for values in means])
        summary["per_token"] = {key: by_mean[key] for key in ("accuracy", "by_kind")}
    return Scored(
        summary=summary, grades=[{"accuracy": float(one)} for one in _right(rows, [r["prediction"] for r in rows])]
    )


def _accuracy(rows: Sequence[Row], said: Sequence[str]) -> dict[str, Any]:
    right = _right(rows, said)
    kinds = percent_by([row["kind"] for row in rows], right)
    return {"questions": len(rows), "accuracy": percent(right), "by_kind": kinds}


def _right(rows: Sequence[Row], said: Sequence[str]) -> list[bool]:
    return [answer.strip()[:1] == row["answer"] for answer, row in zip(said, rows, strict=True)]
