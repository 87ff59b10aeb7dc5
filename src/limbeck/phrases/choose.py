"""Counting phrases and choosing captions, out of core: memory does not grow with the captions.

    freq[p] = captions that contain p;  P = {p: freq[p] >= least};  pool = {}
    for p in sorted(P, key=(freq, p)):
        ids = captions(p);  if freq[p] > most: ids = a sample of `most` of them
        pool |= ids

(LLaVA's noun-phrase filter, as CoMD uses it.) The pool is a union, and a phrase's sample does not depend on the other
phrases', so phrases need not be gone through one by one: a caption is chosen where one of its phrases has at most
`most` captions, or draws it. A phrase draws the captions with the smallest md5(seed, caption, phrase): a fair sample
without replacement that comes out the same in any order, on any machine, with any number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import sqrt
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import Field

from limbeck.config import Section
from limbeck.data.examples import DataError

GIBIBYTE = 1 << 30


class ChoiceConfig(Section):
    """What is chosen."""

    least: int = Field(default=3, ge=1)
    """captions that a phrase must have to count"""
    most: int = Field(default=100, ge=1)
    """captions that are drawn of a phrase that has more"""
    seed: int = 0


@dataclass(frozen=True)
class Choice:
    """What was counted and chosen."""

    rows: int
    """phrases of captions, each once a caption"""
    phrases: int
    """different ones"""
    kept_phrases: int
    """those that enough captions have"""
    sampled_phrases: int
    """those of which captions were drawn"""
    chosen: int
    """captions"""


def choose(
    parts: Path, captions: Sequence[int], config: ChoiceConfig, folder: Path, *, memory: int, threads: int
) -> Choice:
    """Choose among the parts' captions. Raises DataError.

    Args:
        parts: the folder of the parts' Parquet files (part, caption, phrase).
        captions: how many captions each part has.
        folder: where `phrases.parquet` (phrase, captions, taken; rarest first) and `chosen.parquet` (caption: its place
            among all captions of all parts) go.
        memory: bytes that this process may come to use; what does not fit goes to `folder` for the time being.
    """
    import duckdb

    own = max(memory // 2, memory - GIBIBYTE * 3 // 4)
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    settings: dict[str, Any] = {
        "memory_limit": f"{own >> 20}MiB",
        "temp_directory": str(scratch),
        "threads": threads,
        "preserve_insertion_order": False,
    }
    database = scratch / "choice.duckdb"
    database.unlink(missing_ok=True)
    try:
        with duckdb.connect(str(database), config=settings) as connection:
            return _choose(connection, parts, captions, config, folder)
    except duckdb.OutOfMemoryException as error:
        raise DataError(f"{own >> 20} MiB are too few to count these phrases; give more memory: {error}") from error
    except duckdb.IOException as error:
        raise DataError(f"{folder}: cannot count there: {error}; finished parts are kept") from error
    finally:
        for left in sorted(scratch.rglob("*"), reverse=True):
            left.unlink(missing_ok=True)
        scratch.rmdir()


def _choose(connection: Any, parts: Path, captions: Sequence[int], config: ChoiceConfig, folder: Path) -> Choice:
    run = connection.execute
    starts = [0, *accumulate(captions)][:-1]
    connection.register("starts", pa.table({"part": pa.array(range(len(starts)), pa.int32()), "start": starts}))
    files = str(parts / "*.parquet").replace("'", "''")
    run(
        "CREATE TEMPORARY VIEW rows AS SELECT phrase, start + caption AS caption "
        f"FROM read_parquet('{files}') JOIN starts USING (part)"
    )
    run("CREATE TABLE every AS SELECT phrase, count(*) AS captions FROM rows GROUP BY phrase")
    rows, phrases = run("SELECT coalesce(sum(captions), 0)::BIGINT, count(*) FROM every").fetchone()
    run("CREATE TABLE counted AS SELECT * FROM every WHERE captions >= ?", [config.least])
    run("DROP TABLE every")
    most = config.most
    kept, sampled = run("SELECT count(*), count(*) FILTER (captions > ?) FROM counted", [most]).fetchone()
    near = most + 10 * sqrt(most) + 30  # draws expected below the first bound: the chance of fewer than `most` is nil
    for bound in (near, float("inf")):
        run("CREATE OR REPLACE TABLE drawn AS " + _DRAWN, [config.seed, most, bound * 2.0**64, most])
        if run("SELECT count(*) FROM drawn").fetchone()[0] == most * sampled:
            break
    run(
        "CREATE TABLE chosen AS SELECT caption FROM rows JOIN counted USING (phrase) WHERE captions <= ? "
        "UNION SELECT caption FROM drawn",
        [most],
    )
    run("SET preserve_insertion_order = true")
    _write(
        connection,
        f"SELECT phrase, captions, least(captions, {most}) AS taken FROM counted ORDER BY captions, phrase",
        folder / "phrases.parquet",
    )
    _write(connection, "SELECT caption FROM chosen ORDER BY caption", folder / "chosen.parquet")
    chosen = run("SELECT count(*) FROM chosen").fetchone()[0]
    return Choice(rows=rows, phrases=phrases, kept_phrases=kept, sampled_phrases=sampled, chosen=chosen)


_DRAWN = """
    SELECT caption FROM (
        SELECT caption, row_number() OVER (PARTITION BY phrase ORDER BY draw, caption) AS place FROM (
            SELECT phrase, caption, captions, md5_number_lower(concat(?, ':', caption, ':', phrase)) AS draw
            FROM rows JOIN counted USING (phrase) WHERE captions > ?
        ) WHERE draw::DOUBLE * captions <= ?
    ) WHERE place <= ?
"""


def _write(connection: Any, query: str, file: Path) -> None:
    unfinished = file.with_suffix(".tmp")
    connection.execute(f"COPY ({query}) TO '{str(unfinished).replace(chr(39), chr(39) * 2)}' (FORMAT parquet)")
    unfinished.replace(file)
