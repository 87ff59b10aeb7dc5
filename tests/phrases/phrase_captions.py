"""Small captions, and the filter of the paper written out as it stands there."""

import hashlib
from collections.abc import Sequence

CAPTIONS = [
    "A black dog runs through the grass .",
    "Two dogs play with a red ball on the beach .",
    "A man in a blue shirt rides his bike .",
    "A man and a woman sit on a bench .",
    "There is something on the table .",
    "there's a dog, and there are two cats .",
    "The dog that barked is mine .",
    "   A little girl  in pink \n jumps . ",
    "A girl is painting, but nobody looks at her .",
    "What a day !",
    "Runs quickly .",
    "A man rides a bike down the street .",
    "A man and his black dog .",
    "Ein Hund läuft über die Wiese .",
]


def by_the_book(phrases: Sequence[set[str]], least: int, most: int, seed: int) -> set[int]:
    """Captions by the loop over phrases, with the draw that limbeck documents."""
    captions: dict[str, list[int]] = {}
    for number, found in enumerate(phrases):
        for phrase in found:
            captions.setdefault(phrase, []).append(number)
    kept = {phrase: numbers for phrase, numbers in captions.items() if len(numbers) >= least}
    pool: set[int] = set()
    for phrase in sorted(kept, key=lambda phrase: (len(kept[phrase]), phrase)):
        numbers = kept[phrase]
        if len(numbers) > most:
            numbers = sorted(numbers, key=lambda number: draw(seed, number, phrase))[:most]
        pool |= set(numbers)
    return pool


def draw(seed: int, caption: int, phrase: str) -> int:
    """The number by which a phrase draws its captions, smallest first."""
    return int.from_bytes(hashlib.md5(f"{seed}:{caption}:{phrase}".encode()).digest()[8:], "little")
