"""`limbeck filter` beside spaCy used plainly: captions a second on real captions, and ten million captions chosen.

    python benchmarks/noun_phrases.py [--smoke] [--json FILE] [--write-docs] [--captions N]

    nlp(caption)  a loop over captions, all of en_core_web_sm
    nlp.pipe      the same in batches of spaCy's own choice
    limbeck       `NounPhrases`: the same pipeline without what chunks do not need

Speed is captions by second of one core's time (CPU time, so that neighbours count less), over the real captions of
$LIMBECK_DATA or ../shared/data; each way must give the phrases of nlp.pipe. Then the phrases of synthetic captions are
written as `limbeck filter` writes them, counted and chosen in a process of its own, whose peak memory is its whole
resident set. A smaller set is chosen by the loop over phrases too, as the paper has it, and must come out the same.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from harness import Claim, Row, at_least, parser, publish

DATA = Path(os.environ.get("LIMBECK_DATA") or Path(__file__).parents[2] / "shared" / "data")
MEMORY = 2 << 30
PART = 50_000
"""synthetic captions a part"""
NOUNS = 2_000_000
"""different synthetic phrases that can be drawn; about as steep as those of real captions"""
Phrases = Callable[[Sequence[str]], list[set[str]]]


def real_captions() -> list[str]:
    """All captions of the photos, shuffled."""
    lines = (DATA / "photos_captions" / "captions.jsonl").read_text().splitlines()
    captions = [caption for line in lines for caption in json.loads(line)["captions"]]
    random.Random(0).shuffle(captions)
    return captions


def ways() -> dict[str, Phrases]:
    """The ways to find phrases."""
    import spacy

    from limbeck.phrases.nouns import NounPhrases, pipeline_name

    nlp = spacy.load(pipeline_name(None))

    def of(docs: Any) -> list[set[str]]:
        return [{chunk.text.lower().strip() for chunk in doc.noun_chunks} for doc in docs]

    return {
        "nlp(caption)": lambda captions: of(map(nlp, captions)),
        "nlp.pipe": lambda captions: of(nlp.pipe(captions)),
        "limbeck": NounPhrases(),
    }


def speeds(captions: Sequence[str], rounds: int) -> list[dict[str, str | float | int]]:
    """Captions by CPU second of each way over interleaved rounds, and how many captions have other phrases.

    The loop, which is slow, has the first eighth of each round's captions.
    """
    found = ways()
    times: dict[str, list[float]] = {name: [] for name in found}
    results: dict[str, dict[str, set[str]]] = {}
    for phrases in found.values():
        phrases(captions[:200])
    share = len(captions) // rounds
    for turn in range(rounds):
        piece = captions[turn * share : (turn + 1) * share]
        for name, phrases in found.items():
            own = piece[: len(piece) // 8] if name == "nlp(caption)" else piece
            start = time.process_time()
            given = phrases(own)
            times[name].append(len(own) / (time.process_time() - start))
            results.setdefault(name, {}).update(zip(own, given, strict=True))
    right = results["nlp.pipe"]
    return [
        {
            "work": "phrases",
            "way": name,
            "captions": len(results[name]),
            "captions/s": median(times[name]),
            "different": sum(phrases != right[caption] for caption, phrases in results[name].items()),
        }
        for name in found
    ]


def write_parts(folder: Path, captions: int) -> list[int]:
    """Synthetic phrases, some 3.5 a caption with Zipf's frequencies; the captions of each part."""
    folder.mkdir()
    sizes = [min(PART, captions - start) for start in range(0, captions, PART)]
    schema = pa.schema([("part", pa.int32()), ("caption", pa.int32()), ("phrase", pa.string())])
    for part, size in enumerate(sizes):
        generator = np.random.default_rng(part)
        owner = np.repeat(np.arange(size), generator.integers(1, 7, size))
        rank = (NOUNS ** generator.random(len(owner))).astype(np.int64)  # density 1 / rank
        both = np.unique(owner * NOUNS + rank)
        owner, rank = both // NOUNS, both % NOUNS
        names = pc.binary_join_element_wise("the phrase", pa.array(rank).cast(pa.string()), " ")
        table = pa.table([np.full(len(owner), part, np.int32), owner.astype(np.int32), names], schema=schema)
        pq.write_table(table, folder / f"{part:06d}.parquet")
    return sizes


def counted(sender: Any, folder: Path, sizes: list[int]) -> None:
    """Count and choose; sends time, the choice and the peak of this process."""
    from limbeck.phrases.choose import ChoiceConfig, choose

    start = time.perf_counter()
    choice = choose(folder / "parts", sizes, ChoiceConfig(), folder, memory=MEMORY, threads=2)
    seconds = time.perf_counter() - start
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    sender.send((seconds, choice, peak / 2**10))


def choice_row(captions: int, check: bool) -> dict[str, str | float | int]:
    """Choose among so many synthetic captions, and compare with the loop where that is wanted."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sizes = write_parts(folder / "parts", captions)
        context = multiprocessing.get_context("spawn")
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=counted, args=(sender, folder, sizes))
        process.start()
        sender.close()
        seconds, choice, peak = receiver.recv()
        process.join()
        row = {
            "work": "count and choose",
            "way": "limbeck",
            "captions": captions,
            "captions/s": captions / seconds,
            "rows": choice.rows,
            "phrases": choice.phrases,
            "chosen": choice.chosen,
            "seconds": seconds,
            "peak MiB": peak,
        }
        if check:
            chosen = pq.read_table(folder / "chosen.parquet")["caption"].to_pylist()
            row["different"] = len(by_the_book(folder / "parts", sizes).symmetric_difference(chosen))
        return row


def by_the_book(parts: Path, sizes: Sequence[int]) -> set[int]:
    """The loop over phrases, rarest first."""
    found: dict[str, list[int]] = {}
    start = 0
    for part, size in enumerate(sizes):
        table = pq.read_table(parts / f"{part:06d}.parquet")
        for caption, phrase in zip(table["caption"].to_pylist(), table["phrase"].to_pylist()):
            found.setdefault(phrase, []).append(start + caption)
        start += size
    kept = {phrase: captions for phrase, captions in found.items() if len(captions) >= 3}
    pool: set[int] = set()
    for phrase in sorted(kept, key=lambda phrase: (len(kept[phrase]), phrase)):
        captions = kept[phrase]
        if len(captions) > 100:
            captions = sorted(captions, key=lambda caption: _draw(caption, phrase))[:100]
        pool.update(captions)
    return pool


def _draw(caption: int, phrase: str) -> int:
    return int.from_bytes(hashlib.md5(f"0:{caption}:{phrase}".encode()).digest()[8:], "little")


def claims(rows: Sequence[Row]) -> list[Claim]:
    """What is wanted of the rows."""
    speed = {str(row["way"]): float(row["captions/s"]) for row in rows if row["work"] == "phrases"}
    largest = max((row for row in rows if "peak MiB" in row), key=lambda row: int(row["captions"]))
    peak, different = float(largest["peak MiB"]), sum(int(row["different"]) for row in rows if "different" in row)
    wanted = [
        Claim(f"peak MiB at {largest['captions']:,} captions", f"<= {MEMORY >> 20}", f"{peak:.0f}", peak <= 2048),
        Claim("captions with other phrases or another choice", "0", str(different), different == 0),
    ]
    if not speed:
        return wanted
    return [
        at_least("times the captions/s of nlp.pipe", 4, speed["limbeck"] / speed["nlp.pipe"]),
        at_least("times the captions/s of a loop", 8, speed["limbeck"] / speed["nlp(caption)"]),
        at_least("captions/s of one core", 1877, speed["limbeck"]),
        *wanted,
    ]


def options() -> argparse.Namespace:
    """The parsed options."""
    own = parser(__doc__)
    own.add_argument("--captions", type=int, default=10_000_000, help="synthetic captions that are counted")
    return own.parse_args()


def main() -> None:
    """Measure, print and write."""
    given = options()
    if given.device != "cpu":
        sys.exit("noun_phrases: spaCy and DuckDB run on the CPU; leave --device out")
    rows: list[dict[str, str | float | int]] = []
    note = ""
    if (DATA / "photos_captions").is_dir():
        captions, rounds = real_captions(), 2 if given.smoke else given.rounds
        rows += speeds(captions[:600] if given.smoke else captions, rounds)
    else:
        note = f"speed skipped: no real captions in {DATA}"
    rows.append(choice_row(20_000 if given.smoke else 500_000, check=True))
    rows.append(choice_row(200_000 if given.smoke else given.captions, check=False))
    publish("noun_phrases", rows, claims(rows), given, note=note)


if __name__ == "__main__":
    main()
