"""Questions with short answers of one's own words: VQAv2, TextVQA, GQA."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from limbeck.data.examples import DataError
from limbeck.data.records import existing_file, field, kind_of, listed, read_json
from limbeck.evaluation.generative.items import (
    CommonConfig,
    Item,
    Pictures,
    Scored,
    percent,
    percent_by,
    reading,
    short_answer,
    with_answers,
)
from limbeck.evaluation.inputs import Row
from limbeck.evaluation.metrics.vqa import accuracy, mean_accuracy, normalise


class VqaV2Config(CommonConfig):
    """VQA v2 in its official files. Without annotations (the test splits) only the submission is written."""

    benchmark: Literal["vqa_v2"]
    questions: str
    """v2_OpenEnded_mscoco_val2014_questions.json, or another split's"""
    annotations: str | None = None
    """v2_mscoco_val2014_annotations.json; null: the answers are secret"""
    images: str | None = None
    """COCO's folder of the split"""
    all_questions: str | None = None
    """for test-dev v2_OpenEnded_mscoco_test2015_questions.json: its server wants the whole test split in a submission;
    what was not asked gets an empty answer. null: the submission has what was asked"""
    image_name: str = "COCO_{subtype}_{image_id:012d}.jpg"
    """`subtype` is the questions file's data_subtype, e.g. val2014; test2015 for test-dev2015"""
    max_new_tokens: int = Field(default=16, ge=1)


class TextVqaConfig(CommonConfig):
    """TextVQA's val set, version 0.5.1."""

    benchmark: Literal["textvqa"]
    questions: str
    """TextVQA_0.5.1_val.json"""
    images: str | None = None
    """train_images, which holds val's too"""
    ocr: str | None = None
    """TextVQA_Rosetta_OCR_v0.2_val.json: words read in each picture go into the prompt, as in LLaVA-1.5; null: none"""
    max_new_tokens: int = Field(default=16, ge=1)


class GqaConfig(CommonConfig):
    """GQA; papers report testdev_balanced."""

    benchmark: Literal["gqa"]
    questions: str
    """testdev_balanced_questions.json"""
    images: str | None = None
    max_new_tokens: int = Field(default=16, ge=1)


def load_vqa_v2(config: VqaV2Config, base: Path) -> list[Item]:
    """One item per question. Raises DataError, also where one is not among `all_questions`."""
    file = existing_file(base, config.questions, "benchmark vqa_v2, field questions")
    content = read_json(file)
    records = listed(content, "questions", file)[: config.limit]
    subtype = str(content["data_subtype"]).replace("test-dev", "test") if "data_subtype" in content else ""
    pictures = Pictures(config, base, config.images, "vqa_v2")
    answers = None
    if config.annotations is not None:
        answers = _vqa_answers(existing_file(base, config.annotations, "benchmark vqa_v2, field annotations"))
    items = []
    for number, record in enumerate(records):
        with reading(file, f"questions[{number}]"):
            id, image, text = field(record, "question_id", int), field(record, "image_id", int), _text(record)
            given: tuple[list[str], str | None] = ([], None)
            if answers is not None:
                if id not in answers:
                    raise DataError(f"{config.annotations}: question {id} of {file} has no annotation here")
                given = answers[id]
            row = {"image_id": str(image), "kind": given[1], "question": text, "answers": given[0]}
            name = config.image_name.format(subtype=subtype, image_id=image)
            items.append(Item(id=str(id), prompt=short_answer(text), images=pictures.of(name), row=row))
    if config.all_questions is not None:
        known = set(vqa_question_ids(config, base))
        other = next((item.id for item in items if item.id not in known), None)
        if other is not None:
            raise DataError(f"{config.all_questions}: question {other} of {file} is not among these")
    return items


def vqa_question_ids(config: VqaV2Config, base: Path) -> list[str]:
    """The ids of `all_questions`, in their order; none without that file. Raises DataError."""
    if config.all_questions is None:
        return []
    file, ids = existing_file(base, config.all_questions, "benchmark vqa_v2, field all_questions"), []
    for number, record in enumerate(listed(read_json(file), "questions", file)):
        with reading(file, f"questions[{number}]"):
            ids.append(str(field(record, "question_id", int)))
    return ids


def score_vqa(rows: Sequence[Row]) -> Scored:
    """Official VQA accuracy, over all questions and by kind of answer; questions without answers count nowhere."""
    grades = [
        {"accuracy": round(accuracy(row["prediction"], row["answers"]), 6)} if row["answers"] else {} for row in rows
    ]
    summary: dict[str, Any] = {"questions": len(rows)}
    if known := with_answers(rows, "answers"):
        summary["accuracy"], summary["by_kind"] = mean_accuracy(
            (row["kind"], accuracy(row["prediction"], row["answers"])) for row in known
        )
    return Scored(summary=summary, grades=grades)


def vqa_submission(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """What the evaluation server takes, the answers normalised as LLaVA-1.5 does."""
    return [
        {"question_id": int(row["id"]) if row["id"].isdecimal() else row["id"], "answer": evalai(row["prediction"])}
        for row in rows
    ]


def load_textvqa(config: TextVqaConfig, base: Path) -> list[Item]:
    """One item per question, asked in the file's own words. Raises DataError."""
    file = existing_file(base, config.questions, "benchmark textvqa, field questions")
    pictures = Pictures(config, base, config.images, "textvqa")
    words = None
    if config.ocr is not None:
        words = _ocr_words(existing_file(base, config.ocr, "benchmark textvqa, field ocr"))
    items = []
    for number, record in enumerate(listed(read_json(file), "data", file)[: config.limit]):
        with reading(file, f"data[{number}]"):
            image, text = field(record, "image_id", str), _text(record)
            answers = _texts(record, "answers", file) if "answers" in record else []
            asked = text
            if words is not None:
                if image not in words:
                    raise DataError(f"{config.ocr}: no words for picture {image} of {file}")
                asked = f"{text}\nReference OCR token: {', '.join(words[image])}"
            items.append(
                Item(
                    id=str(field(record, "question_id", (int, str))),
                    prompt=short_answer(asked),
                    images=pictures.of(f"{image}.jpg"),
                    row={"image_id": image, "kind": None, "question": text, "answers": answers},
                )
            )
    return items


def score_textvqa(rows: Sequence[Row]) -> Scored:
    """Leave-one-out VQA accuracy, both sides normalised as on the EvalAI server (M4C's evaluator)."""
    scores = [textvqa_accuracy(row["prediction"], row["answers"]) if row["answers"] else None for row in rows]
    grades = [{} if score is None else {"accuracy": round(score, 6)} for score in scores]
    summary: dict[str, Any] = {"questions": len(rows)}
    if known := [score for score in scores if score is not None]:
        summary["accuracy"] = percent(known)
    return Scored(summary=summary, grades=grades)


def textvqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Mean over people left out of min(1, others who agree / 3), from 0 to 1."""
    prediction = evalai(prediction)
    agree = [evalai(answer) == prediction for answer in answers]
    return sum(min(1.0, (sum(agree) - own) / 3) for own in agree) / len(agree)


def evalai(answer: str) -> str:
    """VQA's normalisation after MMF's way of cutting words: no commas and question marks, "'s" apart."""
    return normalise(answer.lower().replace(",", "").replace("?", "").replace("'s", " 's"))


def load_gqa(config: GqaConfig, base: Path) -> list[Item]:
    """One item per question. Raises DataError."""
    file = existing_file(base, config.questions, "benchmark gqa, field questions")
    pictures = Pictures(config, base, config.images, "gqa")
    content = read_json(file)
    if not isinstance(content, dict):
        raise DataError(f"{file}: wanted an object of questions by id, found {kind_of(content)}")
    items = []
    for id, record in list(content.items())[: config.limit]:
        with reading(file, f"question {id}"):
            image, text = field(record, "imageId", str), _text(record)
            kind = field(field(record, "types", dict), "structural", str) if "types" in record else None
            row = {"image_id": image, "kind": kind, "question": text, "answer": field(record, "answer", str)}
            items.append(Item(id=id, prompt=short_answer(text), images=pictures.of(f"{image}.jpg"), row=row))
    return items


def score_gqa(rows: Sequence[Row]) -> Scored:
    """Exact match after LLaVA-1.5's clean-up (lower case, no final period), overall, binary, open and by structure."""
    right = [row["prediction"].rstrip(".").lower() == row["answer"] for row in rows]
    summary: dict[str, Any] = {"questions": len(rows), "accuracy": percent(right)}
    kinds = [row["kind"] for row in rows]
    if None not in kinds:
        summary |= percent_by(["open" if kind == "query" else "binary" for kind in kinds], right)
        summary["by_kind"] = percent_by(kinds, right)
    return Scored(summary=summary, grades=[{"accuracy": float(one)} for one in right])


def _vqa_answers(file: Path) -> dict[int, tuple[list[str], str | None]]:
    """Question id -> the ten answers and the answer type."""
    found = {}
    for number, record in enumerate(listed(read_json(file), "annotations", file)):
        with reading(file, f"annotations[{number}]"):
            answers = [field(answer, "answer", str) for answer in field(record, "answers", list)]
            kind = field(record, "answer_type", str) if "answer_type" in record else None
            found[field(record, "question_id", int)] = (answers, kind)
    return found


def _ocr_words(file: Path) -> dict[str, list[str]]:
    found = {}
    for number, record in enumerate(listed(read_json(file), "data", file)):
        with reading(file, f"data[{number}]"):
            found[field(record, "image_id", str)] = _texts(record, "ocr_tokens", file)
    return found


def _text(record: Any) -> str:
    return field(record, "question", str).strip()


def _texts(record: Any, name: str, file: Path) -> list[str]:
    texts = field(record, name, list)
    if not all(isinstance(text, str) for text in texts):
        raise DataError(f"{file}: field {name!r}: wanted texts, found {kind_of(texts)}")
    return texts
