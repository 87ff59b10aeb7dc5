"""The run folder of any method: whose it is, and what it was made with."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from shutil import rmtree
from typing import Any

import yaml

from limbeck.distributed import rank
from limbeck.recipe.shared import RecipeError, RunSettings
from limbeck.training.run import record_environment
from limbeck.writing import write_text

BEFORE_TRAINING = {"recipe.yaml", "environment.json", "skipped.jsonl", "left_out.jsonl", "stages"}
"""What stands in a run folder before the first step"""


def refuse_another_recipe(folder: Path, recipe: RunSettings) -> None:
    """Make sure that a folder in which a run did something belongs to this recipe, but for what changes no result."""
    path = folder / "recipe.yaml"
    if not path.exists() or not _holds_work(folder):
        return
    old, new = yaml.safe_load(path.read_text(encoding="utf-8")), json.loads(recipe.model_dump_json())
    changed = [key for key in _differences(old, new) if not any(fnmatchcase(key, glob) for glob in recipe.changeable)]
    changed.sort(key=lambda key: key != "method")
    if changed:
        raise RecipeError(
            f"{folder} holds the run of another recipe; it differs in {', '.join(changed[:5])}. "
            "Give this recipe an `output` of its own, or delete that folder"
        )


def _holds_work(folder: Path) -> bool:
    """Whether a run left more in its folder than what it writes down before its first step."""
    more = {path.name for path in folder.iterdir()} - BEFORE_TRAINING
    return bool(more) or any(
        path.name == "finished.json" or path.name.startswith("checkpoint-") for path in folder.glob("stages/*/*")
    )


def _differences(old: Any, new: Any, path: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = dict.fromkeys([*old, *new])
        return [
            found for key in keys for found in _differences(old.get(key), new.get(key), f"{path}.{key}".lstrip("."))
        ]
    return [] if old == new else [path]


def claim_evaluation(out: Path, about: Mapping[str, Any]) -> None:
    """Make sure that a folder for an evaluation is new or about the same, and write down what it is about.

    Raises RecipeError where it is about something else, or does not say.
    """
    place, way = out / "evaluated.json", "give --out a folder of its own, or delete that one"
    if place.exists():
        known = json.loads(place.read_text(encoding="utf-8"))
        others = [name for name in about if known.get(name) != about[name]]
        if others:
            raise RecipeError(f"{out} holds the evaluation of another {' and '.join(others)}; {way}")
    elif any((out / name).exists() for name in ("evaluation", "profile.json", "gallery")):
        raise RecipeError(f"{out} holds an evaluation that does not say which model it is of; {way}")
    write_text(place, json.dumps(about, indent=2))


def record(folder: Path, recipe: RunSettings, data_fingerprint: str, seconds: float | None = None) -> None:
    """Write the resolved recipe, by which the folder is this recipe's from now on, and what it runs on.

    Raises RecipeError where a run goes on with other data than it began with.
    """
    place = folder / "environment.json"
    known = json.loads(place.read_text(encoding="utf-8"))["data_fingerprint"] if place.exists() else data_fingerprint
    if known != data_fingerprint and _holds_work(folder):
        raise RecipeError(
            f"{folder} holds a run that began with other data (fingerprint {known}, now {data_fingerprint}): a record, "
            "a text or their order is not what it was. Put the data back, or give the recipe an `output` of its own"
        )
    if rank() == 0:
        write_recipe(folder, recipe)
        record_environment(folder, seed=recipe.seed, data_fingerprint=data_fingerprint, seconds=seconds)


def write_recipe(folder: Path, recipe: RunSettings) -> None:
    """Keep the resolved recipe as `recipe.yaml`; one that says the same is not written again."""
    values, place = json.loads(recipe.model_dump_json()), folder / "recipe.yaml"
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    if not place.exists() or place.read_text(encoding="utf-8") != text:
        write_text(place, text)


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A hidden folder beside `target` to write into; in the end it becomes `target`, so what has this name is whole.

    A folder that is there already is replaced then. What a kill left half written is thrown away first.
    """
    draft = target.with_name(f".{target.name}")
    rmtree(draft, ignore_errors=True)
    yield draft
    rmtree(target, ignore_errors=True)
    draft.rename(target)
