"""Whether runs have one teacher, as a page of several supposes: it has one row, and all shares are of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from limbeck.report.records import ReportError, read_yaml
from limbeck.report.runs import read_profile, read_summary
from limbeck.report.table import one_decimal


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """What a run folder tells of its teacher; what it does not tell is empty or None."""

    run: Path
    origins: tuple[str, ...]
    """the recipe's `teacher.folders`"""
    parameters: float | None
    metrics: Mapping[str, float]


def refuse_other_teachers(folders: Sequence[Path]) -> None:
    """Make sure that run folders have one teacher, however often it was evaluated. A run without one may stand by.

    Raises:
        ReportError: two of them have different teachers, or one of their files cannot be read.
    """
    teachers = [teacher for folder in folders if (teacher := _teacher(folder)) is not None]
    for one, other in combinations(teachers, 2):
        found = _difference(one, other)
        if found is not None:
            raise ReportError(
                f"{one.run} and {other.run} have different teachers ({found}), and shares can be of one alone: "
                "report them apart"
            )


def _teacher(run: Path) -> Teacher | None:
    recipe = read_yaml(run / "recipe.yaml")
    origins = recipe.part("teacher").texts("folders") if recipe else ()
    metrics, _, _ = read_summary(run / "teacher" / "evaluation" / "summary.json")
    costs, _, _ = read_profile(run / "teacher" / "profile.json")
    if not origins and not metrics and not costs:
        return None
    return Teacher(run=run, origins=origins, parameters=costs.get("parameters"), metrics=metrics)


def _difference(one: Teacher, other: Teacher) -> str | None:
    """What tells two teachers apart, in words; None where nothing does.

    Copies in two folders are one teacher where they score the same. From one folder, scores may differ by what another
    device or dtype makes of them, and not by more: a teacher that was trained again is another one.
    """
    if one.parameters is not None and other.parameters is not None and one.parameters != other.parameters:
        return f"{one.parameters:,.0f} and {other.parameters:,.0f} parameters"
    origins = [", ".join(teacher.origins) for teacher in (one, other)]
    is_one_folder = origins[0] == origins[1]
    both = [key for key in one.metrics if key in other.metrics]
    if not both:
        return None if is_one_folder or not all(origins) else f"{origins[0]} and {origins[1]}"
    for key in both:
        mine, theirs = one.metrics[key], other.metrics[key]
        is_close = math.isclose(mine, theirs, rel_tol=0.02, abs_tol=0.5) if is_one_folder else mine == theirs
        if not is_close and not math.isnan(mine + theirs):
            return f"{key} {one_decimal(mine)} and {one_decimal(theirs)}"
    return None
