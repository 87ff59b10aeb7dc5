"""What the stages of a run did: what trained and who taught whom by the recipe, and the curves of each stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from limbeck.report.charts import Panel, Point, line_panel
from limbeck.report.records import Record, ReportError
from limbeck.report.runs import Environment, LogRow, read_environment, read_log

KINDS = {"language": "", "align_tiny": "I-a", "align_large": "I-b", "tune": "II"}
"""a CTVLM stage's kind -> the paper's name of it"""
TRAINS = {
    "language": "the large model, on texts alone",
    "align_tiny": "the tiny model and its connector, with heads that compare pictures and texts",
    "align_large": "the connector to the large model, and nothing else",
    "tune": "the tiny model, both connectors and the large model",
}
"""what a stage of a kind trains where the recipe names nothing; the eye never trains"""
STORY_EXPECTED = ("recipe.yaml", "environment.json", "log.jsonl")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage as the recipe has it."""

    name: str
    kind: str
    paper: str
    """the paper's name; empty where it has none"""
    trains: str
    teaches: str
    """who teaches whom by which divergence"""
    share: float | None
    """lambda; None where there is no divergence"""
    data: str
    settings: str
    """learning rate, batch and length"""


@dataclass(frozen=True, kw_only=True)
class Story:
    """A run folder's training, which all its models share."""

    name: str
    tone: str
    recipe: str | None
    models: str
    """what the recipe puts together, in a sentence; empty where it does not say"""
    stages: tuple[Stage, ...]
    environment: Environment | None
    log: tuple[LogRow, ...]
    missing: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class StageCurves:
    """The curves of one stage, every run in each panel."""

    name: str
    panels: tuple[Panel, ...]


def read_story(folder: Path, name: str, tone: str) -> Story:
    """Read a run folder's recipe, log and environment.

    Raises:
        ReportError: one of them holds something else than it should.
    """
    text, models, stages = None, "", ()
    path = folder / "recipe.yaml"
    if path.exists():
        text = path.read_text(encoding="utf-8")
        recipe = _recipe(text, path)
        models = _models(recipe.part("duet"))
        stages = tuple(_stage(stage, recipe.part("training")) for stage in recipe.parts("stages"))
    return Story(
        name=name,
        tone=tone,
        recipe=text,
        models=models,
        stages=stages,
        environment=read_environment(folder / "environment.json"),
        log=read_log(folder / "log.jsonl"),
        missing=tuple(name for name in STORY_EXPECTED if not (folder / name).exists()),
    )


def method_of(folder: Path) -> str | None:
    """The method of a run folder's recipe; None where it names none. Raises ReportError where it is no YAML object."""
    path = folder / "recipe.yaml"
    method = _recipe(path.read_text(encoding="utf-8"), path).data.get("method") if path.exists() else None
    return method if isinstance(method, str) else None


def stage_curves(stories: Sequence[Story]) -> list[StageCurves]:
    """For each stage the loss and every one of its terms, divergences too, over the stage's own steps."""
    stages = dict.fromkeys(row.stage for story in stories for row in story.log)
    return [StageCurves(name=stage, panels=tuple(_panels(stories, stage))) for stage in stages]


def _panels(stories: Sequence[Story], stage: str) -> list[Panel]:
    terms = dict.fromkeys(term for story in stories for row in story.log if row.stage == stage for term in row.terms)
    panels: list[Panel] = []
    for term in (None, *terms):
        series: list[tuple[str, str, list[Point]]] = []
        for story in stories:
            rows = [row for row in story.log if row.stage == stage]
            values = [(row.step, row.loss if term is None else row.terms.get(term)) for row in rows]
            points = [(float(step), value) for step, value in values if value is not None]
            if points:
                series.append((story.name, story.tone, points))
        if series:
            panels.append(line_panel("loss" if term is None else term, series))
    return panels


def _recipe(text: str, path: Path) -> Record:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ReportError(f"{path}: not YAML: {error}") from error
    if not isinstance(value, dict):
        raise ReportError(f"{path}: wanted a YAML object, found {type(value).__name__}")
    return Record(value, str(path))


def _models(duet: Record) -> str:
    """What a CTVLM recipe puts together, in a sentence."""
    if "eye" not in duet:
        return ""
    tiny, large = (_language_model(duet.part(role)) for role in ("tiny", "large"))
    details = ", ".join(
        f"{key} {duet.text(key)}" for key in ("fusion", "features", "connector", "embeddings") if key in duet
    )
    return f"The eye {duet.text('eye')}, which never trains; tiny: {tiny}; large: {large}; {details}."


def _language_model(choice: Record) -> str:
    if "folder" in choice:
        return choice.text("folder")
    sizes = ((choice.maybe_text("width"), "wide"), (choice.maybe_text("layers"), "layers"))
    return ", ".join([choice.text("kind"), *(f"{value} {what}" for value, what in sizes if value is not None)])


def _stage(stage: Record, training: Record) -> Stage:
    kind = stage.maybe_text("kind") or ""
    direction = direction_of(kind, stage.maybe_text("kd"), stage.maybe_text("models") or "both")
    trainable = stage.texts("trainable")
    trains = TRAINS.get(kind, "what the method trains")
    if stage.maybe_text("models") == "tiny":
        trains = "the tiny model alone"
    return Stage(
        name=stage.text("name"),
        kind=kind,
        paper=KINDS.get(kind, ""),
        trains=", ".join(trainable) if trainable else trains,
        teaches=_teaching(stage, kind, direction),
        share=stage.maybe_number("lambda") if direction != "none" else None,
        data=", ".join(_source(source) for source in stage.parts("data")),
        settings=_settings(training, stage.part("training")),
    )


def direction_of(kind: str, kd: str | None, models: str) -> str:
    """`none`, `forward` or `reverse`: what a stage says, else what the paper does in a stage of its kind."""
    if kd is not None:
        return kd
    if kind == "align_large":
        return "forward"
    return "reverse" if kind == "tune" and models == "both" else "none"


def _teaching(stage: Record, kind: str, direction: str) -> str:
    if direction == "none":
        return "no divergence"
    teacher, student = ("tiny", "large") if kind == "align_large" else ("large", "tiny")
    first, second = (teacher, student) if direction == "forward" else (student, teacher)
    answers = "the student\N{RIGHT SINGLE QUOTATION MARK}s own answers" if stage.data.get("on_policy") else ""
    tempered = stage.maybe_number("temperature") or 1.0
    details = [
        f"KL({first} \N{PARALLEL TO} {second})",
        *([f"temperature {tempered:g}"] if tempered != 1 else []),
        *([f"on {answers}"] if answers else []),
    ]
    return f"the {teacher} model teaches the {student} one: {direction} KL, {', '.join(details)}"


def _source(source: Record) -> str:
    inner = source.part("of").maybe_text("source")
    name = source.maybe_text("source") or "data"
    return f"{name} of {inner}" if inner else name


def _settings(shared: Record, own: Record) -> str:
    """The stage's learning rate, batch and length; its own settings go before those of all stages."""
    values = {**shared.data, **own.data}
    shown = [
        f"{label} {values[key]:g}"
        for key, label in (("learning_rate", "learning rate"), ("per_device_train_batch_size", "batch"))
        if isinstance(values.get(key), int | float)
    ]
    steps = values.get("max_steps")
    if isinstance(steps, int) and steps > 0:
        return ", ".join([*shown, f"{steps:,} steps"])
    epochs = values.get("num_train_epochs")
    return ", ".join([*shown, *([f"{epochs:g} epochs"] if isinstance(epochs, int | float) else [])])
