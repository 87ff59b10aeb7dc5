"""The pool's teacher answers as files that limbeck and others train on: LLaVA's JSON, `messages` JSONL, CSV."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Literal

from limbeck.competition.pool import Pool
from limbeck.competition.pool_conversations import regroup
from limbeck.competition.pool_file import PoolError
from limbeck.competition.pool_records import TEACHER_ROUND, Answer, Author, Instruction
from limbeck.data.conversations import IMAGE, Conversation
from limbeck.data.examples import FileImage

Format = Literal["llava", "messages", "csv"]
FORMATS: dict[str, Format] = {".json": "llava", ".jsonl": "messages", ".csv": "csv"}
"""The usual one of a file's ending."""
COLUMNS = ("id", "image", "round", "parent", "instruction", "answer")
"""Of a CSV file."""


def export(
    pool: Pool,
    file: Path,
    format: Format,
    *,
    author: Author | None = None,
    rounds: Sequence[int] | None = None,
    images: Path | None = None,
) -> int:
    """Write instructions with the teacher's answers; how many. The file is replaced at once, when it is whole.

    `author`: whose answers, needed only where teachers differ; `rounds`: only instructions written in these (0 has the
    seeds); `images`: the folder that paths of pictures start from, the file's own by default. LLaVA's and messages are
    regrouped by picture; CSV has one row per instruction. Raises PoolError where there is nothing to write, and where a
    picture has no file (`csv` names it by its id).
    """
    answered = answered_by_teacher(pool, author or teacher_of(pool), rounds)
    if not answered:
        raise PoolError(f"{pool.path}: no answers of the teacher{f' in rounds {list(rounds)}' if rounds else ''}")
    folder = file.parent if images is None else images
    paths = pool.images()
    if format == "csv":
        _write_csv(file, answered, lambda id: id if (path := paths[id]) is None else _relative(path, folder))
        return len(answered)
    drawn = sorted({each.image for each, _ in answered if each.image is not None and paths[each.image] is None})
    if drawn:
        raise PoolError(
            f"{pool.path}: {len(drawn)} pictures are no files ({drawn[0]} ...), so {format} cannot name them; "
            "use csv, or the recipe that draws them"
        )
    said = [(each, answer.text) for each, answer in answered]
    source = regroup(said, lambda id: FileImage(str(paths[id])), name=str(pool.path))
    write = _write_llava if format == "llava" else _write_messages
    write(file, [(each, _picture(each, folder)) for each in source.conversations])
    return len(answered) - len(source.set_aside)


def teacher_of(pool: Pool, model: str | None = None, prompt: str | None = None) -> Author:
    """Who answered as the teacher; a model's fingerprint and a prompt's id tell which, where several did.

    Raises PoolError where nobody did, or several, naming them.
    """
    found = pool.select(
        "SELECT DISTINCT name, model, prompt FROM answers JOIN models ON fingerprint = model "
        "WHERE role = 'teacher' AND (?1 IS NULL OR model = ?1) AND (?2 IS NULL OR prompt = ?2) ORDER BY model, prompt",
        (model, prompt),
    )
    if not found:
        wanted = " ".join(each for each in (model, prompt) if each)
        raise PoolError(f"{pool.path}: no answers of a teacher{f' {wanted}' if wanted else ''}")
    if len(found) > 1:
        several = "; ".join("{name} (fingerprint {model}, prompt {prompt})".format_map(each) for each in found)
        raise PoolError(f"{pool.path}: several teachers answered, say which: {several}")
    return Author(found[0]["model"], found[0]["prompt"])


def answered_by_teacher(
    pool: Pool, author: Author, rounds: Sequence[int] | None = None
) -> list[tuple[Instruction, Answer]]:
    """Instructions (of some rounds) that have the teacher's answer, with it, by id."""
    answers = pool.answers("teacher", TEACHER_ROUND, author)
    return [
        (each, answers[each.id])
        for each in pool.instructions()
        if each.id in answers and (rounds is None or each.round in rounds)
    ]


@contextmanager
def _replacing(file: Path) -> Iterator[IO[str]]:
    """A file that takes its name when it is whole. Raises PoolError."""
    part = file.with_name(f"{file.name}.part")
    try:
        with part.open("w", encoding="utf-8", newline="") as stream:
            yield stream
        part.replace(file)
    except OSError as error:
        raise PoolError(f"{file}: cannot be written: {error}") from error
    finally:
        part.unlink(missing_ok=True)


def _write_csv(file: Path, answered: list[tuple[Instruction, Answer]], name: Callable[[str], str]) -> None:
    with _replacing(file) as stream:
        rows = csv.writer(stream)
        rows.writerow(COLUMNS)
        for each, answer in answered:
            image = "" if each.image is None else name(each.image)
            parent = "" if each.parent is None else each.parent
            rows.writerow((each.id, image, each.round, parent, each.text, answer.text))


def _write_llava(file: Path, conversations: list[tuple[Conversation, str | None]]) -> None:
    with _replacing(file) as stream:
        for number, (conversation, image) in enumerate(conversations):
            said = [
                {"from": "human" if turn.role == "user" else "gpt", "value": text}
                for turn, text in zip(conversation.turns, _texts(conversation), strict=True)
            ]
            record = {"id": conversation.id, **({} if image is None else {"image": image}), "conversations": said}
            stream.write(("[\n" if number == 0 else ",\n") + json.dumps(record, ensure_ascii=False))
        stream.write("\n]\n")


def _write_messages(file: Path, conversations: list[tuple[Conversation, str | None]]) -> None:
    with _replacing(file) as stream:
        for conversation, image in conversations:
            said = [
                {"role": turn.role, "content": text}
                for turn, text in zip(conversation.turns, _texts(conversation), strict=True)
            ]
            record = {"messages": said, "images": [] if image is None else [image]}
            stream.write(json.dumps(record, ensure_ascii=False) + "\n")


def _texts(conversation: Conversation) -> list[str]:
    """What is said, with the picture's place in the first turn."""
    first, *rest = [turn.text for turn in conversation.turns]
    return [first if conversation.image is None else f"{IMAGE}\n{first}", *rest]


def _picture(conversation: Conversation, folder: Path) -> str | None:
    return None if conversation.image is None else _relative(conversation.image.key, folder)


def _relative(path: str, folder: Path) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()
