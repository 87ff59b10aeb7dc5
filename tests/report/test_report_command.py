"""What `limbeck report` makes of run folders: whose teacher, which names, whom to credit; and how paths are printed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from pages import report
from rich.console import Console
from typer.testing import CliRunner

from limbeck import cli, quickstart, run
from limbeck.data.builtin import ATTRIBUTION
from limbeck.report import ReportError, ReportPaths, RunEntry
from limbeck.report.runs import names_of


def distil(folder: Path, origin: str = "big", **changes: Any) -> Path:
    """Make a run a distilled one whose teacher's folder is copied from the run beside it, its profile changed."""
    recipe = {"method": "dlip", "teacher": {"folders": [origin]}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    shutil.copytree(folder.parent / "teacher", folder / "teacher")
    profile = folder / "teacher" / "profile.json"
    profile.write_text(json.dumps(json.loads(profile.read_text()) | changes))
    return folder


def score(folder: Path, change: float) -> None:
    """Change a run's teacher's TR@1."""
    path = folder / "teacher" / "evaluation" / "summary.json"
    summary = json.loads(path.read_text())
    summary["retrieval"]["TR@1"] += change
    path.write_text(json.dumps(summary))


@pytest.fixture
def folders(runs: list[RunEntry]) -> tuple[Path, Path]:
    """Two runs beside their teacher's."""
    return runs[1].folder, runs[2].folder


def test_one_teacher_that_was_evaluated_twice_is_one_row(folders, tmp_path):
    for folder in folders:
        distil(folder)
    score(folders[1], 0.4)  # what another device may make of it
    models = report(tmp_path / "out", *folders)[2]
    assert [model["name"] for model in models] == ["teacher", "plain", "distilled"]


def test_copies_of_a_teacher_in_two_places_are_one(folders, tmp_path):
    distil(folders[0])
    distil(folders[1], origin="copies/big")
    assert len(report(tmp_path / "out", *folders)[2]) == 3


def test_runs_of_different_teachers_are_refused(folders, tmp_path):
    distil(folders[0])
    distil(folders[1], parameters=9_000_000)
    with pytest.raises(ReportError, match=r"plain and .*distilled have different teachers \(8,000,000 and 9,000,000"):
        report(tmp_path / "out", *folders)


@pytest.mark.parametrize(("origin", "change"), [("big", 5.0), ("seed1/big", 0.2)])
def test_a_teacher_that_was_trained_again_is_another_one(folders, tmp_path, origin, change):
    distil(folders[0])
    distil(folders[1], origin)
    score(folders[1], change)
    with pytest.raises(ReportError, match=r"different teachers \(TR@1 60.0 and 6.*report them apart"):
        report(tmp_path / "out", *folders)


def test_teachers_that_were_not_evaluated_are_told_apart_by_their_recipes(folders, tmp_path):
    for folder, origin in zip(folders, ("big", "huge"), strict=True):
        shutil.rmtree(distil(folder, origin) / "teacher")
    with pytest.raises(ReportError, match=r"different teachers \(big and huge\)"):
        report(tmp_path / "out", *folders)


@pytest.mark.parametrize("source", ["builtin:scenes", "builtin:openmoji"])
def test_whoever_shows_emojis_credits_them_once(folders, tmp_path, source):
    assert ATTRIBUTION not in report(tmp_path / "out", *folders)[0].markdown.read_text()
    (folders[1] / "recipe.yaml").write_text(f"method: dlip\nevaluation: {{data: {{source: '{source}'}}}}\n")
    assert report(tmp_path / "out", *folders)[0].markdown.read_text().count(ATTRIBUTION) == 1


def test_an_evaluation_alone_credits_emojis_too(folders, tmp_path):
    (folders[0] / "recipe.yaml").unlink()
    (folders[0] / "evaluated.json").write_text('{"recipe": {"evaluation": {"source": "builtin:scenes"}}}')
    assert ATTRIBUTION in report(tmp_path / "out", folders[0])[0].markdown.read_text()


def test_folders_of_one_name_are_told_apart_by_their_paths(folders, tmp_path):
    again = tmp_path / "seed1" / "plain"
    shutil.copytree(folders[0], again)
    models = report(tmp_path / "out", folders[0], again)[2]
    assert [model["name"] for model in models] == [f"{tmp_path.name}/plain", "seed1/plain"]


def test_a_run_called_teacher_stands_beside_the_teacher(folders, tmp_path):
    distil(folders[1])
    models = report(tmp_path / "out", tmp_path / "teacher", folders[1])[2]
    assert [model["name"] for model in models] == ["teacher", f"{tmp_path.name}/teacher", "distilled"]


def test_the_shortest_end_that_is_no_others_names_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = [Path("a/x/run"), Path("b/x/run"), Path("b/other")]
    assert names_of(paths) == ["a/x/run", "b/x/run", "other"]
    assert names_of([Path(".")]) == [tmp_path.name]
    assert names_of([Path("/")]) == ["/"]


def test_the_folder_that_one_stands_in_has_its_name(folders, tmp_path, monkeypatch):
    monkeypatch.chdir(folders[0])
    assert [model["name"] for model in report(tmp_path / "out", Path("."))[2]] == ["plain"]


def printed(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    """What a command says on a narrow terminal."""
    monkeypatch.setattr(cli, "console", Console(width=40))
    done = CliRunner().invoke(cli.app, list(arguments), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_paths_are_printed_whole_whatever_is_in_them(folders, tmp_path, monkeypatch):
    out = tmp_path / "a rather long name of a folder" / "[bold]x[/bold][" / "b [/bold]"
    files = [out / f"report.{kind}" for kind in ("html", "md", "json")]
    said = printed(monkeypatch, "report", str(folders[0]), "--out", str(out))
    assert said.splitlines() == [str(file) for file in files]

    paths = ReportPaths(html=files[0], markdown=files[1], json=files[2])
    monkeypatch.setattr(quickstart, "quickstart", lambda folder: paths)
    said = printed(monkeypatch, "quickstart", "--out", str(out))
    assert said == f"{files[1].read_text()}\nthe page: {files[0]}\n"

    monkeypatch.setattr(run, "run_recipe", lambda recipe: out)
    assert printed(monkeypatch, "train", "dlip/quickstart") == f"done: {out}; its page: limbeck report {out}\n"
