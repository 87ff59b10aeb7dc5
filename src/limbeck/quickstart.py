"""The first result: a plain and a distilled student of a teacher that comes with limbeck, and the page beside them."""

from __future__ import annotations

from pathlib import Path

from limbeck.data.builtin import ATTRIBUTION
from limbeck.recipe import load_recipe
from limbeck.report.page import ReportPaths, make_report
from limbeck.report.runs import RunEntry, names_of
from limbeck.report.stages import is_distilled, method_of
from limbeck.report.teachers import refuse_other_teachers
from limbeck.report.writers import is_writers
from limbeck.run import run_recipe

NOTES = (
    "A teacher, a small student trained without distillation, and the same student distilled: the same data, "
    "steps, seed and first weights, each student at learning rates that suit it. Distilled means DLIP's terms "
    "(hidden states and attention, tower by tower) and soft targets from the teacher's predictions, which the "
    "paper does not have. All three are tried on scenes whose combinations of things were held out of training. "
    "Learning rates, the weights of the distilled one's losses and the size of a batch were chosen on other scenes, "
    "those of training and the validation split; the weights of an earlier version, from which the search began, with "
    "the test scenes in view, and the one on answers was tried again because of them."
)


def quickstart(out: Path) -> ReportPaths:
    """Train both students, evaluate and profile all three models, write the page. Goes on where it was cut off."""
    for name in ("plain", "distilled"):
        recipe = "dlip/quickstart" + ("_plain" if name == "plain" else "")
        run_recipe(load_recipe(recipe, [f"output={out / name}"]))
    return report_runs(out, [out / "plain", out / "distilled"], "limbeck quickstart", NOTES)


def report_runs(out: Path, folders: list[Path], title: str, notes: str = "") -> ReportPaths:
    """The page of some run folders; the teacher that they share comes first, by its role and once.

    A run whose models write, such as CTVLM's or CoMD's, has a row for each of them; rows of one role stand together.

    Raises:
        ReportError: runs distilled from different teachers, one folder twice, or what `make_report` refuses.
    """
    writers = [folder for folder in folders if method_of(folder) in ("ctvlm", "comd") or is_writers(folder)]
    pairs = [folder for folder in folders if folder not in writers]
    teachers = [folder / "teacher" for folder in pairs if (folder / "teacher" / "profile.json").is_file()]
    refuse_other_teachers(pairs)
    entries = [RunEntry(role="teacher", name="teacher", folder=folder) for folder in teachers[:1]]
    names = dict(zip(folders, names_of(folders, taken=[entry.name for entry in entries]), strict=True))
    for folder in pairs:
        role = "distilled" if is_distilled(folder) else "plain"
        entries.append(RunEntry(role=role, name=names[folder], folder=folder))
    written = [entry for folder in writers for entry in _writers_of(folder, names[folder], alone=len(folders) == 1)]
    entries += sorted(written, key=lambda entry: WRITERS_ROLES.index(entry.role))
    credit = ATTRIBUTION if any(_shows_emojis(folder) for folder in folders) else ""
    return make_report(out, entries, title, "\n\n".join(filter(None, (notes, credit))))


WRITERS_ROLES = ("teacher", "tiny", "large", "student", "model")


def _shows_emojis(folder: Path) -> bool:
    """Whether the data that a run, or an evaluation alone, was made with has OpenMoji's pictures."""
    told = [
        place.read_text("utf-8") for name in ("recipe.yaml", "evaluated.json") if (place := folder / name).is_file()
    ]
    return any(source in text for text in told for source in ("builtin:scenes", "builtin:openmoji"))


def _writers_of(folder: Path, name: str, *, alone: bool) -> list[RunEntry]:
    """A CTVLM or CoMD run's two models, or the one model that a folder's evaluation and profile are of."""
    method = method_of(folder)
    if method == "comd":
        places = {"teacher": folder / "teacher", "student": folder}
        there = [role for role in places if role == "student" or (folder / role / "profile.json").is_file()]
    elif method == "ctvlm":
        places = {"tiny": folder / "tiny", "large": folder}
        there = [role for role in places if places[role].is_dir()]
    else:
        return [RunEntry(role="model", name=name, folder=folder, kind="writer")]
    return [
        RunEntry(
            role=role,
            name=role if alone else f"{name} {role}",
            folder=places[role],
            kind="writer",
            trained_in=None if role == "teacher" else folder,
        )
        for role in there
    ]
