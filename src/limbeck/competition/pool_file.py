"""The pool's SQLite file: its tables, who may write, and what goes wrong with files, said for people.

One process writes, any number read meanwhile (write-ahead log). A transaction that was committed survives kill -9.
"""

from __future__ import annotations

import os
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from limbeck.data.examples import DataError

APPLICATION = 0x4C6D426B
"""Marks a SQLite file as a pool (its `application_id`)."""
VERSION = 1
"""Of the tables (`user_version`)."""

_TABLES = """
CREATE TABLE images (
    id TEXT PRIMARY KEY,
    path TEXT
) STRICT;
CREATE TABLE instructions (
    id INTEGER PRIMARY KEY,
    name TEXT UNIQUE,
    image TEXT REFERENCES images (id),
    text TEXT NOT NULL,
    round INTEGER NOT NULL,
    parent INTEGER REFERENCES instructions (id),
    CHECK ((round = 0) = (parent IS NULL) AND (round = 0) = (name IS NOT NULL))
) STRICT;
CREATE INDEX instructions_of_round ON instructions (round);
CREATE TABLE prompts (
    id TEXT PRIMARY KEY,
    role TEXT NOT NULL,
    text TEXT NOT NULL
) STRICT;
CREATE TABLE models (
    fingerprint TEXT PRIMARY KEY,
    name TEXT NOT NULL
) STRICT;
CREATE TABLE answers (
    role TEXT NOT NULL CHECK (role IN ('teacher', 'student')),
    round INTEGER NOT NULL CHECK ((role = 'teacher') = (round = 0)),
    model TEXT NOT NULL REFERENCES models (fingerprint),
    prompt TEXT NOT NULL REFERENCES prompts (id),
    instruction INTEGER NOT NULL REFERENCES instructions (id),
    text TEXT NOT NULL,
    cut INTEGER NOT NULL CHECK (cut IN (0, 1)),
    prompt_tokens INTEGER NOT NULL,
    new_tokens INTEGER NOT NULL,
    seconds REAL NOT NULL,
    UNIQUE (role, round, model, prompt, instruction)
) STRICT;
CREATE INDEX answers_to ON answers (instruction);
CREATE TABLE assessments (
    round INTEGER NOT NULL,
    model TEXT NOT NULL REFERENCES models (fingerprint),
    prompt TEXT NOT NULL REFERENCES prompts (id),
    instruction INTEGER NOT NULL REFERENCES instructions (id),
    "order" TEXT NOT NULL CHECK ("order" IN ('teacher_first', 'student_first')),
    about TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    text TEXT NOT NULL,
    score_1 REAL,
    score_2 REAL CHECK ((score_1 IS NULL) = (score_2 IS NULL)),
    prompt_tokens INTEGER NOT NULL,
    new_tokens INTEGER NOT NULL,
    seconds REAL NOT NULL,
    UNIQUE (round, model, prompt, instruction, "order", about, attempt)
) STRICT;
CREATE INDEX assessments_of ON assessments (instruction);
CREATE TABLE augmentations (
    round INTEGER NOT NULL,
    model TEXT NOT NULL REFERENCES models (fingerprint),
    prompt TEXT NOT NULL REFERENCES prompts (id),
    instruction INTEGER NOT NULL REFERENCES instructions (id),
    attempt INTEGER NOT NULL,
    text TEXT NOT NULL,
    verdict TEXT,
    prompt_tokens INTEGER NOT NULL,
    new_tokens INTEGER NOT NULL,
    seconds REAL NOT NULL,
    UNIQUE (round, model, prompt, instruction, attempt)
) STRICT;
CREATE INDEX augmentations_of ON augmentations (instruction);
CREATE TABLE refusals (
    role TEXT NOT NULL CHECK (role IN ('teacher', 'student', 'assessor', 'augmentor')),
    round INTEGER NOT NULL,
    model TEXT NOT NULL REFERENCES models (fingerprint),
    prompt TEXT NOT NULL REFERENCES prompts (id),
    instruction INTEGER NOT NULL REFERENCES instructions (id),
    "order" TEXT NOT NULL CHECK ((role = 'assessor') = ("order" <> '')),
    about TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    reason TEXT NOT NULL,
    UNIQUE (role, round, model, prompt, instruction, "order", about, attempt)
) STRICT;
CREATE TABLE rounds (
    round INTEGER PRIMARY KEY,
    settings TEXT NOT NULL
) STRICT;
CREATE TABLE decisions (
    round INTEGER NOT NULL REFERENCES rounds (round),
    instruction INTEGER NOT NULL REFERENCES instructions (id),
    difficulty REAL,
    kind TEXT NOT NULL CHECK (kind IN ('hard', 'easy', 'unparsed')),
    chosen INTEGER NOT NULL CHECK (chosen IN (0, 1)),
    PRIMARY KEY (round, instruction)
) STRICT;
"""


class PoolError(DataError):
    """A pool that cannot be used; the message names the file, what is wrong and what to do."""


class PoolFile:
    """An open pool file. Use from one thread; a process that is forked from this one must not use it."""

    def __init__(self, path: str | Path, *, create: bool, readonly: bool) -> None:
        self.path = Path(path)
        self.readonly = readonly
        if create and readonly:
            raise ValueError("a pool that is made is written to: create and readonly exclude each other")
        if not create and not self.path.is_file():
            raise PoolError(f"{self.path}: no such pool")
        if sqlite3.sqlite_version_info < (3, 37):
            raise PoolError(f"{self.path}: pools need SQLite 3.37, this Python has {sqlite3.sqlite_version}")
        self._writer = None if readonly else _hold(self.path)
        try:
            with self._explained():
                self.connection = self._connect()
                self._check(create)
        except BaseException:
            self._release()
            raise

    def close(self) -> None:
        """Let others write."""
        self.connection.close()
        self._release()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All that is written inside stands after it, or nothing of it. Raises PoolError."""
        if self.readonly:
            raise PoolError(f"{self.path}: opened to read only")
        with self._explained():
            self.connection.execute("BEGIN IMMEDIATE")
            try:
                yield self.connection
                self.connection.execute("COMMIT")
            except BaseException:
                if self.connection.in_transaction:  # a full disk may have rolled back by itself
                    self.connection.execute("ROLLBACK")
                raise

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Everything read inside is of one moment, whatever is written meanwhile. Raises PoolError."""
        with self._explained():
            if self.connection.in_transaction:
                yield self.connection
                return
            self.connection.execute("BEGIN")
            try:
                yield self.connection
            finally:
                self.connection.execute("ROLLBACK")

    def _connect(self) -> sqlite3.Connection:
        address = self.path.absolute().as_uri()
        if not self.readonly:
            connection = sqlite3.connect(f"{address}?mode=rwc", uri=True, isolation_level=None, timeout=30)
        elif os.access(self.path.parent, os.W_OK) or self.path.with_name(f"{self.path.name}-wal").exists():
            connection = sqlite3.connect(f"{address}?mode=ro", uri=True, isolation_level=None, timeout=30)
        else:  # readers share a file beside the pool, which cannot be made here
            connection = sqlite3.connect(f"{address}?mode=ro&immutable=1", uri=True, isolation_level=None)
        connection.execute("PRAGMA foreign_keys = ON")
        return connection

    def _check(self, create: bool) -> None:
        """Make the tables of a new file, else see that they are a pool's."""
        ((application,),) = self.connection.execute("PRAGMA application_id")
        ((version,),) = self.connection.execute("PRAGMA user_version")
        ((tables,),) = self.connection.execute("SELECT count(*) FROM sqlite_schema")
        new = create and not application and not tables
        if not new and application != APPLICATION:
            raise PoolError(f"{self.path}: not a pool of limbeck's, but {f'{tables} tables' if tables else 'empty'}")
        if not new and version != VERSION:
            raise PoolError(f"{self.path}: a pool of version {version}; this limbeck reads version {VERSION}")
        if self.readonly:
            return
        ((mode,),) = self.connection.execute("PRAGMA journal_mode = WAL")
        if mode != "wal":
            raise PoolError(f"{self.path}: this file system has no shared memory for SQLite; use a local disk")
        self.connection.execute("PRAGMA synchronous = NORMAL")
        if new:
            self.connection.executescript(
                f"BEGIN; {_TABLES} PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {VERSION}; COMMIT;"
            )

    def _release(self) -> None:
        if self._writer is not None:
            self._writer.close()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise _explain(error, self.path) from error


def _hold(path: Path) -> sqlite3.Connection:
    """The writer's lock: a SQLite file beside the pool that stays locked until the process ends, however it ends.

    (SQLite's locks belong to one process alone, where those of `flock` pass on to workers that are forked.)
    """
    if not path.parent.is_dir():
        raise PoolError(f"{path}: no folder {path.parent}")
    lock = path.with_name(f"{path.name}.writer")
    started = datetime.now(UTC).isoformat(timespec="seconds")
    me = f"process {os.getpid()} on {socket.gethostname()}, since {started}"
    try:
        connection = sqlite3.connect(lock, isolation_level=None, timeout=2)
    except sqlite3.DatabaseError as error:
        raise _explain(error, lock) from error
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("CREATE TABLE IF NOT EXISTS writer (one INTEGER PRIMARY KEY, who TEXT) STRICT")
        connection.execute("INSERT OR REPLACE INTO writer VALUES (1, ?)", (me,))
        connection.execute("COMMIT")
        connection.execute("BEGIN IMMEDIATE")
        return connection
    except sqlite3.DatabaseError as error:
        busy = _code(error) == sqlite3.SQLITE_BUSY
        who = _holder(connection) if busy else None
        connection.close()
        if not busy:
            raise _explain(error, lock) from error
        raise PoolError(
            f"{path}: another process writes to it{f' ({who})' if who else ''}; wait for its end, or end it, and give "
            "the same command again. Nothing is lost, and `limbeck pool stats` reads meanwhile"
        ) from None


def _holder(connection: sqlite3.Connection) -> str | None:
    """Who holds the lock, as far as it can be read."""
    try:
        return next(iter(connection.execute("SELECT who FROM writer")), (None,))[0]
    except sqlite3.DatabaseError:
        return None


def _code(error: sqlite3.DatabaseError) -> int:
    """SQLite's primary result code; 0 where Python's wrapper raised by itself."""
    return error.sqlite_errorcode & 0xFF if "sqlite_errorcode" in vars(error) else 0


def _explain(error: sqlite3.DatabaseError, path: Path) -> PoolError:
    kept = "what was written before is kept, and the same command goes on from there"
    match _code(error):
        case sqlite3.SQLITE_FULL:
            return PoolError(f"{path}: the disk is full; make room: {kept}")
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return PoolError(f"{path}: another program keeps it locked; close that one: {kept}")
        case sqlite3.SQLITE_IOERR:
            return PoolError(f"{path}: the disk fails or a file may not grow ({error}); see to it: {kept}")
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM:
            return PoolError(f"{path}: cannot be opened as wanted ({error}); are file and folder yours to write?")
        case sqlite3.SQLITE_NOTADB:
            return PoolError(f"{path}: not a pool of limbeck's, nor any SQLite file")
        case sqlite3.SQLITE_CORRUPT:
            return PoolError(f"{path}: damaged ({error}); `sqlite3 {path} .recover` saves what can be read")
        case sqlite3.SQLITE_CONSTRAINT:
            return PoolError(f"{path}: {error}: models, prompts and instructions are added before what refers to them")
        case _:
            return PoolError(f"{path}: {error}")
