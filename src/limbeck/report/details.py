"""Tables of everything that is known of models that write: costs by tower and token, figures of every benchmark."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from limbeck.report.runs import Run
from limbeck.report.table import NONE, mebibytes, millions, milliseconds, operations
from limbeck.report.writers import Writer

PARTS = (("first_token", "to the first token"), ("next_token", "for each further token"))
TIMES = (*PARTS, ("whole", "of the whole answer"))


@dataclass(frozen=True)
class Detail:
    """A row: what it is, and each model's value as text."""

    label: str
    cells: tuple[str, ...]


def cost_details(runs: Sequence[Run]) -> list[Detail]:
    """What the models that write cost; empty where none was profiled."""
    writers = [(run, run.writer) for run in runs if run.writer]
    if not any(run.costs for run, _ in writers):
        return []
    rows = [_row("Parameters", writers, lambda run, _: run.costs, "parameters", millions)]
    for tower in dict.fromkeys(tower for _, writer in writers for tower in writer.towers):
        rows.append(_row(f"Parameters, {tower}", writers, lambda _, writer: writer.towers, tower, millions))
    for part, label in PARTS:
        rows.append(_row(f"MACs {label}", writers, lambda _, writer: writer.macs, part, operations))
        label = f"MACs {label}, with attention"
        rows.append(_row(label, writers, lambda _, writer: writer.macs_with_attention, part, operations))
    for part, label in TIMES:
        rows.append(_row(f"Time {label}", writers, lambda run, _: run.latency_ms, part, milliseconds))
    rows.append(_row("Tokens per second", writers, lambda _, writer: writer.costs, "tokens_per_second", plainly))
    rows.append(_row("Memory", writers, lambda run, _: run.costs, "peak_memory_mib", mebibytes))
    return [*rows, Detail("Measured with", tuple(_settings(writer.settings) for _, writer in writers))]


def figure_details(runs: Sequence[Run]) -> list[Detail]:
    """Every number of the evaluation of models that write, by its path in the summary."""
    writers = [(run, run.writer) for run in runs if run.writer]
    paths = dict.fromkeys(path for _, writer in writers for path in writer.figures)
    return [_row(path, writers, lambda _, writer: writer.figures, path, plainly) for path in paths]


def plainly(value: float) -> str:
    """12.3456789 as 12.3457."""
    return f"{value:.6g}"


def _row(
    label: str,
    writers: Sequence[tuple[Run, Writer]],
    read: Callable[[Run, Writer], Mapping[str, float]],
    key: str,
    show: Callable[[float], str],
) -> Detail:
    found = [read(run, writer).get(key) for run, writer in writers]
    return Detail(label, tuple(NONE if value is None else show(value) for value in found))


def _settings(settings: Mapping[str, str]) -> str:
    """How a model's costs were measured, in words."""
    if not settings:
        return NONE
    labels = {
        "batch_size": "{} at a time",
        "words": "a question of {} words",
        "prompt_tokens": "{} tokens with the picture",
        "new_tokens": "{} new tokens",
        "device": "{}",
        "dtype": "{}",
        "threads": "{} threads",
    }
    return ", ".join(label.format(settings[key]) for key, label in labels.items() if key in settings)
