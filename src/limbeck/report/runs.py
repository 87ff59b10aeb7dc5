"""What a run folder says, read once. Every piece but the folder itself may be missing; the page then says so."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from limbeck.report.examples import GalleryItem, Predictions, read_gallery, read_predictions, read_written
from limbeck.report.records import ReportError, read_lines, read_object, read_yaml
from limbeck.report.writers import Writer, read_writer

COSTS = ("parameters", "macs", "latency_ms", "peak_memory_mib")
"""what a model costs, in the order in which it is shown"""


@dataclass(frozen=True, kw_only=True)
class RunEntry:
    """A run to report."""

    role: str
    """`teacher`, `plain` (trained without distillation), `distilled`, `tiny`, `large`, `student`, or another word"""
    name: str
    folder: Path
    kind: Literal["pairs", "writer"] = "pairs"
    """`writer`: a model that was tried on generative benchmarks"""
    trained_in: Path | None = None
    """a writer's run folder, which holds recipe and log of all the models that were trained in it"""


@dataclass(frozen=True, kw_only=True)
class LogRow:
    """One logging step of training."""

    stage: str
    step: int
    loss: float | None
    learning_rate: float | None
    terms: Mapping[str, float]
    gradient_share: Mapping[str, float]
    samples_per_second: float | None


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Where and how a run was made."""

    versions: Mapping[str, str]
    machine: Mapping[str, str]
    seed: str | None
    data_fingerprint: str | None
    command: str | None
    started: str | None
    seconds: float | None


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything the report knows of one model."""

    role: str
    name: str
    recipe: str | None
    environment: Environment | None
    log: tuple[LogRow, ...]
    metrics: Mapping[str, float]
    """quality by metric, flat: `TR@1`, `CIDEr`, `VQA`..."""
    tokenizer: str | None
    """which tokenizer the caption metrics were counted with"""
    by_kind: Mapping[str, float]
    """VQA accuracy by kind of question"""
    costs: Mapping[str, float]
    """those of `COSTS` that were measured; parameters, MACs of one picture and text, milliseconds, MiB"""
    macs_with_attention: float | None
    latency_ms: Mapping[str, float]
    """milliseconds by part: image, text, fusion, whole"""
    gallery: tuple[GalleryItem, ...]
    predictions: Predictions
    missing: tuple[str, ...]
    """files that the folder lacks, relative to it"""
    writer: Writer | None = None
    """what else is known of a model that writes"""
    student: Mapping[str, object] | None = None
    """the recipe's `student` section; None where there is no recipe, or of a model that writes"""


EXPECTED = (
    "recipe.yaml",
    "environment.json",
    "log.jsonl",
    "evaluation/summary.json",
    "evaluation/retrieval.jsonl",
    "evaluation/captioning.jsonl",
    "evaluation/vqa.jsonl",
    "profile.json",
    "gallery/gallery.json",
)


WRITERS_EXPECTED = ("evaluation/summary.json", "profile.json", "gallery/gallery.json")
"""of a model that writes; the rest lies in the run folder, where it stands for every model of the run"""


def names_of(folders: Sequence[Path], taken: Collection[str] = ()) -> list[str]:
    """What tells folders apart: of each path the shortest end that is no other's, and that is not `taken`."""
    paths = [Path(os.path.abspath(folder)) for folder in folders]
    return [_name_of(path, [other for other in paths if other != path], taken) for path in paths]


def _name_of(path: Path, others: Sequence[Path], taken: Collection[str]) -> str:
    for length in range(1, len(path.parts)):
        end = path.parts[-length:]
        if "/".join(end) not in taken and not any(other.parts[-length:] == end for other in others):
            return "/".join(end)
    return str(path)


def read_run(entry: RunEntry) -> Run:
    """Read a run folder.

    Raises:
        ReportError: the folder does not exist, or one of its files holds something else than it should.
    """
    folder = entry.folder
    if not folder.is_dir():
        raise ReportError(f"the run {entry.name!r} ({entry.role}): there is no folder {folder}")
    return _read_writer(entry) if entry.kind == "writer" else _read_pairs(entry)


def _read_pairs(entry: RunEntry) -> Run:
    folder = entry.folder
    metrics, by_kind, tokenizer = read_summary(folder / "evaluation" / "summary.json")
    costs, with_attention, latency = read_profile(folder / "profile.json")
    recipe = folder / "recipe.yaml"
    settings = read_yaml(recipe)
    return Run(
        role=entry.role,
        name=entry.name,
        recipe=recipe.read_text(encoding="utf-8") if recipe.exists() else None,
        environment=read_environment(folder / "environment.json"),
        log=read_log(folder / "log.jsonl"),
        metrics=metrics,
        tokenizer=tokenizer,
        by_kind=by_kind,
        costs=costs,
        macs_with_attention=with_attention,
        latency_ms=latency,
        gallery=read_gallery(folder / "gallery"),
        predictions=read_predictions(folder / "evaluation"),
        missing=tuple(name for name in EXPECTED if not (folder / name).exists()),
        student=None if settings is None else settings.part("student").data,
    )


def _read_writer(entry: RunEntry) -> Run:
    folder = entry.folder
    metrics, by_kind, tokenizer = read_summary(folder / "evaluation" / "summary.json")
    costs, with_attention, latency = read_profile(folder / "profile.json")
    writer = read_writer(folder)
    gallery = read_gallery(folder / "gallery")
    return Run(
        role=entry.role,
        name=entry.name,
        recipe=None,
        environment=None,
        log=(),
        metrics={**metrics, **writer.benchmarks},
        tokenizer=tokenizer,
        by_kind=by_kind,
        costs={**costs, **writer.costs},
        macs_with_attention=with_attention,
        latency_ms=latency,
        gallery=gallery,
        predictions=read_written(folder / "evaluation", gallery),
        missing=tuple(name for name in WRITERS_EXPECTED if not (folder / name).exists()),
        writer=writer,
    )


def read_summary(path: Path) -> tuple[dict[str, float], dict[str, float], str | None]:
    """Quality by metric, VQA accuracy by kind, and the captions' tokenizer; empty where there is no such file."""
    summary = read_object(path)
    if summary is None:
        return {}, {}, None
    captioning, vqa = summary.part("captioning"), summary.part("vqa")
    metrics = summary.part("retrieval").all_numbers() | captioning.all_numbers()
    if "accuracy" in vqa:
        metrics["VQA"] = vqa.number("accuracy")
    return metrics, vqa.part("by_kind").all_numbers(), captioning.maybe_text("tokenizer")


def read_profile(path: Path) -> tuple[dict[str, float], float | None, dict[str, float]]:
    """Costs by `COSTS`, MACs with attention, and milliseconds by part; empty where there is no such file."""
    profile = read_object(path)
    if profile is None:
        return {}, None, {}
    latency = profile.part("latency_ms")
    found = {
        "parameters": profile.maybe_number("parameters"),
        "macs": profile.maybe_number("macs"),
        "latency_ms": latency.maybe_number("whole"),
        "peak_memory_mib": profile.maybe_number("peak_memory_mib"),
    }
    costs = {key: value for key, value in found.items() if value is not None}
    return costs, profile.maybe_number("macs_with_attention"), latency.all_numbers()


def read_environment(path: Path) -> Environment | None:
    """Where a run was made; None where there is no such file."""
    found = read_object(path)
    if found is None:
        return None
    return Environment(
        versions={key: str(value) for key, value in found.part("versions").data.items() if value is not None},
        machine={key: str(value) for key, value in found.part("machine").data.items() if value is not None},
        seed=found.maybe_text("seed"),
        data_fingerprint=found.maybe_text("data_fingerprint"),
        command=found.maybe_text("command"),
        started=found.maybe_text("started"),
        seconds=found.maybe_number("seconds"),
    )


def read_log(path: Path) -> tuple[LogRow, ...]:
    """The rows in order; of two that stand for the same step of a stage (a run that went on), the later one."""
    rows: dict[tuple[str, int], LogRow] = {}
    for record in read_lines(path):
        row = LogRow(
            stage=record.text("stage"),
            step=int(record.number("step")),
            loss=record.maybe_number("loss"),
            learning_rate=record.maybe_number("learning_rate"),
            terms=record.part("terms").all_numbers(),
            gradient_share=record.part("gradient_share").all_numbers(),
            samples_per_second=record.maybe_number("samples_per_second"),
        )
        rows[row.stage, row.step] = row
    return tuple(rows.values())
