"""Training runs of a benchmark: started or gone on with, read, and compared over seeds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from math import sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from harness import Claim
from scipy import stats

from limbeck.recipe import load_recipe
from limbeck.run import run_recipe

METRICS = {
    "TR@1": ("retrieval", "TR@1"),
    "TR@5": ("retrieval", "TR@5"),
    "TR@10": ("retrieval", "TR@10"),
    "IR@1": ("retrieval", "IR@1"),
    "IR@5": ("retrieval", "IR@5"),
    "IR@10": ("retrieval", "IR@10"),
    "BLEU-4": ("captioning", "BLEU-4"),
    "ROUGE-L": ("captioning", "ROUGE-L"),
    "CIDEr": ("captioning", "CIDEr"),
    "VQA": ("vqa", "accuracy"),
}
"""Name in the tables -> task and key in a run's evaluation summary; percent, caption metrics times 100"""

Scores = Mapping[str, float]
"""One model's score by metric"""


class Spread(NamedTuple):
    """Scores of several seeds."""

    mean: float
    error: float | None
    """standard error of the mean; None of a single seed"""

    def __str__(self) -> str:
        return f"{self.mean:.1f}" if self.error is None else f"{self.mean:.1f} ± {self.error:.1f}"


def train(recipe: str, folder: Path, overrides: Sequence[str] = (), *, teacher: Path | None = None) -> Scores:
    """Run a recipe into `folder`, going on where an earlier call was cut off; its student's scores.

    A run examines its teacher too. `teacher` is a folder that already holds what this one would find, to be taken over.
    """
    if teacher is not None and not (folder / "teacher").exists():
        for name in ("evaluation", "gallery"):
            shutil.copytree(teacher / name, folder / "teacher" / name)
        shutil.copy(teacher / "profile.json", folder / "teacher")
    run_recipe(load_recipe(recipe, [*overrides, f"output={folder}"]))
    return scores(folder)


def take_over(origin: Path, folder: Path, stages: Sequence[str]) -> None:
    """Give a run the finished stages of another one; it goes on behind them."""
    for stage in stages:
        target = folder / "stages" / stage
        if not target.exists():
            draft = target.with_name(f".{stage}")
            left_out = shutil.ignore_patterns("checkpoint-*", "runs")
            shutil.copytree(origin / "stages" / stage, draft, ignore=left_out, dirs_exist_ok=True)
            draft.rename(target)


def lasting(recipe: str, steps: int, batch_size: int | None = None) -> list[dict[str, Any]]:
    """A recipe's stages with `steps` optimizer steps in all, each stage keeping its share and at least one.

    `batch_size` replaces every stage's own. Raises ValueError where a stage does not say how many steps it has.
    """
    settings = load_recipe(recipe)
    own = [{**settings.training, **stage.training}.get("max_steps") for stage in settings.stages]
    known = [count for count in own if count]
    if len(known) < len(own):
        raise ValueError(f"{recipe}: every stage must have training.max_steps to be made longer, found {own}")
    stages = []
    for stage, count in zip(settings.stages, known, strict=True):
        values = stage.model_dump()
        values["training"]["max_steps"] = max(1, round(steps * count / sum(known)))
        if batch_size is not None:
            values["training"]["per_device_train_batch_size"] = batch_size
        stages.append(values)
    return stages


def scores(folder: Path) -> Scores:
    """What the evaluation in `folder` says, metric by metric; tasks that did not run are left out."""
    summary = json.loads((folder / "evaluation" / "summary.json").read_text())
    return {name: summary[task][key] for name, (task, key) in METRICS.items() if task in summary}


def spread(values: Sequence[float]) -> Spread:
    """Mean and standard error of one metric over seeds."""
    return Spread(mean(values), stdev(values) / sqrt(len(values)) if len(values) > 1 else None)


def spreads(seeds: Sequence[Scores]) -> dict[str, Spread]:
    """The same for every metric."""
    return {name: spread([seed[name] for seed in seeds]) for name in seeds[0]}


def confidence(differences: Sequence[float]) -> float | None:
    """Probability that the true mean of paired differences is above 0, by Student's t-distribution.

    None of a single difference; where all are equal, 1, 0 or a half by their sign.
    """
    if len(differences) < 2:
        return None
    error = stdev(differences) / sqrt(len(differences))
    if error == 0:
        return 0.5 + 0.5 * ((differences[0] > 0) - (differences[0] < 0))
    return float(stats.t.cdf(mean(differences) / error, df=len(differences) - 1))


def gain(name: str, ours: Sequence[Scores], theirs: Sequence[Scores], metric: str) -> Claim:
    """The claim that runs beat others by one metric: mean of the seeds' differences, and how sure its sign is."""
    differences = [own[metric] - other[metric] for own, other in zip(ours, theirs, strict=True)]
    sure = confidence(differences)
    certainty = "one seed" if sure is None else f"confidence {sure:.0%}"
    return Claim(f"{name}: {metric}", "above 0", f"{mean(differences):+.2f}, {certainty}", mean(differences) > 0)


def surely(name: str, ours: Sequence[Scores], theirs: Sequence[Scores], metric: str) -> Claim:
    """The claim that runs beat others by more than two standard errors of the seeds' differences."""
    differences = [own[metric] - other[metric] for own, other in zip(ours, theirs, strict=True)]
    error = stdev(differences) / sqrt(len(differences)) if len(differences) > 1 else None
    measured = f"{mean(differences):+.2f}" + (", one seed" if error is None else f", standard error {error:.2f}")
    holds = error is not None and mean(differences) > 2 * error
    return Claim(f"{name}: {metric}", "more than 2 standard errors", measured, holds)


def numbers(model: str, seeds: Sequence[Scores], metrics: Sequence[str] | None = None) -> dict[str, str | float | int]:
    """One model's row: each metric's mean, and its standard error where there are several seeds."""
    row: dict[str, str | float | int] = {"model": model, "seeds": len(seeds)}
    for name, (average, error) in _chosen(seeds, metrics).items():
        row[name] = average
        if error is not None:
            row[f"{name} error"] = error
    return row


def line(model: str, seeds: Sequence[Scores], metrics: Sequence[str] | None = None) -> dict[str, str | float | int]:
    """The same for people: mean ± standard error."""
    found = _chosen(seeds, metrics)
    return {"model": model, "seeds": len(seeds)} | {name: str(found[name]) for name in found}


def _chosen(seeds: Sequence[Scores], metrics: Sequence[str] | None) -> dict[str, Spread]:
    found = spreads(seeds)
    return found if metrics is None else {name: found[name] for name in metrics}
