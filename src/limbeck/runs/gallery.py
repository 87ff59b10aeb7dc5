"""The pictures of a run's page: some that a model was asked about, with their captions and questions.

What the model wrote stays in the evaluation's rows; the gallery says which rows are about which picture.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from limbeck.data.examples import BrokenImage, ImageSource
from limbeck.evaluation.generative.items import Item
from limbeck.writing import write_text

PICTURES = 8
QUESTIONS = 6
"""about one picture"""
SIDE = 320
"""Pixels of a larger picture's longer side, so that the page stays light."""


def hang(gallery: Path, benchmarks: Mapping[str, Sequence[Item]]) -> None:
    """Save the pictures that the page shows; `benchmarks` are all items by the name of their file of rows.

    Benchmarks give a picture each in turn. One that several share is shown once, with what each asked about it; one
    that does not open is left out.
    """
    about = _by_picture(benchmarks)
    entries: list[dict[str, Any]] = []
    for key in _in_turn([_pictures(items) for items in benchmarks.values()]):
        if len(entries) == PICTURES:
            break
        file = f"{len(entries)}.png"
        if save_picture(about[key][0][1].images[0], gallery / file):
            entries.append(_entry(file, about[key]))
    write_text(gallery / "gallery.json", json.dumps(entries, ensure_ascii=False))


Asked = list[tuple[str, Item]]
"""Items about one picture, each with its benchmark's name."""


def _by_picture(benchmarks: Mapping[str, Sequence[Item]]) -> dict[str, Asked]:
    """All items by the key of their picture; those without one, or with several, are left out."""
    about: dict[str, Asked] = {}
    for name, items in benchmarks.items():
        for item in items:
            if len(item.images) == 1:
                about.setdefault(item.images[0].key, []).append((name, item))
    return about


def _pictures(items: Sequence[Item]) -> list[str]:
    return list(dict.fromkeys(item.images[0].key for item in items if len(item.images) == 1))


def _in_turn(lists: Sequence[Sequence[str]]) -> list[str]:
    """The first new one of each list, then the next of each, and so on; at most twice `PICTURES` of each list."""
    longest = max(map(len, lists), default=0)
    ordered = (keys[place] for place in range(min(longest, 2 * PICTURES)) for keys in lists if place < len(keys))
    return list(dict.fromkeys(ordered))


def save_picture(image: ImageSource, file: Path) -> bool:
    """Whether the picture opened."""
    try:
        picture = image.open()
    except BrokenImage:
        return False
    picture.thumbnail((SIDE, SIDE))
    file.parent.mkdir(parents=True, exist_ok=True)
    picture.save(file)
    return True


def _entry(file: str, asked: Asked) -> dict[str, Any]:
    """What gallery.json says of a picture."""
    first, questions = asked[0], dict[tuple[str, str], dict[str, Any]]()
    entry: dict[str, Any] = {"id": f"{first[0]}/{first[1].id}", "file": file, "captions": [], "written": None}
    for name, item in asked:
        place = {"rows": name, "id": item.id}
        if "references" in item.row and entry["written"] is None:
            entry |= {"captions": item.row["references"], "written": place}
        elif "question" in item.row:
            text = _question(item.row)
            questions.setdefault((name, item.row["question"]), {"text": text, "answers": _answers(item.row), **place})
    return entry | {"questions": list(questions.values())[:QUESTIONS]}


def _question(row: Mapping[str, Any]) -> str:
    """The question, with its lettered options where it has any."""
    options = row.get("options") or ()
    lettered = [f"{letter}. {option}" for letter, option in zip(ascii_uppercase, options)]
    return " ".join([row["question"], *lettered])


def _answers(row: Mapping[str, Any]) -> list[str]:
    """What would be right; nothing where that is secret."""
    return list(row["answers"]) if row.get("answers") else [row["answer"]] if row.get("answer") else []
