"""LLaVA's two open-ended benchmarks, scored by a judge against the answers of a text-only GPT-4.

The judge sees no picture: it reads what people have written about it, the question, the reference and the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from limbeck.competition.replies import scores
from limbeck.data.examples import DataError
from limbeck.data.records import BrokenRecord, existing_file, field
from limbeck.evaluation.generative.items import Item, Pictures, Scored, json_lines, reading
from limbeck.evaluation.generative.judging import JudgedConfig
from limbeck.evaluation.inputs import Row

KINDS = ("conv", "detail", "complex")

_CAPTIONS_AND_BOXES = (
    "five descriptive sentences describing the same image and the bounding box coordinates of each object in the "
    "scene. These coordinates are in the form of bounding boxes, represented as (x1, y1, x2, y2) with floating numbers "
    "ranging from 0 to 1. These values correspond to the top left x, top left y, bottom right x, and bottom right y. "
)
_DESCRIPTION = "a few sentences describing the image. "
_RULE = (
    "We would like to request your feedback on the performance of two AI assistants in response to the user question "
    "displayed above. The user asks the question on observing an image. For your reference, the visual content in the "
    "image is represented with {context}\n"
    "Please rate the helpfulness, relevance, accuracy, level of details of their responses. Each assistant receives an "
    "overall score on a scale of 1 to 10, where a higher score indicates better overall performance.\n"
    "Please first output a single line containing only two values indicating the scores for Assistant 1 and 2, "
    "respectively. The two scores are separated by a space.\n"
    "In the subsequent line, please provide a comprehensive explanation of your evaluation, avoiding any potential "
    "bias and ensuring that the order in which the responses were presented does not affect your judgment."
)
COCO_RULE = _RULE.replace("{context}", _CAPTIONS_AND_BOXES)
"""LLaVA's rule for the COCO test set, the same for its three categories."""
WILD_RULE = _RULE.replace("{context}", _DESCRIPTION)
"""LLaVA's rule for LLaVA-Bench in the wild, the same for its three categories."""


class LlavaBenchCocoConfig(JudgedConfig):
    """LLaVA's test set, CoMD's too: 30 COCO pictures, each with a conversation, a detail and a reasoning question."""

    benchmark: Literal["llava_bench_coco"]
    questions: str
    """qa90_questions.jsonl"""
    references: str
    """qa90_gpt4_answer.jsonl"""
    context: str
    """caps_boxes_coco2014_val_80.jsonl"""
    images: str | None = None
    """COCO's val2014"""
    image_name: str = "COCO_val2014_{image}"
    """of a picture's file; `image` is the question's, e.g. 000000441147.jpg"""
    max_new_tokens: int = Field(default=1024, ge=1)


class LlavaBenchWildConfig(JudgedConfig):
    """LLaVA-Bench (In-the-Wild): 24 pictures, 60 questions."""

    benchmark: Literal["llava_bench_wild"]
    questions: str
    """questions.jsonl"""
    references: str
    """answers_gpt4.jsonl"""
    context: str
    """context.jsonl"""
    images: str | None = None
    max_new_tokens: int = Field(default=1024, ge=1)


def load_llava_bench(config: LlavaBenchCocoConfig | LlavaBenchWildConfig, base: Path) -> list[Item]:
    """One item per question. Raises DataError where a question has no reference or its picture no context."""
    what = f"benchmark {config.benchmark}, field"
    file = existing_file(base, config.questions, f"{what} questions")
    references = _references(existing_file(base, config.references, f"{what} references"))
    described = _contexts(config, existing_file(base, config.context, f"{what} context"))
    pictures = Pictures(config, base, config.images, config.benchmark)
    items = []
    for number, record in json_lines(file)[: config.limit]:
        with reading(file, number):
            id, image = str(field(record, "question_id", (int, str))), field(record, "image", str)
            kind, text = field(record, "category", str), field(record, "text", str)
            if kind not in KINDS:
                raise BrokenRecord(f"field 'category': wanted one of {', '.join(KINDS)}, found {kind!r}")
            for name, known, key in (("references", references, id), ("context", described, image)):
                if key not in known:
                    raise BrokenRecord(f"{name} has nothing about {key}")
            name = image if isinstance(config, LlavaBenchWildConfig) else config.image_name.format(image=image)
            row = {
                "image_id": image,
                "kind": kind,
                "question": text,
                "reference": references[id],
                "context": described[image],
            }
            items.append(Item(id=id, prompt=text, images=pictures.of(name), row=row))
    if not items:
        raise DataError(f"{file}: no question in it")
    return items


def coco_review(row: Row) -> str:
    """LLaVA's prompt to the judge, without its system message: the reference first, then the answer."""
    return _review(row, COCO_RULE)


def wild_review(row: Row) -> str:
    """The same for pictures that are described in a few sentences."""
    return _review(row, WILD_RULE)


def score_llava_bench(rows: Sequence[Row]) -> Scored:
    """100 times the candidate's scores over the reference's, both summed over all questions, and so by category.

    The judge is named, since figures of different judges do not compare. Answers without scores count nowhere;
    `reviews` says how many. Raises ValueError where rows have not been to the judge.
    """
    if absent := [row["id"] for row in rows if "review" not in row]:
        raise ValueError(
            f"no review of {len(absent)} of {len(rows)} answers, the first {absent[:5]}; they want a judge"
        )
    given = [None if row["review"] is None else scores(row["review"]) for row in rows]
    pairs = [(row["kind"], pair) for row, pair in zip(rows, given, strict=True) if pair is not None]
    summary: dict[str, Any] = {
        "questions": len(rows),
        "judge": ", ".join(dict.fromkeys(row["judge"] for row in rows)),
        "reviews": {"scored": len(pairs), "unscored": len(rows) - len(pairs)},
    }
    if pairs:
        kinds = [kind for kind in dict.fromkeys((*KINDS, *(kind for kind, _ in pairs))) if kind in dict(pairs)]
        summary |= {
            "relative_score": _relative([pair for _, pair in pairs]),
            "by_kind": {each: _relative([pair for kind, pair in pairs if kind == each]) for each in kinds},
            "mean_scores": {
                "reference": sum(pair[0] for _, pair in pairs) / len(pairs),
                "candidate": sum(pair[1] for _, pair in pairs) / len(pairs),
            },
        }
    return Scored(summary=summary, grades=[{"scores": None if pair is None else list(pair)} for pair in given])


def _relative(pairs: Sequence[tuple[float, float]]) -> float:
    return 100 * sum(candidate for _, candidate in pairs) / sum(reference for reference, _ in pairs)


def _review(row: Row, rule: str) -> str:
    return (
        f"[Context]\n{row['context']}\n\n"
        f"[Question]\n{row['question']}\n\n"
        f"[Assistant 1]\n{row['reference']}\n\n[End of Assistant 1]\n\n"
        f"[Assistant 2]\n{row['prediction']}\n\n[End of Assistant 2]\n\n"
        f"[System]\n{rule}\n\n"
    )


def _references(file: Path) -> dict[str, str]:
    """Question id -> GPT-4's answer."""
    found = {}
    for number, record in json_lines(file):
        with reading(file, number):
            found[str(field(record, "question_id", (int, str)))] = field(record, "text", str)
    return found


def _contexts(config: LlavaBenchCocoConfig | LlavaBenchWildConfig, file: Path) -> dict[str, str]:
    """Picture -> what the judge reads in its place."""
    found = {}
    for number, record in json_lines(file):
        with reading(file, number):
            if isinstance(config, LlavaBenchWildConfig):
                caption = field(record, "caption", (str, list))
                text = caption if isinstance(caption, str) else "\n".join(caption)
            else:
                boxes = [
                    f"{field(instance, 'category', str)}: {field(instance, 'bbox', list)}"
                    for instance in field(record, "instances", list)
                ]
                text = "\n".join(field(record, "captions", list)) + "\n\n" + "\n".join(boxes)
            found[field(record, "image", str)] = text
    return found
