"""Instructions from files, with or without answers: LLaVA's JSON, `messages`, single questions, CSV.

A record tells by its fields what it is: `conversations` (LLaVA), `messages` and `images` (chat fine-tuning), else one
`instruction` or `question`, with an `answer` or none, about the file `image`. A .json file holds a list of records, a
.jsonl file one a line, a .csv file one a row under the fields' names. Dialogues are unrolled to single turns; system
prompts are left out.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from limbeck.competition.pool_conversations import picture_of
from limbeck.competition.pool_records import Seed
from limbeck.data.conversations import IMAGE
from limbeck.data.examples import DataError, Skipped, check_skipped
from limbeck.data.records import BrokenRecord, existing_file, existing_folder, field, image_file, kind_of, read_json

_SPEAKERS = {"human": "asks", "user": "asks", "gpt": "answers", "assistant": "answers", "system": "rules"}
_QUESTIONS = ("instruction", "question")


def read_seeds(
    file: Path, images: Path | None = None, *, max_skipped: float = 0.01
) -> tuple[list[Seed], list[Skipped]]:
    """The instructions of a file, in its order, and what is broken in it.

    `images` is the folder that the paths of pictures start from, and by which the pool names them. By default they
    start from the file's own folder and are named by their whole path, so that two files' `1.png` are two pictures.
    Raises DataError where more than the share `max_skipped` of the records is broken, or there is no instruction.
    """
    existing_file(file.parent, file.name, "instructions to import")
    folder = file.parent if images is None else existing_folder(images, "", "pictures to import")
    seeds: list[Seed] = []
    skipped: list[Skipped] = []
    total = 0
    for where, record in _records(file):
        total += 1
        try:
            seeds += _seeds(where, record, folder, images)
        except BrokenRecord as error:
            skipped.append(Skipped(where, str(error)))
    check_skipped(skipped, total, max_skipped, str(file))
    if not seeds:
        raise DataError(f"{file}: no instruction in it")
    return seeds, skipped


def _records(file: Path) -> Iterator[tuple[str, Any]]:
    """Where each record stands, and the record, or its line of a .jsonl file. Raises DataError."""
    try:
        if file.suffix == ".json":
            records = read_json(file)
            if not isinstance(records, list):
                raise DataError(f"{file}: wanted a list of records, found {kind_of(records)}; one a line is for .jsonl")
            yield from ((f"{file.name}[{number}]", record) for number, record in enumerate(records))
        elif file.suffix == ".jsonl":
            with file.open(encoding="utf-8") as lines:
                yield from ((f"{file.name}:{number}", line) for number, line in enumerate(lines, 1) if line.strip())
        elif file.suffix == ".csv":
            with file.open(encoding="utf-8-sig", newline="") as lines:
                for number, row in enumerate(csv.DictReader(lines), start=1):
                    yield f"{file.name}, row {number}", {name: text for name, text in row.items() if text}
        else:
            raise DataError(f"{file}: wanted a file that ends in .json, .jsonl or .csv")
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file}: {error}") from error


def _seeds(where: str, record: Any, folder: Path, images: Path | None) -> list[Seed]:
    """The single turns of one record, its picture's file sought in `folder` and named from `images` on.

    Raises BrokenRecord.
    """
    if isinstance(record, str):
        try:
            record = json.loads(record)
        except json.JSONDecodeError as error:
            raise BrokenRecord(f"not JSON: {error}") from error
    if isinstance(record, dict) and "conversations" in record:
        said = [(field(each, "from", str), field(each, "value", str)) for each in field(record, "conversations", list)]
        exchanges, named = _exchanges(said), _named(record, "image")
    elif isinstance(record, dict) and "messages" in record:
        parts = [_parts(each) for each in field(record, "messages", list)]
        in_parts = [name for _, _, names in parts for name in names]
        beside = [_path(each) for each in field(record, "images", list)] if "images" in record else []
        exchanges, named = _exchanges([(speaker, text) for speaker, text, _ in parts]), beside or in_parts
    else:
        asked = [name for name in _QUESTIONS if isinstance(record, dict) and name in record]
        answer = field(record, "answer", str) if isinstance(record, dict) and "answer" in record else ""
        exchanges = _exchanges([("user", field(record, (asked or _QUESTIONS)[0], str)), ("assistant", answer)])
        named = _named(record, "image")
    if len(named) > 1:
        raise BrokenRecord(f"{len(named)} pictures; it may have one")
    picture = picture_of(image_file(folder, named[0]), images) if named else None
    names = [f"{where}#{number}" if len(exchanges) > 1 else where for number in range(len(exchanges))]
    return [
        Seed(name=name, picture=picture, text=text, answer=answer)
        for name, (text, answer) in zip(names, exchanges, strict=True)
    ]


def _exchanges(said: list[tuple[str, str]]) -> list[tuple[str, str | None]]:
    """What is asked, with its answer or None. Raises BrokenRecord."""
    found: list[tuple[str, str | None]] = []
    for number, (speaker, text) in enumerate(said, start=1):
        text = text.replace(IMAGE, "").strip()
        match _SPEAKERS.get(speaker):
            case "asks" if text:
                found.append((text, None))
            case "asks":
                raise BrokenRecord(f"turn {number} asks nothing")
            case "answers" if found and found[-1][1] is None:
                found[-1] = (found[-1][0], text or None)
            case "answers":
                raise BrokenRecord(f"turn {number} answers, and nothing was asked")
            case None:
                raise BrokenRecord(f"turn {number}: wanted one of {', '.join(_SPEAKERS)}, found {speaker!r}")
    return found


def _parts(message: Any) -> tuple[str, str, list[str]]:
    """Who says what in a message, and the pictures that its parts name. Raises BrokenRecord."""
    speaker, content = field(message, "role", str), field(message, "content", (str, list))
    if isinstance(content, str):
        return speaker, content, []
    texts = [field(part, "text", str) for part in content if field(part, "type", str) == "text"]
    pictures = [_path(part[name]) for part in content for name in ("image", "path", "url", "image_url") if name in part]
    return speaker, "\n".join(texts), pictures


def _named(record: Any, name: str) -> list[str]:
    """The picture of a record, if it has one."""
    return [field(record, name, str)] if isinstance(record, dict) and record.get(name) is not None else []


def _path(value: Any) -> str:
    """A picture's file, given as a text or in an object. Raises BrokenRecord."""
    if isinstance(value, dict):
        value = next((value[name] for name in ("path", "url") if name in value), None)
    if not isinstance(value, str) or "://" in value or value.startswith("data:"):
        raise BrokenRecord(f"a picture: wanted the path of a file, found {kind_of(value)}")
    return value
