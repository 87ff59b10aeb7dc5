"""The first result: a plain and a distilled student of a teacher that comes with limbeck, and the page beside them."""

from __future__ import annotations

from pathlib import Path

from limbeck.data.builtin import ATTRIBUTION
from limbeck.recipe import load_recipe
from limbeck.report.page import ReportPaths, make_report
from limbeck.report.runs import RunEntry
from limbeck.run import run_recipe

NOTES = (
    "A teacher, a small student trained without distillation, and the same student distilled with DLIP: the same data, "
    "steps, seed and first weights. The distilled student's contrastive loss has half the weight. All three are tried "
    "on scenes whose combinations of things were held out of training; the distillation weights were chosen with these "
    "scenes in view, so take its figures as somewhat favourable."
)


def quickstart(out: Path) -> ReportPaths:
    """Train both students, evaluate and profile all three models, write the page. Goes on where it was cut off."""
    for name in ("plain", "distilled"):
        recipe = "dlip/quickstart" + ("_plain" if name == "plain" else "")
        run_recipe(load_recipe(recipe, [f"output={out / name}"]))
    return report_runs(out, [out / "plain", out / "distilled"], "limbeck quickstart", f"{NOTES}\n\n{ATTRIBUTION}")


def report_runs(out: Path, folders: list[Path], title: str, notes: str = "") -> ReportPaths:
    """The page of some run folders; the teacher that they share comes first, by its role and once."""
    teachers = [folder / "teacher" for folder in folders if (folder / "teacher" / "profile.json").is_file()]
    entries = [RunEntry(role="teacher", name="teacher", folder=folder) for folder in teachers[:1]]
    for folder in folders:
        role = "distilled" if (folder / "teacher").is_dir() else "plain"
        entries.append(RunEntry(role=role, name=folder.name, folder=folder))
    return make_report(out, entries, title, notes)
