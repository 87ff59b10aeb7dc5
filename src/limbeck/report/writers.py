"""What a run folder says of a model that writes: the figures of its benchmarks, and what an answer costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from limbeck.report.records import Record, read_object

COUNTS = ("questions", "pictures", "skipped", "unmatched")
"""figures of a summary that say how much was asked, not how well it was answered"""
SHOWN_APART = ("vqa", "captioning", "retrieval")
"""entries of a summary that have columns of their own"""
CAPTION_FIGURES = ("CIDEr", "BLEU-4")
"""of a captioning benchmark, the ones that get a column"""


@dataclass(frozen=True, kw_only=True)
class Writer:
    """What is known of a model that writes beyond what is known of every model."""

    figures: Mapping[str, float]
    """every number of the summary by its path: `pope by_split random F1`"""
    benchmarks: Mapping[str, float]
    """the figures that get columns, beside those of every model: `pope F1`; a mere accuracy by the benchmark's name"""
    towers: Mapping[str, float]
    """parameters by tower"""
    costs: Mapping[str, float]
    """`first_token_ms`, `next_token_ms`, `tokens_per_second` where they were measured"""
    macs: Mapping[str, float]
    """of `first_token` and `next_token`, products inside attention left out"""
    macs_with_attention: Mapping[str, float]
    """of `first_token` and `next_token`"""
    settings: Mapping[str, str]
    """what was measured how: batch size, words and tokens, device"""


def read_writer(folder: Path) -> Writer:
    """Read `evaluation/summary.json` and `profile.json`; what is not there stays empty.

    Raises:
        ReportError: one of them holds something else than it should.
    """
    summary = read_object(folder / "evaluation" / "summary.json") or Record({}, "summary.json")
    profile = read_object(folder / "profile.json") or Record({}, "profile.json")
    latency = profile.part("latency_ms")
    costs = {
        "first_token_ms": latency.maybe_number("first_token"),
        "next_token_ms": latency.maybe_number("next_token"),
        "tokens_per_second": profile.maybe_number("tokens_per_second"),
    }
    settings = ("batch_size", "words", "prompt_tokens", "new_tokens", "image_size", "device", "dtype", "threads")
    return Writer(
        figures=_flat(summary),
        benchmarks=_columns(summary),
        towers=profile.part("parameters_by_tower").all_numbers(),
        costs={key: value for key, value in costs.items() if value is not None},
        macs=profile.part("macs_by_part").all_numbers(),
        macs_with_attention=profile.part("macs_with_attention_by_part").all_numbers(),
        settings={key: profile.text(key) for key in settings if key in profile},
    )


def is_writers(folder: Path) -> bool:
    """Whether a folder's profile is that of a model that writes. Raises ReportError where it cannot be read."""
    profile = read_object(folder / "profile.json")
    return profile is not None and "tokens_per_second" in profile


def _columns(summary: Record) -> dict[str, float]:
    """The figures of every benchmark that has no columns of its own yet."""
    found: dict[str, float] = {}
    for name in summary.data:
        if name in SHOWN_APART:
            continue
        figures = {key: value for key, value in summary.part(name).all_numbers().items() if key not in COUNTS}
        if set(CAPTION_FIGURES) <= figures.keys():
            figures = {key: figures[key] for key in CAPTION_FIGURES}
        found |= {name if key == "accuracy" else f"{name} {key}": value for key, value in figures.items()}
    return found


def _flat(record: Record, path: str = "") -> dict[str, float]:
    """All numbers of an object and of the objects inside it, by their path."""
    numbers = record.all_numbers()
    found: dict[str, float] = {}
    for key, value in record.data.items():
        if key in numbers:
            found[f"{path}{key}"] = numbers[key]
        elif isinstance(value, Mapping):
            found |= _flat(record.part(key), f"{path}{key} ")
    return found
