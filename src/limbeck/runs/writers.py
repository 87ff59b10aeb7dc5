"""What a run does with a finished model that writes: try it, measure what it costs, keep pictures for its page."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from shutil import rmtree
from typing import Any

from limbeck.competition.asking import Asker
from limbeck.distributed import device_here
from limbeck.evaluation.generative.benchmarks import evaluate_generative, load_benchmark
from limbeck.evaluation.generative.cost import profile_generative
from limbeck.evaluation.generative.model import GenerativeModel
from limbeck.recipe import CoMDRecipe, CTVLMRecipe
from limbeck.runs.folder import claim_evaluation
from limbeck.runs.gallery import hang
from limbeck.writing import write_text

SPEED = {"answering": {"batch_size", "workers", "max_skipped"}}
"""Settings of the evaluation that change no result."""
ASKED = Path("evaluation") / "asked.json"
"""What the scores beside it are of; written when all are there."""


def evaluate_saved(out: Path, saved: Path, recipe: CTVLMRecipe | CoMDRecipe, judge: Asker | None = None) -> None:
    """Evaluate, measure and picture a saved model into `out`, going on where an earlier call was cut off.

    `out` keeps what it is about. Raises RecipeError where that is something else, or unknown.
    """
    model = open_saved(saved)
    about = {
        "model": model.fingerprint(),
        "recipe": {
            **_asked(recipe),
            "profile": [recipe.profile_batch_size, recipe.profile_words],
        },
        "judge": None if judge is None else judge.fingerprint,
    }
    claim_evaluation(out, about)
    examine(out, lambda: model, recipe, judge)


def examine(
    out: Path,
    open_model: Callable[[], GenerativeModel],
    recipe: CTVLMRecipe | CoMDRecipe,
    judge: Asker | None = None,
) -> None:
    """Try a model on the recipe's benchmarks, measure it, and keep pictures. What is there already stays, and the model
    is opened only where something is missing. Of other benchmarks than before, answers to the same prompts stay."""
    opened = cache(open_model)
    if not is_evaluated(out, recipe):
        evaluate(out, opened(), recipe, judge)
        rmtree(out / "gallery", ignore_errors=True)
    if not (out / "profile.json").exists():
        profile = profile_generative(opened(), batch_size=recipe.profile_batch_size, words=recipe.profile_words)
        write_text(out / "profile.json", json.dumps(profile.to_json(), indent=2))
    if recipe.evaluation.benchmarks and not (out / "gallery" / "gallery.json").exists():
        benchmarks, root = recipe.evaluation.benchmarks, Path(recipe.data.root)
        hang(out / "gallery", {each.name or each.benchmark: load_benchmark(each, root) for each in benchmarks})


def evaluate(out: Path, model: GenerativeModel, recipe: CTVLMRecipe | CoMDRecipe, judge: Asker | None = None) -> None:
    """Try a model on the recipe's benchmarks, and keep what was asked; rows that are there already stay."""
    config, base, asked = recipe.evaluation, Path(recipe.data.root), out / ASKED
    asked.unlink(missing_ok=True)
    evaluate_generative(model, config.benchmarks, out, base=base, answering=config.answering, judge=judge)
    write_text(asked, json.dumps(_asked(recipe), indent=2))


def is_evaluated(out: Path, recipe: CTVLMRecipe | CoMDRecipe) -> bool:
    """Whether a folder holds the scores of the recipe's benchmarks, asked as the recipe asks them."""
    if not recipe.evaluation.benchmarks:
        return True
    asked = out / ASKED
    return asked.exists() and json.loads(asked.read_text(encoding="utf-8")) == _asked(recipe)


def _asked(recipe: CTVLMRecipe | CoMDRecipe) -> dict[str, Any]:
    """What scores depend on besides the model."""
    evaluation = recipe.evaluation.model_dump(mode="json", include={"benchmarks", "answering"}, exclude=SPEED)
    return {"evaluation": evaluation, "root": recipe.data.root}


def open_saved(folder: Path) -> GenerativeModel:
    """The model of a run folder, or of a model folder."""
    found = folder / "student" if (folder / "student").is_dir() else folder
    return GenerativeModel.from_folder(found, device=device_here())
