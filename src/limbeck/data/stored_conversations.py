"""What files of conversations share: records that stay on disk, unrolling, and the account of what is left out.

A file is a JSON list of records or, where its name ends in .jsonl, one record per line. Each record is checked once;
what is kept in memory is where it starts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from limbeck.data.conversations import Conversation, Conversations, ConversationSource, Turn
from limbeck.data.examples import DataError, Skipped, check_skipped
from limbeck.data.records import BrokenRecord, FilesConfig, read_json


class Reader(Protocol):
    """What knows a file's kind of record."""

    def has_picture(self, record: Any) -> bool:
        """Whether a record names a picture; what is no record at all counts as one that does."""
        ...

    def __call__(self, record: Any, id: str) -> Conversation:
        """A record and its id to a conversation. Raises BrokenRecord."""
        ...


class ConversationFileConfig(FilesConfig):
    """Fields of every file of conversations."""

    path: str
    """a .json file with a list of records, or a .jsonl file with one per line"""
    turns: Literal["multi", "single", "both"] = "multi"
    """conversations as they are; unrolled, each exchange a conversation of its own about the picture, its words
    unchanged; or the one after the other"""
    text_only: Literal["keep", "skip"] = "keep"
    """what becomes of records without a picture; skipped ones are listed and never count as broken"""


def load_stored(config: ConversationFileConfig, file: Path, read: Reader) -> ConversationSource:
    """Check every record. Raises DataError."""
    skipped, set_aside, spans, numbers, exchanges = [], [], [], [], []
    for number, span, text in _records(file):
        where = _name(file, number)
        try:
            record = _record(text)
            if config.text_only == "skip" and not read.has_picture(record):
                set_aside.append(Skipped(where, "no picture, and text_only is skip"))
                continue
            conversation = read(record, where)
        except BrokenRecord as error:
            skipped.append(Skipped(where, str(error)))
            continue
        spans.append(span)
        numbers.append(number)
        exchanges.append(len(conversation.exchanges))
        if len(spans) == config.limit:
            break
    check_skipped(skipped, len(spans) + len(set_aside) + len(skipped), config.max_skipped, str(file))
    if not spans:
        raise DataError(f"{file}: no record in it{f' but {len(set_aside)} without a picture' if set_aside else ''}")
    made = _Stored(file, read, np.asarray(spans), np.asarray(numbers), *_unrolled(exchanges, config.turns))
    return ConversationSource(
        name=config.path,
        conversations=Conversations(len(made.rows), made),
        skipped=tuple(skipped),
        set_aside=tuple(set_aside),
    )


@dataclass(frozen=True)
class _Stored:
    file: Path
    read: Reader
    spans: np.ndarray
    """int64 [records, 2], the bytes of each"""
    numbers: np.ndarray
    """[records], line number or place in the list"""
    rows: np.ndarray
    """[conversations], each one's record"""
    exchange: np.ndarray
    """[conversations], the exchange that it consists of, -1 for all of them"""

    def __call__(self, index: int) -> Conversation:
        row, exchange = int(self.rows[index]), int(self.exchange[index])
        start, end = self.spans[row]
        with self.file.open("rb") as stream:
            stream.seek(start)
            text = stream.read(end - start)
        conversation = self.read(_record(text), _name(self.file, int(self.numbers[row])))
        if exchange < 0:
            return conversation
        system = [Turn("system", conversation.system)] if conversation.system is not None else []
        question, answer = conversation.exchanges[exchange]
        turns = (*system, Turn("user", question), Turn("assistant", answer))
        return Conversation(id=f"{conversation.id}#{exchange}", image=conversation.image, turns=turns)


def _unrolled(exchanges: list[int], turns: Literal["multi", "single", "both"]) -> tuple[np.ndarray, np.ndarray]:
    """The record, and the exchange or -1, of each conversation."""
    whole = np.arange(len(exchanges))
    rows = np.repeat(whole, exchanges)
    single = np.arange(len(rows)) - np.repeat(np.cumsum([0, *exchanges[:-1]]), exchanges)
    if turns == "multi":
        return whole, np.full(len(whole), -1)
    if turns == "single":
        return rows, single
    return np.concatenate([whole, rows]), np.concatenate([np.full(len(whole), -1), single])


def _records(file: Path) -> Iterator[tuple[int, tuple[int, int], bytes]]:
    """Number, bytes from and to, and text of every record. Raises DataError where the file is no list."""
    if file.suffix == ".jsonl":
        end = 0
        with file.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                start, end = end, end + len(line)
                if line.strip():
                    yield number, (start, end), line
        return
    content = file.read_bytes()
    text = content.decode("latin-1")  # one character a byte, so that places in the text are places in the file
    decoder = json.JSONDecoder()
    start = _next(text, 0)
    if not text.startswith("[", start):
        found = read_json(file)
        raise DataError(f"{file}: wanted a list of records, found {type(found).__name__}; one a line is for .jsonl")
    number, start = 0, _next(text, start + 1)
    while not text.startswith("]", start):
        try:
            _, end = decoder.raw_decode(text, start)
        except json.JSONDecodeError:
            read_json(file)
            raise
        yield number, (start, end), content[start:end]
        number, start = number + 1, _next(text, end)
        if text.startswith(",", start):
            start = _next(text, start + 1)
        elif not text.startswith("]", start):
            read_json(file)


def _next(text: str, start: int) -> int:
    """The first place from `start` on that is no space."""
    while start < len(text) and text[start] in " \t\r\n":
        start += 1
    return start


def _record(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BrokenRecord(f"not JSON: {error}") from error


def _name(file: Path, number: int) -> str:
    return f"{file.name}:{number}" if file.suffix == ".jsonl" else f"{file.name}[{number}]"
