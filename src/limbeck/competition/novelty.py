"""Is a new instruction new? ROUGE-L with every other instruction about the same picture, by rapidfuzz.

ROUGE-L's F-measure of texts with n and m tokens and a longest common subsequence of l is 2 l / (n + m), which is also
one minus their insertions and deletions (Indel) over n + m. Tokens become the characters of a string, in which
rapidfuzz counts these with machine words. They are those of the package `rouge_score` without stemmer: runs of a-z and
0-9 of the lowered text. A text that has none of them (a Chinese one) is like no other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from rapidfuzz import process
from rapidfuzz.distance import Indel

_KEPT = b"abcdefghijklmnopqrstuvwxyz0123456789"
_TO_SPACES = bytes(byte if byte in _KEPT else ord(" ") for byte in range(256))
_SURROGATES = range(0xD800, 0xE000)
_CHARACTERS = 0x110000 - len(_SURROGATES)


def tokens(text: str) -> list[bytes]:
    """The tokens of `rouge_score` without stemmer, as ASCII."""
    return text.lower().encode("ascii", "replace").translate(_TO_SPACES).split()


class Novelty:
    """What is asked about each picture already."""

    def __init__(self, instructions: Iterable[tuple[str | None, str]] = ()) -> None:
        """(picture's id, text) of each instruction; those without a picture (None) are compared with each other."""
        self._code = TokenCode()
        self._known: dict[str | None, list[str]] = {}
        for image, text in instructions:
            self.add(image, text)

    def best(self, image: str | None, text: str) -> float:
        """The greatest ROUGE-L with what is asked about this picture, in [0, 1]; 0 where nothing is."""
        known, new = self._known.get(image), self._code.encode(text)
        if not known or not new:
            return 0.0
        nearest, similarity, _ = process.extractOne(new, known, scorer=Indel.normalized_similarity)
        length = len(new) + len(nearest)
        return 2 * round(similarity * length / 2) / length  # of whole numbers: exactly 0.7 is 0.7, and not below

    def add(self, image: str | None, text: str) -> None:
        """From now on this is asked about the picture too."""
        if encoded := self._code.encode(text):
            self._known.setdefault(image, []).append(encoded)


class TokenCode:
    """Texts as strings that have one character for each token, the same for the same token."""

    def __init__(self) -> None:
        self._characters = _Characters()

    def encode(self, text: str) -> str:
        """The tokens of a text. Raises OverflowError past 1.1 million different ones."""
        return "".join(map(self._characters.__getitem__, tokens(text)))


def rouge_l(texts: Sequence[str], others: Sequence[str], *, workers: int = 1) -> np.ndarray:
    """ROUGE-L of every pair, float64 [texts, others], in so many threads; -1 takes all cores."""
    code = TokenCode()
    encoded, against = [code.encode(text) for text in texts], [code.encode(text) for text in others]
    values = process.cdist(encoded, against, scorer=Indel.normalized_similarity, dtype=np.float64, workers=workers)
    values[[not text for text in encoded]] = 0  # rapidfuzz finds two empty texts alike, rouge_score does not
    return values


class _Characters(dict[bytes, str]):
    """Token to character, given when it is first asked for."""

    def __missing__(self, token: bytes) -> str:
        number = len(self)
        if number >= _CHARACTERS:
            raise OverflowError(f"more than {_CHARACTERS} different tokens")
        self[token] = chr(number if number < _SURROGATES.start else number + len(_SURROGATES))
        return self[token]
