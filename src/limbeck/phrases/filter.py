"""The filter from captions to chosen records, in steps of which each can be killed and goes on where it was.

Out folder: `settings.json` (what phrases depend on), `parts/` (their Parquet files), `phrases.parquet`,
`chosen.parquet`, `chosen/` or `keys.jsonl`, `summary.json`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from limbeck.data.examples import DataError, check_skipped
from limbeck.phrases.choose import Choice, ChoiceConfig, choose
from limbeck.phrases.inputs import CaptionsConfig, Part, input_files, plan
from limbeck.phrases.nouns import fingerprint
from limbeck.phrases.parts import PartDone, finished_part
from limbeck.phrases.processes import extract_here, extract_on_ray
from limbeck.phrases.write import Written, write_chosen, write_keys
from limbeck.writing import write_text

Progress = Callable[[PartDone | None, int], None]
"""Called with each finished part (None: those that were there before) and the number of parts in all"""


@dataclass(frozen=True)
class Resources:
    """What a run may use; nothing in it changes what comes out."""

    processes: int = 1
    """processes, or Ray's workers, of one core each"""
    memory: int = 2 << 30
    """bytes of the process that counts and chooses"""
    ray: str | None = None
    """a Ray cluster's address, or `local`; None for processes here"""


@dataclass(frozen=True)
class Summary:
    """What `summary.json` holds."""

    records: int
    captions: int
    broken: int
    choice: Choice
    written: tuple[Written, ...]
    captions_per_second: float | None
    """phrases found by this command, by its wall time; None where all parts were there"""
    counting_seconds: float

    def to_json(self) -> dict[str, Any]:
        """Ready for `json.dumps`."""
        return asdict(self)


def filter_captions(
    captions: CaptionsConfig,
    choice: ChoiceConfig,
    out: Path,
    resources: Resources = Resources(),
    *,
    pipeline: str | None = None,
    max_skipped: float = 0.01,
    keys_only: bool = False,
    progress: Progress = lambda done, parts: None,
) -> Summary:
    """Find phrases, count, choose and write. What a killed run has finished is not done again. Raises DataError.

    Args:
        out: the folder of everything that is written. Another choice may use the phrases that are there; other captions
            or another pipeline may not.
        pipeline: the spaCy pipeline's name or folder; None for the small English one.
        max_skipped: share of broken records past which nothing is chosen.
        keys_only: write the chosen records' ids instead of the records.
    """
    files = input_files(captions)
    versions = fingerprint(pipeline)
    parts_folder = out / "parts"
    parts_folder.mkdir(parents=True, exist_ok=True)
    _settle(out / "settings.json", captions, files, versions)
    parts = plan(files, captions.part_records)
    done, rate = _extract(parts, captions, pipeline, versions, parts_folder, resources, progress)
    records, broken = sum(each.records for each in done), sum(each.broken for each in done)
    listed = [entry for each in done for entry in each.skipped]
    check_skipped(listed, records + broken, max_skipped, ", ".join(captions.inputs), count=broken)
    counts = [each.captions for each in done]
    start = time.perf_counter()
    chosen = choose(parts_folder, counts, choice, out, memory=resources.memory, threads=resources.processes)
    seconds = time.perf_counter() - start
    if keys_only:
        written = write_keys(parts, counts, captions, out / "chosen.parquet", out)
    else:
        written = write_chosen(parts, counts, captions, out / "chosen.parquet", out / "chosen")
    summary = Summary(records, sum(counts), broken, chosen, tuple(written), rate, seconds)
    write_text(out / "summary.json", json.dumps(summary.to_json(), indent=2) + "\n")
    return summary


def _extract(
    parts: Sequence[Part],
    captions: CaptionsConfig,
    pipeline: str | None,
    versions: dict[str, str],
    folder: Path,
    resources: Resources,
    progress: Progress,
) -> tuple[list[PartDone], float | None]:
    """All parts in order, made where they are not there yet, and captions a second of those that were made."""
    done = {part.number: finished for part in parts if (finished := finished_part(folder, part)) is not None}
    for _ in done:
        progress(None, len(parts))
    missing = [part for part in parts if part.number not in done]
    start, found = time.perf_counter(), 0
    if missing:
        common = (missing, captions, pipeline, versions, folder, resources.processes)
        made = extract_here(*common) if resources.ray is None else extract_on_ray(*common, resources.ray)
        for each in made:
            done[each.part.number] = each
            found += each.captions
            progress(each, len(parts))
    rate = found / (time.perf_counter() - start) if missing else None
    return [done[part.number] for part in parts], rate


def _settle(file: Path, captions: CaptionsConfig, files: Sequence[Path], versions: dict[str, str]) -> None:
    """Write what phrases depend on, or check that the folder's are of the same. Raises DataError."""
    sizes = [[str(each), (found := each.stat()).st_size, found.st_mtime_ns] for each in files]
    settings = {"captions": captions.model_dump(), "files": sizes, **versions}
    if not file.exists():
        write_text(file, json.dumps(settings, indent=2) + "\n")
        return
    before = json.loads(file.read_text())
    if changed := [name for name in settings if name not in before or before[name] != settings[name]]:
        raise DataError(
            f"{file.parent}: holds phrases of other {' and '.join(changed)} (see {file.name}); take another folder, or "
            "remove this one"
        )
