"""The pool: every instruction, answer, assessment and decision of a competition, in one SQLite file.

What the models said is written one transaction a reply, under a key that says who was asked what in which round; what
is missing is read from there, so that a run that was killed goes on without asking anything twice. A round is closed
in one transaction, and numbers its new instructions in the order of their seeds: two runs, one of them killed on the
way, end with the same content (`Pool.digest`).
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

from limbeck.competition import pool_rows as rows
from limbeck.competition.pool_file import PoolError, PoolFile
from limbeck.competition.pool_records import (
    TEACHER_ROUND,
    Answer,
    Answerer,
    Asked,
    Assessment,
    Augmentation,
    Author,
    Decision,
    Instruction,
    Refused,
    Result,
    Round,
    Seed,
)


class Pool:
    """An open pool. One process writes at a time; others may read meanwhile. Every method raises PoolError."""

    def __init__(self, file: PoolFile) -> None:
        self._file = file

    @classmethod
    def open(cls, path: str | Path, *, create: bool = False, readonly: bool = False) -> Pool:
        """The pool in a file; `create` makes it where it is missing.

        Raises PoolError where the file is missing, is no pool, has another version, or another process writes to it.
        """
        return cls(PoolFile(path, create=create, readonly=readonly))

    @property
    def path(self) -> Path:
        """Its file."""
        return self._file.path

    def close(self) -> None:
        """Let others write."""
        self._file.close()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def select(self, query: str, values: tuple[Any, ...] = ()) -> list[dict[str, Any]]:
        """What a query over the tables (pool_file.py) finds, by column, for what the other methods do not tell."""
        with self._file.reading() as connection:
            cursor = connection.execute(query, values)
            names = [column[0] for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor]

    # what is asked about, and who is asked

    def add_seeds(self, seeds: Iterable[Seed], author: Author | None = None) -> int:
        """Add the instructions to start from, all or none, in the order given; how many were new.

        One that is there by its name is left as it is, and must say the same. Answers in the data are kept as the
        teacher's where `author` names it. Raises PoolError where a round is closed already: new seeds come too late.
        """
        with self._file.transaction() as connection:
            ((closed,),) = connection.execute("SELECT count(*) FROM rounds")
            ((last,),) = connection.execute("SELECT coalesce(max(id), 0) FROM instructions")
            number = last
            for seed in seeds:
                known = self._known(connection, seed)
                if known is None and closed:
                    raise PoolError(f"{self.path}: rounds are closed, so {seed.name!r} comes too late; use a new pool")
                rows.insert_picture(connection, seed.picture)
                if known is None:
                    number += 1
                    row = (number, seed.name, seed.picture.id if seed.picture else None, seed.text)
                    connection.execute("INSERT INTO instructions VALUES (?, ?, ?, ?, 0, NULL)", row)
                if author is not None and seed.answer is not None:
                    answer = Answer(
                        instruction=known or number,
                        role="teacher",
                        round=TEACHER_ROUND,
                        author=author,
                        text=seed.answer,
                        cut=False,
                    )
                    rows.insert_result(connection, answer)
        return number - last

    def add_model(self, fingerprint: str, name: str) -> None:
        """Make a model known by its fingerprint; the last name that it went by is kept."""
        with self._file.transaction() as connection:
            connection.execute(
                "INSERT INTO models VALUES (?, ?) ON CONFLICT DO UPDATE SET name = excluded.name", (fingerprint, name)
            )

    def add_prompt(self, id: str, role: str, text: str) -> None:
        """Make a prompt known. Raises PoolError where its id stands for another."""
        with self._file.transaction() as connection:
            connection.execute("INSERT INTO prompts VALUES (?, ?, ?) ON CONFLICT DO NOTHING", (id, role, text))
            (known,) = connection.execute("SELECT role, text FROM prompts WHERE id = ?", (id,))
            if known != (role, text):
                raise PoolError(f"{self.path}: prompt {id!r} is known with another text or role: {known}")

    def images(self) -> dict[str, str | None]:
        """Every picture's id, and its file where it has one."""
        return dict(self._rows("SELECT id, path FROM images ORDER BY id"))

    def models(self) -> dict[str, str]:
        """Every model's fingerprint and name."""
        return dict(self._rows("SELECT fingerprint, name FROM models ORDER BY fingerprint"))

    def instructions(self, *, round: int | None = None, before: int | None = None) -> list[Instruction]:
        """Those of one round (round 1 tunes on those of round 0), those of all rounds before one, or all; by id."""
        found = self._rows(
            f"SELECT {rows.INSTRUCTION} FROM instructions "
            "WHERE (?1 IS NULL OR round = ?1) AND (?2 IS NULL OR round < ?2) ORDER BY id",
            (round, before),
        )
        return [rows.instruction_of(row) for row in found]

    # what was said

    def add(self, result: Result) -> bool:
        """Keep the outcome of one call, in a transaction of its own.

        False where the pool has one under the same key, which stays. What it refers to is added before.
        """
        with self._file.transaction() as connection:
            return rows.insert_result(connection, result)

    def answers(self, role: Answerer, round: int, author: Author) -> dict[int, Answer]:
        """Instruction to answer, by id. A teacher's are of TEACHER_ROUND."""
        where = "(role, round, model, prompt) = (?, ?, ?, ?)"
        key = (role, round, author.model, author.prompt)
        found = self._rows(f"SELECT {rows.ANSWER} FROM answers WHERE {where} ORDER BY instruction", key)
        return {row[0]: rows.answer_of(row) for row in found}

    def assessments(self, round: int, author: Author | None = None) -> list[Assessment]:
        """All of a round, or one assessor's, by instruction, order (the teacher first) and attempt."""
        found = self._rows(
            f"SELECT {rows.ASSESSMENT} FROM assessments WHERE round = ?1 AND (?2 IS NULL OR (model, prompt) = (?2, ?3))"
            ' ORDER BY instruction, "order" DESC, about, attempt, model, prompt',
            (round, *_model_and_prompt(author)),
        )
        return [rows.assessment_of(row) for row in found]

    def augmentations(self, round: int, author: Author | None = None) -> list[Augmentation]:
        """All of a round, or one augmentor's, by seed and attempt."""
        found = self._rows(
            f"SELECT {rows.AUGMENTATION} FROM augmentations "
            "WHERE round = ?1 AND (?2 IS NULL OR (model, prompt) = (?2, ?3)) "
            "ORDER BY instruction, attempt, model, prompt",
            (round, *_model_and_prompt(author)),
        )
        return [rows.augmentation_of(row) for row in found]

    def refusals(
        self, role: Asked | None = None, round: int | None = None, author: Author | None = None
    ) -> list[Refused]:
        """The calls that got no reply: all, or a role's, a round's, an author's."""
        found = self._rows(
            f"SELECT {rows.REFUSAL} FROM refusals WHERE (?1 IS NULL OR role = ?1) AND (?2 IS NULL OR round = ?2) "
            'AND (?3 IS NULL OR (model, prompt) = (?3, ?4)) ORDER BY round, role, instruction, "order", attempt',
            (role, round, *_model_and_prompt(author)),
        )
        return [rows.refused_of(row) for row in found]

    def forget_refusals(self) -> int:
        """Let what was refused be asked again; how many there were."""
        with self._file.transaction() as connection:
            return connection.execute("DELETE FROM refusals").rowcount

    # rounds

    def close_round(self, closing: Round) -> list[Instruction]:
        """Keep a round's decisions, verdicts and new instructions, all or none; these instructions, numbered.

        Closing it again with the same content changes nothing. Raises PoolError for other content, while the round
        before it is open, or where an accepted or rejected augmentation is not in the pool or has a verdict already.
        """
        settings = json.dumps(dict(closing.settings), sort_keys=True)
        with self._file.transaction() as connection:
            closed = dict(connection.execute("SELECT round, settings FROM rounds"))
            if closing.round in closed:
                if closed[closing.round] != settings or not self._holds(closing):
                    raise PoolError(f"{self.path}: round {closing.round} is closed, with other decisions than these")
            elif closing.round != len(closed) + 1:
                raise PoolError(f"{self.path}: round {len(closed) + 1} is the next to close, not {closing.round}")
            elif missing := rows.insert_closing(connection, closing, settings):
                seed, attempt = missing
                raise PoolError(f"{self.path}: round {closing.round} has no free attempt {attempt} from seed {seed}")
        return self.instructions(round=closing.round)

    def closed_rounds(self) -> dict[int, dict[str, str | float | int | bool | None]]:
        """Every closed round, and what it was decided by."""
        found = self._rows("SELECT round, settings FROM rounds ORDER BY round")
        return {round: json.loads(settings) for round, settings in found}

    def decisions(self, round: int) -> list[Decision]:
        """A closed round's, by instruction."""
        found = self._rows(f"SELECT {rows.DECISION} FROM decisions WHERE round = ? ORDER BY instruction", (round,))
        return [rows.decision_of(row) for row in found]

    def digest(self) -> str:
        """A hash of the content, in whatever order and however fast it was written (pool_rows.CONTENT)."""
        digest = hashlib.sha256()
        with self._file.reading() as connection:
            for table, query in rows.CONTENT.items():
                for row in connection.execute(query):
                    digest.update(json.dumps([table, *row]).encode() + b"\n")
        return digest.hexdigest()

    def _rows(self, query: str, values: tuple[Any, ...] = ()) -> list[rows.Row]:
        with self._file.reading() as connection:
            return connection.execute(query, values).fetchall()

    def _known(self, connection: sqlite3.Connection, seed: Seed) -> int | None:
        """The id of a seed that is there. Raises PoolError where its name stands for another."""
        found = connection.execute("SELECT id, image, text FROM instructions WHERE name = ?", (seed.name,)).fetchone()
        if found is None:
            return None
        id, image, text = found
        if (image, text) != (seed.picture.id if seed.picture else None, seed.text):
            raise PoolError(
                f"{self.path}: {seed.name!r} says {text!r} about {image} there, and {seed.text!r} now; "
                "the data have changed: use a new pool; or they are another file of that name: call it otherwise"
            )
        return id

    def _holds(self, closing: Round) -> bool:
        """Whether a closed round has these decisions and new instructions."""
        written = [(each.parent, each.text) for each in self.instructions(round=closing.round)]
        decided = sorted(closing.decisions, key=lambda each: each.instruction)
        return decided == self.decisions(closing.round) and written == [
            (each.seed, each.text) for each in rows.in_order(closing.accepted)
        ]


def _model_and_prompt(author: Author | None) -> tuple[str | None, str | None]:
    return (None, None) if author is None else (author.model, author.prompt)
