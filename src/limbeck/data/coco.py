"""The benchmarks' own JSON files: Karpathy's splits, LAVIS' lists, VQA v2's questions and annotations."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

from limbeck.data.examples import DataError, Example, Question, Skipped, Source, check_skipped
from limbeck.data.records import (
    BrokenRecord,
    FilesConfig,
    captions_of,
    existing_file,
    existing_folder,
    field,
    image_file,
    joined,
    kind_of,
    listed,
    read_json,
)


class KarpathyConfig(FilesConfig):
    """dataset_coco.json, dataset_flickr30k.json, dataset_flickr8k.json."""

    source: Literal["karpathy"]
    path: str
    images: str
    """the folder that `filepath` (COCO) or `filename` starts from"""
    split: Literal["train", "val", "test"]
    """train takes restval in, as is usual for COCO"""


class LavisConfig(FilesConfig):
    """LAVIS' and BLIP's lists, e.g. coco_karpathy_train.json: [{image, caption}], caption a text or a list."""

    source: Literal["lavis"]
    path: str
    images: str


class VqaConfig(FilesConfig):
    """VQA v2: v2_OpenEnded_mscoco_val2014_questions.json, v2_mscoco_val2014_annotations.json and COCO's pictures."""

    source: Literal["vqa_v2"]
    questions: str
    annotations: str | None = None
    """none for the test splits, whose answers are secret"""
    images: str
    image_name: str = "COCO_{subtype}_{image_id:012d}.jpg"
    """`subtype` is the questions file's data_subtype, e.g. val2014"""


def load_karpathy(config: KarpathyConfig, base: Path) -> Source:
    """One example per picture of the split. Raises DataError."""
    file = existing_file(base, config.path, "source karpathy, field path")
    folder = existing_folder(base, config.images, "source karpathy, field images")
    splits = ("train", "restval") if config.split == "train" else (config.split,)

    def example(record: Any) -> Example | None:
        if field(record, "split", str) not in splits:
            return None
        name = field(record, "filename", str)
        path = f"{field(record, 'filepath', str)}/{name}" if "filepath" in record else name
        raw = {"captions": [field(sentence, "raw", str) for sentence in field(record, "sentences", list)]}
        return Example(id=name, image=image_file(folder, path), captions=captions_of(raw))

    return _collect(config, file, listed(read_json(file), "images", file), "images", example)


def load_lavis(config: LavisConfig, base: Path) -> Source:
    """One example per picture, rows about the same picture taken together. Raises DataError."""
    file = existing_file(base, config.path, "source lavis, field path")
    folder = existing_folder(base, config.images, "source lavis, field images")
    source = _collect(
        config,
        file,
        listed(read_json(file), None, file),
        "",
        lambda row: Example(
            id=(name := field(row, "image", str)), image=image_file(folder, name), captions=_required_captions(row)
        ),
    )
    return _joined(source)


def load_vqa(config: VqaConfig, base: Path) -> Source:
    """One example per picture with all its questions, no captions. Raises DataError."""
    file = existing_file(base, config.questions, "source vqa_v2, field questions")
    folder = existing_folder(base, config.images, "source vqa_v2, field images")
    content = read_json(file)
    records = listed(content, "questions", file)
    subtype = str(content["data_subtype"]) if "data_subtype" in content else ""
    answers = _answers(existing_file(base, config.annotations, "annotations")) if config.annotations else None

    def example(record: Any) -> Example:
        number, id = field(record, "image_id", int), field(record, "question_id", int)
        name = _image_name(config.image_name, subtype, number)
        if answers is not None and id not in answers:
            raise BrokenRecord(f"question {id} has no annotation in {config.annotations}")
        given, kind = answers[id] if answers is not None else ((), None)
        question = Question(id=str(id), text=field(record, "question", str), answers=given, kind=kind)
        return Example(id=name, image=image_file(folder, name), captions=(), questions=(question,))

    source = _collect(config, file, records, "questions", example)
    return _joined(source)


def _collect(
    config: FilesConfig, file: Path, records: Iterable[Any], key: str, example: Callable[[Any], Example | None]
) -> Source:
    """The examples of all records that make one; `example` gives None for a record of another split."""
    examples, skipped = [], []
    for number, record in enumerate(records):
        try:
            made = example(record)
        except BrokenRecord as error:
            skipped.append(Skipped(f"{file}:{key}[{number}]", str(error)))
            continue
        if made is not None:
            examples.append(made)
        if len(examples) == config.limit:
            break
    check_skipped(skipped, len(examples) + len(skipped), config.max_skipped, str(file))
    if not examples:
        raise DataError(f"{file}: not one record for this split")
    return Source(name=file.name, examples=examples, skipped=tuple(skipped))


def _joined(source: Source) -> Source:
    """Rows of one id taken together."""
    rows: dict[str, list[Example]] = {}
    for row in source.examples:
        rows.setdefault(row.id, []).append(row)
    return Source(name=source.name, examples=[joined(each) for each in rows.values()], skipped=source.skipped)


def _required_captions(record: Any) -> tuple[str, ...]:
    field(record, "caption", (str, list))
    return captions_of(record, "caption")


def _answers(file: Path) -> dict[int, tuple[tuple[str, ...], str | None]]:
    """Question id -> the ten answers and the answer type."""
    found = {}
    for number, record in enumerate(listed(read_json(file), "annotations", file)):
        try:
            answers = tuple(field(answer, "answer", str) for answer in field(record, "answers", list))
            kind = field(record, "answer_type", str) if "answer_type" in record else None
            found[field(record, "question_id", int)] = (answers, kind)
        except BrokenRecord as error:
            raise DataError(f"{file}:annotations[{number}]: {error}") from error
    return found


def _image_name(template: str, subtype: str, number: int) -> str:
    try:
        return template.format(subtype=subtype, image_id=number)
    except (KeyError, IndexError, ValueError) as error:
        raise DataError(
            f"source vqa_v2, field image_name: {kind_of(template)} is no template of {{subtype}} and {{image_id:012d}}"
        ) from error
