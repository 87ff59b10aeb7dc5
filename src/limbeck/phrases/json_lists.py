"""Where the records of a large JSON list stand, found without reading the file whole."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from limbeck.data.examples import DataError

_PIECE = 1 << 20
_LARGEST = 64 << 20
"""bytes of one value; more means that a bracket is missing"""
_DECODER = json.JSONDecoder()


class JsonList:
    """The list of a file that is one, or the list under a key of a file that is an object.

    Texts are read as one character a byte, so that places in the text are places in the file: JSON's own signs are
    bytes of their own in UTF-8. Raises DataError where the file is neither, or not JSON.
    """

    def __init__(self, file: Path, key: str) -> None:
        self._file = file
        with file.open("rb") as stream:
            window = _Window(file, stream)
            if window.sign() == "{":
                window.skip()
                _find(window, key)
            if window.sign() != "[":
                raise window.wrong(f"wanted a list of records, or an object with a list {key!r}")
            window.skip()
            self.begin = window.place
            """the byte after the list's bracket"""

    def spans(self) -> Iterator[tuple[int, int]]:
        """The bytes from and to of every record, in order."""
        with self._file.open("rb") as stream:
            window = _Window(self._file, stream, self.begin)
            while window.sign() != "]":
                start = window.place
                window.value()
                yield start, window.place
                if window.sign() == ",":
                    window.skip()
                elif window.sign() != "]":
                    raise window.wrong("wanted , or ] after a record")


def split(text: bytes) -> Iterator[bytes]:
    """The records of a piece of a list, which starts and ends with a record."""
    signs, place = text.decode("latin-1"), 0
    while place < len(signs):
        _, end = _DECODER.raw_decode(signs, place)
        yield text[place:end]
        place = end
        while place < len(signs) and signs[place] in ", \t\r\n":
            place += 1


class _Window:
    """A place in a file, and the text from there on as far as it has been read."""

    def __init__(self, file: Path, stream: BinaryIO, start: int = 0) -> None:
        stream.seek(start)
        self._file, self._stream = file, stream
        self._text, self._at, self._offset = "", 0, start

    @property
    def place(self) -> int:
        """The byte that comes next."""
        return self._offset + self._at

    def sign(self) -> str:
        """The next sign that is no blank."""
        while True:
            while self._at < len(self._text):
                if self._text[self._at] not in " \t\r\n":
                    return self._text[self._at]
                self._at += 1
            if not self._more():
                raise self.wrong("the file ends before the list does")

    def skip(self) -> None:
        """Go past the sign."""
        self._at += 1

    def value(self) -> Any:
        """Go past one value, and give it."""
        self.sign()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if len(self._text) - self._at > _LARGEST or not self._more():
                    raise self.wrong(f"not JSON: {error.msg}") from None
                continue
            self._at = end
            return value

    def wrong(self, what: str) -> DataError:
        """An error that says where."""
        return DataError(f"{self._file}: byte {self.place}: {what}")

    def _more(self) -> bool:
        piece = self._stream.read(_PIECE)
        self._offset += self._at
        self._text, self._at = self._text[self._at :] + piece.decode("latin-1"), 0
        return bool(piece)


def _find(window: _Window, key: str) -> None:
    """Go to the value of an object's key."""
    while window.sign() != "}":
        name = window.value()
        if window.sign() != ":":
            raise window.wrong("wanted : after a key")
        window.skip()
        if name == key:
            window.sign()
            return
        window.value()
        if window.sign() == ",":
            window.skip()
    raise window.wrong(f"wanted a list of records, found an object without {key!r}")
