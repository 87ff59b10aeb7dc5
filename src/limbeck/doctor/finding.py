"""What a check says."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from limbeck.data.examples import DataError
from limbeck.distributed import rank
from limbeck.recipe.shared import RecipeError

log = logging.getLogger(__name__)

Status = Literal["ok", "warning", "failed", "skipped"]


@dataclass(frozen=True)
class Finding:
    """What one check has found."""

    check: str
    status: Status
    text: str
    """for people, a line or a few"""
    figures: Mapping[str, Any] = field(default_factory=dict)
    """the same for programs; everything in it goes into JSON"""


REST = Finding("the rest", "skipped", "nothing more was looked at: what failed comes first")


def failed(findings: Sequence[Finding]) -> bool:
    """Whether a check has failed."""
    return any(finding.status == "failed" for finding in findings)


def refuse(findings: Sequence[Finding]) -> None:
    """Raise RecipeError with all that failed; warnings are logged by the first process."""
    wrong = [finding for finding in findings if finding.status == "failed"]
    if wrong:
        said = "\n".join(f"  {finding.check}: {finding.text}" for finding in wrong)
        raise RecipeError(f"this must not be trained (`limbeck doctor` shows all that was looked at):\n{said}")
    for finding in findings:
        if finding.status == "warning" and rank() == 0:
            log.warning("%s: %s", finding.check, finding.text)


def worst(statuses: Sequence[Status]) -> Status:
    """The one that decides where one finding is about several things."""
    order: tuple[Status, ...] = ("failed", "warning", "ok", "skipped")
    return next(status for status in order if status in statuses)


def as_json(recipe: str, findings: Sequence[Finding]) -> dict[str, Any]:
    """What `--json` prints."""
    checks = [
        {"check": finding.check, "status": finding.status, "finding": finding.text, "figures": dict(finding.figures)}
        for finding in findings
    ]
    return {"recipe": recipe, "ok": not failed(findings), "checks": checks}


def tried(check: str, look: Callable[[], Finding]) -> Finding:
    """A check's finding; that it cannot be made is one too."""
    try:
        return look()
    except Exception as error:  # whatever stops a check would have stopped training
        return broken(check, error)


def broken(check: str, error: Exception) -> Finding:
    """What is to be said of a check that could not be made."""
    expected = isinstance(error, RecipeError | DataError | ValueError)
    return Finding(check, "failed", str(error) if expected else f"{type(error).__name__}: {error}")


def count_of(number: float) -> str:
    """1234567 -> 1.23M"""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.2f}{unit}"
    return f"{number:.0f}"


def bytes_of(number: float) -> str:
    """1234567 -> 1.2 MiB"""
    for size, unit in ((2**30, "GiB"), (2**20, "MiB")):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number / 2**10:.0f} KiB"
