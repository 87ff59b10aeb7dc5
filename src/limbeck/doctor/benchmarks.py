"""What models that write are tried on after training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from limbeck.doctor.finding import Finding, broken
from limbeck.evaluation.generative.benchmarks import BenchmarkConfig, load_benchmark


def check_benchmarks(configs: Sequence[BenchmarkConfig], base: Path) -> Finding:
    """Whether the files of every benchmark can be read, as before training; relative paths start from `base`."""
    items, wrong = dict[str, int](), list[str]()
    for config in configs:
        name = config.name or config.benchmark
        try:
            items[name] = len(load_benchmark(config, base))
        except Exception as error:  # whatever stops a benchmark here stops a run before it trains
            wrong.append(f"{name}: {broken(name, error).text}")
    if wrong:
        return Finding("benchmarks", "failed", "; ".join(wrong), items)
    return Finding("benchmarks", "ok", ", ".join(f"{name} {count}" for name, count in items.items()), items)
