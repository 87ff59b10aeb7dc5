"""One self-contained HTML page, the same table as Markdown and as JSON, from the folders of some runs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from limbeck.report import charts
from limbeck.report.cases import make_cases
from limbeck.report.competition import Competition
from limbeck.report.curves import gradient_panels, loss_panels, pace_panels, term_panels, tone_of, trade_offs
from limbeck.report.details import cost_details, figure_details
from limbeck.report.headline import Headline, make_headline
from limbeck.report.read_competition import read_competition
from limbeck.report.records import ReportError
from limbeck.report.rounds import competition_json, make_views
from limbeck.report.runs import Environment as RunEnvironment
from limbeck.report.runs import Run, RunEntry, names_of, read_run
from limbeck.report.stages import Story, method_of, read_story, stage_curves
from limbeck.report.table import as_json, make_table


@dataclass(frozen=True, kw_only=True)
class ReportPaths:
    """What `make_report` has written."""

    html: Path
    markdown: Path
    json: Path


def make_report(out: Path, runs: Sequence[RunEntry], title: str, notes: str) -> ReportPaths:
    """Write `report.html`, `report.md` and `report.json` into `out` and say where they are.

    The page needs nothing but itself: no network, no fonts, no other file. What a run has not measured is left out
    of the table or shown as a dash, and named on the page.

    Args:
        out: folder of the three files, made if it is not there.
        runs: the models, in the order of the table's rows; names must differ.
        title: heading of the page.
        notes: paragraphs (a blank line between two) on what was run, whom to credit, what to beware of.

    Raises:
        ReportError: no runs, two of one name, a folder that is not there or a file in it that cannot be read.
    """
    if not runs:
        raise ReportError("a report needs at least one run, found none")
    twice = [name for name, count in Counter(entry.name for entry in runs).items() if count > 1]
    if twice:
        raise ReportError(f"every run of a report needs a name of its own, found {twice[0]!r} more than once")
    read = [read_run(entry) for entry in runs]
    tones = tone_of(read)
    stories = _stories(runs, tones)
    story_tones = {story.name: story.tone for story in stories}
    competitions = _competitions(runs, tones)
    cases = make_cases(read)
    pairs = [run for run in read if not run.writer]
    shown = {
        "title": title,
        "notes": [part.strip() for part in notes.split("\n\n") if part.strip()],
        "made": datetime.now(UTC),
        "runs": read,
        "pairs": pairs,
        "writers": [run for run in read if run.writer],
        "stories": stories,
        "origins": _origins(read, stories, tones),
        "tone": tones,
        "table": make_table(read),
        "headline": _headline(read, competitions),
        "competitions": make_views(competitions, cases),
    }
    paths = ReportPaths(html=out / "report.html", markdown=out / "report.md", json=out / "report.json")
    page = (
        _templates()
        .get_template("page.html.j2")
        .render(
            **shown,
            style=_asset("style.css"),
            script=_asset("page.js"),
            chart=charts,
            trade_offs=trade_offs(read),
            losses=loss_panels(pairs, tones),
            terms=term_panels(pairs, tones),
            gradients=gradient_panels(pairs),
            curves=stage_curves(stories),
            paces=pace_panels(stories, story_tones),
            shares=gradient_panels(stories),
            cost_details=cost_details(read),
            figure_details=figure_details(read),
            writers_style=_asset("writers.css"),
            competition_style=_asset("competition.css"),
            cases=cases,
        )
    )
    markdown = _templates().get_template("report.md.j2").render(**shown)
    out.mkdir(parents=True, exist_ok=True)
    paths.html.write_text(page, encoding="utf-8")
    paths.markdown.write_text(markdown, encoding="utf-8")
    told = {each.model: {"competition": competition_json(each)} for each in competitions}
    rows = [row | told.get(run.name, {}) for run, row in zip(read, as_json(read), strict=True)]
    paths.json.write_text(json.dumps(rows, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return paths


def _stories(entries: Sequence[RunEntry], tones: Mapping[str, str]) -> list[Story]:
    """The training of every run folder that models were made in, once, in the colour of its last model."""
    folders = {entry.trained_in: tones[entry.name] for entry in entries if entry.trained_in is not None}
    named = _run_names(entries)
    return [read_story(folder, named[folder], tone) for folder, tone in folders.items()]


def _competitions(entries: Sequence[RunEntry], tones: Mapping[str, str]) -> list[Competition]:
    """The competition of every CoMD run that holds one."""
    students = {
        each.trained_in: each.name for each in entries if each.trained_in and method_of(each.trained_in) == "comd"
    }
    named = _run_names(entries)
    found = (read_competition(folder, named[folder], name, tones[name]) for folder, name in students.items())
    return [each for each in found if each is not None]


def _run_names(entries: Sequence[RunEntry]) -> dict[Path, str]:
    """A name of its own for every run folder."""
    folders = list(dict.fromkeys(entry.trained_in or entry.folder for entry in entries))
    return dict(zip(folders, names_of(folders), strict=True))


def _headline(models: Sequence[Run], competitions: Sequence[Competition]) -> Headline:
    """How far a competition has come where that is all there is to say."""
    if len(models) == len(competitions) == 1:
        return Headline(competitions[0].sentence, ())
    return make_headline(models)


class Origin(NamedTuple):
    """What a section on what was run says of a model or, of those that share one, of a run."""

    name: str
    role: str
    tone: str
    missing: tuple[str, ...]
    environment: RunEnvironment | None
    recipe: str | None


def _origins(models: Sequence[Run], stories: Sequence[Story], tones: Mapping[str, str]) -> list[Origin]:
    """Models with a run folder of their own; then shared runs, and those of their models that lack something."""
    own = [run for run in models if not run.writer]
    lacking = [run for run in models if run.writer and run.missing]
    return [
        *(Origin(run.name, run.role, tones[run.name], run.missing, run.environment, run.recipe) for run in own),
        *(Origin(each.name, "run", each.tone, each.missing, each.environment, each.recipe) for each in stories),
        *(Origin(run.name, run.role, tones[run.name], run.missing, None, None) for run in lacking),
    ]


@cache
def _templates() -> Environment:
    """The templates of this folder; whatever is put into the page is escaped, and a misspelt name is an error."""
    environment = Environment(
        loader=PackageLoader("limbeck.report"),
        autoescape=lambda name: name is None or not name.endswith(".md.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["cell"] = markdown_cell
    environment.filters["duration"] = duration
    return environment


def _asset(name: str) -> Markup:
    """A file of ours that goes into the page as it stands."""
    return Markup(Path(__file__).with_name("templates").joinpath(name).read_text(encoding="utf-8"))


def markdown_cell(text: str) -> str:
    """Text that stays inside its cell of a Markdown table, and plain."""
    plain = " ".join(text.split())
    return "".join("\\" + char if char in "\\`*_[]<>|" else char for char in plain)


def duration(seconds: float) -> str:
    """75.3 as 1 min 15 s."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
