"""The `profile` command: what recipes' students and trained models cost, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from limbeck.assemble.dlip import build_student, open_data, open_tokenizer
from limbeck.assemble.shared import shipped
from limbeck.evaluation.profile import profile
from limbeck.methods.passes import Model
from limbeck.models.load import load_model
from limbeck.recipe import DLIPRecipe, find_recipe, load_recipe


def compare_profiles(names: Sequence[str], batch_size: int) -> list[dict[str, Any]]:
    """The profile of every recipe's student and every folder's model, each with its `name`."""
    rows = []
    for name in names:
        model = _model(name)
        image_size = model.config.vision.image_size
        rows.append({"name": name, **profile(model, batch_size=batch_size, image_size=image_size).to_json()})
    return rows


def print_profiles(console: Console, rows: Sequence[dict[str, Any]]) -> None:
    """A table of models: parameters and MACs in both conventions, latency by pass, peak memory."""
    table = Table(title=f"latency and memory of {rows[0]['batch_size']} image-text pairs at a time")
    for heading in ("model", "parameters", "without positions", "MACs", "with attention"):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for heading in ("image ms", "text ms", "fusion ms", "whole ms", "peak MiB"):
        table.add_column(heading, justify="right")
    for row in rows:
        latency = row["latency_ms"]
        table.add_row(
            row["name"],
            *(_millions(row[key]) for key in ("parameters", "parameters_without_positions")),
            *(_giga(row[key]) for key in ("macs", "macs_with_attention")),
            *(f"{latency[key]:.2f}" if key in latency else "-" for key in ("image", "text", "fusion", "whole")),
            f"{row['peak_memory_mib']:.1f}",
        )
    console.print(table)


def print_scales(console: Console, rows: Sequence[dict[str, Any]]) -> None:
    """DLIP's Table 1: every tower's parameters, MACs and latency."""
    table = Table("tower", title="DLIP's Table 1, on this machine")
    for heading in ("parameters", "MACs", "latency ms"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(row["name"], _millions(row["parameters"]), _giga(row["macs"]), f"{row['latency_ms']:.1f}")
    console.print(table)


def _model(name: str) -> Model:
    folder = Path(shipped(name))
    if folder.is_dir():
        return load_model(folder / "student" if (folder / "student").is_dir() else folder).eval()
    recipe = load_recipe(str(find_recipe(name)))
    if not isinstance(recipe, DLIPRecipe):
        raise ValueError(f"{name}: `limbeck profile` knows the models of dlip recipes; its method is {recipe.method}")
    return _untrained(recipe)


def _untrained(recipe: DLIPRecipe) -> Model:
    """A recipe's student with random weights; data is opened only where the vocabulary comes from it."""
    student = recipe.student.model_copy(update={"initial_vision": "random", "initial_text": "random"})
    recipe = recipe.model_copy(update={"student": student})
    known = recipe.tokenizer.tokenizer != "wordpiece"
    source = None if known else open_data(recipe)
    return build_student(recipe, open_tokenizer(recipe, source), None).eval()


def _millions(count: float) -> str:
    return f"{count / 1e6:.2f}M"


def _giga(count: float) -> str:
    return f"{count / 1e9:.3f}G"
