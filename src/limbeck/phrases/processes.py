"""Parts on several cores of one machine, or on a Ray cluster: the same parts either way."""

from __future__ import annotations

import json
import multiprocessing
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from limbeck.data.examples import DataError
from limbeck.phrases.inputs import CaptionsConfig, Part
from limbeck.phrases.parts import Extractor, PartDone, part_done

_extractor: Extractor | None = None
"""of a worker process"""


def extract_here(
    parts: Sequence[Part],
    config: CaptionsConfig,
    pipeline: str | None,
    versions: Mapping[str, str],
    folder: Path,
    processes: int,
) -> Iterator[PartDone]:
    """Make the parts in so many processes; gives each as it is finished. Raises DataError."""
    context = multiprocessing.get_context("spawn")
    arguments = (config, pipeline, dict(versions), folder)
    pool = ProcessPoolExecutor(min(processes, len(parts)), context, initializer=_start, initargs=arguments)
    try:
        futures = [pool.submit(_extract, part) for part in parts]
        for future in as_completed(futures):
            yield future.result()
    except BrokenProcessPool as error:
        raise DataError(
            "a process that looks for phrases died (out of memory? see above); finished parts are kept, and the same "
            "command goes on"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def extract_on_ray(
    parts: Sequence[Part],
    config: CaptionsConfig,
    pipeline: str | None,
    versions: Mapping[str, str],
    folder: Path,
    processes: int,
    address: str,
) -> Iterator[PartDone]:
    """Make the parts by Ray Data with so many workers of one core each; `address` is a cluster's, or `local`.

    Inputs and `folder` must be at the same paths on every machine. Raises DataError.
    """
    try:
        import ray  # pyright: ignore[reportMissingImports]
        import ray.data  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise DataError(f"--ray needs Ray Data: pip install 'limbeck[ray]' ({error})") from error
    context = ray.init(address=address, num_cpus=processes if address == "local" else None, log_to_driver=False)
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        rows = ray.data.from_items([asdict(part) for part in parts], override_num_blocks=len(parts))
        done = rows.map_batches(
            _RayExtractor,
            fn_constructor_args=(config.model_dump(), pipeline, dict(versions), str(folder)),
            batch_size=1,
            batch_format="pyarrow",
            concurrency=processes,
            num_cpus=1,
        )
        for row in done.iter_rows():
            yield part_done(json.loads(row["done"]))
    finally:
        context.disconnect()
        ray.shutdown()


class _RayExtractor:
    """One worker of Ray Data: a part's description in, what the finished part says out."""

    def __init__(self, config: dict[str, Any], pipeline: str | None, versions: dict[str, str], folder: str) -> None:
        _start(CaptionsConfig.model_validate(config), pipeline, versions, Path(folder))

    def __call__(self, batch: Any) -> dict[str, list[str]]:
        return {"done": [json.dumps(asdict(_extract(Part(**row)))) for row in batch.to_pylist()]}


def _start(config: CaptionsConfig, pipeline: str | None, versions: Mapping[str, str], folder: Path) -> None:
    global _extractor
    sys.modules.setdefault("torch", cast(Any, None))  # else thinc loads it: 200 MB a process, and no use for it here
    import threadpoolctl

    _extractor = Extractor(config, pipeline, versions, folder)
    threadpoolctl.threadpool_limits(1)  # the other cores have processes of their own


def _extract(part: Part) -> PartDone:
    assert _extractor is not None
    return _extractor(part)
