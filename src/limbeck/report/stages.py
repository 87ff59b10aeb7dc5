"""What the stages of a run did: what trained and who taught whom by the recipe, and the curves of each stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from limbeck.report.charts import Panel, Point, line_panel
from limbeck.report.records import Record, read_yaml
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
COMD_TRAINS = {"connect": "the connector, and nothing else", "tune": "connector and language model"}
"""what a CoMD stage of a kind trains where the recipe names nothing; the eye never trains"""
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
    """who teaches whom by which divergence, or whose answers are learnt"""
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
    method: str | None
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
    path = folder / "recipe.yaml"
    recipe, method = read_yaml(path) or Record({}, str(path)), method_of(folder)
    if method == "comd":
        models, stages = _competitors(recipe), (*_shared(recipe, _comd_stage), *_tunings(recipe))
    else:
        models, stages = _models(recipe.part("duet")), _shared(recipe, _stage)
    held = method == "comd" and "competition" in recipe
    expected = (*STORY_EXPECTED, *(["competition.json"] if held else []))
    return Story(
        name=name,
        tone=tone,
        method=method,
        recipe=path.read_text(encoding="utf-8") if path.exists() else None,
        models=models,
        stages=stages,
        environment=read_environment(folder / "environment.json"),
        log=read_log(folder / "log.jsonl"),
        missing=tuple(name for name in expected if not (folder / name).exists()),
    )


def method_of(folder: Path) -> str | None:
    """The method of a run folder's recipe; None where it names none. Raises ReportError where it is no YAML object."""
    recipe = read_yaml(folder / "recipe.yaml")
    method = recipe.data.get("method") if recipe else None
    return method if isinstance(method, str) else None


def is_distilled(folder: Path) -> bool:
    """Whether a run folder's recipe has a teacher. Raises ReportError where it is no YAML object."""
    recipe = read_yaml(folder / "recipe.yaml")
    return recipe is not None and recipe.data.get("teacher") is not None


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


def _shared(recipe: Record, read: Callable[[Record, Record], Stage]) -> tuple[Stage, ...]:
    return tuple(read(stage, recipe.part("training")) for stage in recipe.parts("stages"))


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


def _competitors(recipe: Record) -> str:
    """Who learns from whom by a CoMD recipe, in a sentence."""
    student = recipe.part("student")
    if "eye" in student:
        parts = f"connector {student.maybe_text('connector') or 'linear'}, {_language_model(student.part('language'))}"
        learner = f"{student.text('eye')}, which never trains, {parts}"
    elif "folder" in student:
        learner = student.text("folder")
    else:
        return ""
    rank = recipe.part("lora").maybe_text("rank")
    adapted = f", LoRA of rank {rank} in its language model" if rank else ""
    roles = [f"{role}: {_role(recipe, role)}" for role in ("teacher", "assessor", "augmentor", "judge")]
    return f"Student: {learner}{adapted}; {'; '.join(roles)}."


def _role(recipe: Record, role: str) -> str:
    """Who fills a role of a competition."""
    filled = recipe.part(role)
    if "model" in filled:
        return f"{filled.text('model')}, by a server"
    if "folder" in filled:
        return filled.text("folder")
    return "the teacher" if role in ("assessor", "augmentor") and role not in recipe else "none"


def _comd_stage(stage: Record, training: Record) -> Stage:
    kind = stage.text("kind")
    trainable = stage.texts("trainable")
    return Stage(
        name=stage.text("name"),
        kind=kind,
        paper="",
        trains=", ".join(trainable) if trainable else COMD_TRAINS.get(kind, "what the method trains"),
        teaches="the answers of its data",
        share=None,
        data=", ".join(_source(source) for source in stage.parts("data")),
        settings=_settings(training, stage.part("training")),
    )


def _tunings(recipe: Record) -> list[Stage]:
    """The stages of a competition, named as the run names them."""
    competition = recipe.part("competition")
    tuning = competition.part("tuning")
    first = ", ".join(_source(source) for source in competition.parts("data"))
    trainable = tuning.texts("trainable")
    later = "what round {} has written"
    if tuning.maybe_text("pool") == "cache":
        later = "all instructions up to what round {} has written"
    return [
        Stage(
            name=f"tune-{number}",
            kind="tune",
            paper="",
            trains=", ".join(trainable) if trainable else COMD_TRAINS["tune"],
            teaches="the teacher\N{RIGHT SINGLE QUOTATION MARK}s answers",
            share=None,
            data=f"the first pool: {first}" if number == 1 else later.format(number - 1),
            settings=_settings(recipe.part("training"), tuning.part("training")),
        )
        for number in range(1, int(competition.maybe_number("tunings") or 0) + 1)
    ]


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
