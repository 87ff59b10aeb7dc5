"""Rows of the pool's tables to records and back."""

from __future__ import annotations

import filecmp
import os
import sqlite3
from dataclasses import astuple
from typing import Any

from limbeck.competition.pool_file import PoolError
from limbeck.competition.pool_records import (
    Answer,
    Assessment,
    Augmentation,
    Author,
    Cost,
    Decision,
    Instruction,
    Picture,
    Refused,
    Result,
    Round,
    Written,
)

Row = tuple[Any, ...]
_COST = "prompt_tokens, new_tokens, seconds"
INSTRUCTION = "id, name, image, text, round, parent"
ANSWER = f"instruction, role, round, model, prompt, text, cut, {_COST}"
ASSESSMENT = f'round, instruction, "order", about, attempt, model, prompt, text, score_1, score_2, {_COST}'
AUGMENTATION = f"round, instruction, attempt, model, prompt, text, verdict, {_COST}"
REFUSAL = 'role, round, instruction, "order", about, attempt, model, prompt, reason'
DECISION = "round, instruction, difficulty, kind, chosen"

CONTENT = {
    "images": "SELECT id FROM images ORDER BY id",
    "instructions": f"SELECT {INSTRUCTION} FROM instructions ORDER BY id",
    "prompts": "SELECT id, role, text FROM prompts ORDER BY id",
    "models": "SELECT fingerprint FROM models ORDER BY fingerprint",
    "answers": "SELECT role, round, model, prompt, instruction, text, cut FROM answers ORDER BY 1, 2, 3, 4, 5",
    "assessments": 'SELECT round, model, prompt, instruction, "order", about, attempt, text, score_1, score_2 '
    "FROM assessments ORDER BY 1, 2, 3, 4, 5, 6, 7",
    "augmentations": "SELECT round, model, prompt, instruction, attempt, text, verdict "
    "FROM augmentations ORDER BY 1, 2, 3, 4, 5",
    "refusals": 'SELECT role, round, model, prompt, instruction, "order", about, attempt '
    "FROM refusals ORDER BY 1, 2, 3, 4, 5, 6, 7, 8",
    "rounds": "SELECT round, settings FROM rounds ORDER BY round",
    "decisions": f"SELECT {DECISION} FROM decisions ORDER BY 1, 2",
}
"""What a pool's digest is made of, table by table: all but costs, models' names, pictures' files, refusals' reasons."""


def instruction_of(row: Row) -> Instruction:
    """A row of INSTRUCTION."""
    id, name, image, text, round, parent = row
    return Instruction(id=id, name=name, image=image, text=text, round=round, parent=parent)


def answer_of(row: Row) -> Answer:
    """A row of ANSWER."""
    instruction, role, round, model, prompt, text, cut, *cost = row
    return Answer(
        instruction=instruction,
        role=role,
        round=round,
        author=Author(model, prompt),
        text=text,
        cut=bool(cut),
        cost=_cost(cost),
    )


def assessment_of(row: Row) -> Assessment:
    """A row of ASSESSMENT."""
    round, instruction, order, about, attempt, model, prompt, text, first, second, *cost = row
    return Assessment(
        round=round,
        instruction=instruction,
        order=order,
        about=about,
        attempt=attempt,
        author=Author(model, prompt),
        text=text,
        scores=None if first is None else (first, second),
        cost=_cost(cost),
    )


def augmentation_of(row: Row) -> Augmentation:
    """A row of AUGMENTATION."""
    round, instruction, attempt, model, prompt, text, verdict, *cost = row
    return Augmentation(
        round=round,
        instruction=instruction,
        attempt=attempt,
        author=Author(model, prompt),
        text=text,
        verdict=verdict,
        cost=_cost(cost),
    )


def refused_of(row: Row) -> Refused:
    """A row of REFUSAL."""
    role, round, instruction, order, about, attempt, model, prompt, reason = row
    return Refused(
        role=role,
        round=round,
        instruction=instruction,
        order=order or None,
        about=about or None,
        attempt=attempt,
        author=Author(model, prompt),
        reason=reason,
    )


def decision_of(row: Row) -> Decision:
    """A row of DECISION."""
    round, instruction, difficulty, kind, chosen = row
    return Decision(round=round, instruction=instruction, difficulty=difficulty, kind=kind, chosen=bool(chosen))


def insert_picture(connection: sqlite3.Connection, picture: Picture | None) -> None:
    """Make a picture known, where it is now; one whose file is known keeps it.

    Raises PoolError where its id is that of another picture, whose file is still there.
    """
    if picture is None:
        return
    (known,) = connection.execute("SELECT path FROM images WHERE id = ?", (picture.id,)).fetchone() or (None,)
    if known is not None and picture.path is not None and _differ(known, picture.path):
        raise PoolError(
            f"the picture {picture.id!r} is {known} there, and {picture.path} now: two pictures of one name. Name them "
            "from a folder that holds both (`pool import --images`), or use a new pool"
        )
    connection.execute(
        "INSERT INTO images VALUES (?, ?) ON CONFLICT DO UPDATE SET path = coalesce(excluded.path, path)",
        (picture.id, picture.path),
    )


def _differ(known: str, path: str) -> bool:
    """Whether two files are two pictures; one that is gone was moved."""
    if known == path or not os.path.isfile(known):
        return False
    return not os.path.isfile(path) or not filecmp.cmp(known, path, shallow=False)


def insert_result(connection: sqlite3.Connection, result: Result) -> bool:
    """Add the outcome of one call unless its key has one; whether it was added."""
    match result:
        case Answer(instruction=instruction, role=role, round=round, text=text, cut=cut, cost=cost):
            row = (instruction, role, round, *_author(result.author), text, cut, *_numbers(cost))
            return _insert(connection, "answers", ANSWER, row)
        case Assessment(scores=scores, cost=cost):
            key = (result.round, result.instruction, result.order, result.about, result.attempt)
            row = (*key, *_author(result.author), result.text, *(scores or (None, None)), *_numbers(cost))
            return _insert(connection, "assessments", ASSESSMENT, row)
        case Augmentation(text=text, verdict=verdict, cost=cost):
            key = (result.round, result.instruction, result.attempt)
            row = (*key, *_author(result.author), text, verdict, *_numbers(cost))
            return _insert(connection, "augmentations", AUGMENTATION, row)
        case Refused(role=role, round=round, reason=reason):
            key = (role, round, result.instruction, result.order or "", result.about or "", result.attempt)
            return _insert(connection, "refusals", REFUSAL, (*key, *_author(result.author), reason))


def insert_closing(connection: sqlite3.Connection, closing: Round, settings: str) -> tuple[int, int] | None:
    """Add a round's decisions, verdicts and new instructions, or tell the (seed, attempt) that it does not have."""
    connection.execute("INSERT INTO rounds VALUES (?, ?)", (closing.round, settings))
    connection.executemany("INSERT INTO decisions VALUES (?, ?, ?, ?, ?)", map(astuple, closing.decisions))
    for (seed, attempt, author), reason in closing.rejected.items():
        changed = connection.execute(
            "UPDATE augmentations SET verdict = ? WHERE (round, instruction, attempt, model, prompt) = (?, ?, ?, ?, ?)",
            (reason, closing.round, seed, attempt, *_author(author)),
        )
        if not changed.rowcount:
            return seed, attempt
    ((last,),) = connection.execute("SELECT coalesce(max(id), 0) FROM instructions")
    for number, each in enumerate(in_order(closing.accepted), start=last + 1):
        changed = connection.execute(
            "INSERT INTO instructions SELECT ?, NULL, seed.image, ?, written.round, seed.id "
            "FROM augmentations AS written JOIN instructions AS seed ON seed.id = written.instruction "
            "WHERE (written.round, seed.id, attempt, model, prompt) = (?, ?, ?, ?, ?) AND verdict IS NULL",
            (number, each.text, closing.round, each.seed, each.attempt, *_author(each.author)),
        )
        if not changed.rowcount:
            return each.seed, each.attempt
    return None


def in_order(accepted: tuple[Written, ...]) -> list[Written]:
    """New instructions in the order in which they are numbered."""
    return sorted(accepted, key=lambda each: (each.seed, each.attempt, each.author.model, each.author.prompt))


def _insert(connection: sqlite3.Connection, table: str, columns: str, row: Row) -> bool:
    marks = ", ".join("?" * len(row))
    query = f"INSERT INTO {table} ({columns}) VALUES ({marks}) ON CONFLICT DO NOTHING"
    return connection.execute(query, row).rowcount > 0


def _author(author: Author) -> tuple[str, str]:
    return author.model, author.prompt


def _numbers(cost: Cost) -> tuple[int, int, float]:
    return cost.prompt_tokens, cost.new_tokens, cost.seconds


def _cost(row: list[Any]) -> Cost:
    prompt_tokens, new_tokens, seconds = row
    return Cost(prompt_tokens=prompt_tokens, new_tokens=new_tokens, seconds=seconds)
