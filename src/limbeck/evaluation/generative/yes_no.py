"""Questions to be answered by yes or no: POPE (does the model see what is not there?) and MME."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from limbeck.data.examples import DataError, FileImage
from limbeck.data.records import BrokenRecord, existing_file, existing_folder, field, kind_of
from limbeck.evaluation.generative.items import CommonConfig, Item, Pictures, Scored, percent, reading, short_answer
from limbeck.evaluation.inputs import Row

PopeSplit = Literal["random", "popular", "adversarial"]

PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
_ASKED_IN_MME = "Please answer yes or no."


class PopeConfig(CommonConfig):
    """POPE on COCO: three files that differ in how the objects that are not there were chosen."""

    benchmark: Literal["pope"]
    folder: str
    """has coco_pope_random.json, coco_pope_popular.json, coco_pope_adversarial.json (JSON Lines, despite the name)"""
    images: str | None = None
    """COCO's val2014"""
    splits: tuple[PopeSplit, ...] = Field(default=("random", "popular", "adversarial"), min_length=1)
    max_new_tokens: int = Field(default=16, ge=1)


class MmeConfig(CommonConfig):
    """MME: 14 subtasks, two questions a picture. `limit` counts pictures of each subtask."""

    benchmark: Literal["mme"]
    folder: str
    """MME_Benchmark_release_version: a folder for each subtask, with pictures and texts of `question<tab>answer`, or
    `images` and `questions_answers_YN`"""
    max_new_tokens: int = Field(default=16, ge=1)


def load_pope(config: PopeConfig, base: Path) -> list[Item]:
    """One item per line; `limit` counts those of each file. Raises DataError."""
    folder = existing_folder(base, config.folder, "benchmark pope, field folder")
    pictures = Pictures(config, base, config.images, "pope")
    items = []
    for split in config.splits:
        file = existing_file(folder, f"coco_pope_{split}.json", "benchmark pope")
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        for number, line in enumerate(lines[: config.limit], start=1):
            with reading(file, str(number)):
                record = _record(line)
                image, text = field(record, "image", str), field(record, "text", str)
                answer = _yes_or_no(field(record, "label", str))
                row = {"split": split, "image_id": image, "question": text, "answer": answer}
                id = f"{split}/{field(record, 'question_id', int)}"
                items.append(Item(id=id, prompt=short_answer(text), images=pictures.of(image), row=row))
    return items


def score_pope(rows: Sequence[Row]) -> Scored:
    """Accuracy, precision, recall, F1 and share of yes of each file, and the means over the files."""
    said = [pope_answer(row["prediction"]) for row in rows]
    splits: dict[str, dict[str, float]] = {}
    for split in dict.fromkeys(row["split"] for row in rows):
        of_split = [(answer, row["answer"]) for answer, row in zip(said, rows, strict=True) if row["split"] == split]
        splits[split] = _binary(of_split)
    means = {key: sum(values[key] for values in splits.values()) / len(splits) for key in ("F1", "accuracy")}
    grades = [{"said": answer, "accuracy": float(answer == row["answer"])} for answer, row in zip(said, rows)]
    return Scored(summary={"questions": len(rows), **means, "by_split": splits}, grades=grades)


def pope_answer(prediction: str) -> Literal["yes", "no"]:
    """The official rule: no where the first sentence has the word No, no or not; else yes."""
    words = prediction.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


def load_mme(config: MmeConfig, base: Path) -> list[Item]:
    """One item per question. Raises DataError where a folder lacks a picture or a picture has not two questions."""
    folder = existing_folder(base, config.folder, "benchmark mme, field folder")
    items = []
    for task in (*PERCEPTION, *COGNITION):
        task_folder = existing_folder(folder, task, "benchmark mme, a subtask")
        apart = (task_folder / "questions_answers_YN").is_dir()
        texts = sorted((task_folder / "questions_answers_YN" if apart else task_folder).glob("*.txt"))
        if not texts:
            raise DataError(f"{task_folder}: no texts with questions")
        for file in texts[: config.limit]:
            image = () if config.blind else (_mme_picture(task_folder / "images" if apart else task_folder, file),)
            lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
            if len(lines) != 2:
                raise DataError(f"{file}: wanted two lines of question<tab>answer, found {len(lines)}")
            for number, line in enumerate(lines, start=1):
                with reading(file, str(number)):
                    question, tab, answer = line.strip().rpartition("\t")
                    if not tab:
                        raise BrokenRecord(f"wanted question<tab>answer, found {kind_of(line)}")
                    text = question.replace(_ASKED_IN_MME, "").strip()
                    row = {
                        "task": task,
                        "image_id": f"{task}/{file.stem}",
                        "question": text,
                        "answer": _yes_or_no(answer.strip().lower()),
                    }
                    id = f"{task}/{file.stem}/{number}"
                    items.append(Item(id=id, prompt=short_answer(text), images=image, row=row))
    return items


def score_mme(rows: Sequence[Row]) -> Scored:
    """Each subtask's accuracy + accuracy+ (both questions of a picture right), up to 200, and the official sums.

    Perception's ten subtasks (at most 2,000) and cognition's four (800) are summed apart: papers that print one figure
    of about 1,500 mean perception alone. A picture of which only one question was answered counts in accuracy alone.
    """
    right = [mme_answer(row["prediction"]) == row["answer"] for row in rows]
    tasks: dict[str, dict[str, list[bool]]] = {}
    for row, one in zip(rows, right, strict=True):
        tasks.setdefault(row["task"], {}).setdefault(row["image_id"], []).append(one)
    scores = {}
    for task, pictures in tasks.items():
        accuracy = percent([one for pair in pictures.values() for one in pair])
        plus = percent([len(pair) == 2 and all(pair) for pair in pictures.values()])
        scores[task] = {"score": accuracy + plus, "accuracy": accuracy, "accuracy_plus": plus}
    sums = {
        group: sum(scores[task]["score"] for task in names if task in scores)
        for group, names in (("perception", PERCEPTION), ("cognition", COGNITION))
    }
    summary = {"questions": len(rows), **sums, "total": sum(sums.values()), "by_task": scores}
    return Scored(summary=summary, grades=[{"accuracy": float(one)} for one in right])


def mme_answer(prediction: str) -> Literal["yes", "no", "other"]:
    """The official rule: yes or no among the first four characters."""
    start = prediction.lower()[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


def _binary(pairs: Sequence[tuple[str, str]]) -> dict[str, float]:
    """Measures of (said, right answer), yes being what is looked for; what would divide by nothing is 0."""
    true = sum(said == right == "yes" for said, right in pairs)
    said_yes = sum(said == "yes" for said, _ in pairs)
    is_yes = sum(right == "yes" for _, right in pairs)
    return {
        "accuracy": percent([said == right for said, right in pairs]),
        "precision": 100 * true / said_yes if said_yes else 0.0,
        "recall": 100 * true / is_yes if is_yes else 0.0,
        "F1": 100 * 2 * true / (said_yes + is_yes) if said_yes + is_yes else 0.0,
        "yes_ratio": 100 * said_yes / len(pairs),
    }


def _record(line: str) -> dict[str, Any]:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise BrokenRecord(f"not JSON: {error}") from error


def _yes_or_no(answer: str) -> str:
    if answer not in ("yes", "no"):
        raise BrokenRecord(f"wanted the answer yes or no, found {kind_of(answer)}")
    return answer


def _mme_picture(folder: Path, text: Path) -> FileImage:
    for ending in (".jpg", ".png", ".jpeg"):
        if (path := folder / f"{text.stem}{ending}").is_file():
            return FileImage(str(path))
    raise DataError(f"{text}: no picture {text.stem}.jpg or .png in {folder}")
