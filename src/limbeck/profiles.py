"""The `profile` command: what recipes' students and trained models cost, side by side.

Models of picture-text pairs and models that write cost in different ways; each kind has its own table.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from limbeck.assemble.dlip import build_student, open_data, open_tokenizer
from limbeck.evaluation.generative.cost import profile_generative
from limbeck.evaluation.generative.model import GenerativeModel
from limbeck.evaluation.profile import profile
from limbeck.methods.passes import Model
from limbeck.models.duet_config import DuetConfig, TinyVLMConfig
from limbeck.models.files import read_model_type
from limbeck.models.hub import shipped
from limbeck.models.load import load_model
from limbeck.recipe import DLIPRecipe, find_recipe, load_recipe
from limbeck.report.table import operations

GENERATIVE = {TinyVLMConfig.model_type, DuetConfig.model_type, *MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES} - {"blip"}
"""`model_type` of folders whose models write; BLIP is profiled as the pairs that it is distilled on"""


def compare_profiles(names: Sequence[str], batch_size: int) -> list[dict[str, Any]]:
    """The profile of every recipe's student and every folder's model, each with its `name`.

    A CTVLM run has two models; the tiny one's row is named after its own folder.
    """
    rows = []
    for name in names:
        writers = _writers(name)
        for own, folder in writers.items():
            found = profile_generative(GenerativeModel.from_folder(folder), batch_size=batch_size)
            rows.append({"name": own, **found.to_json()})
        if not writers:
            model = _model(name)
            size = model.config.vision.image_size
            rows.append({"name": name, **profile(model, batch_size=batch_size, image_size=size).to_json()})
    return rows


def print_profiles(console: Console, rows: Sequence[dict[str, Any]]) -> None:
    """Tables of models of pairs and of models that write, where there are any; each of as many as the console takes."""
    writers = [row for row in rows if "tokens_per_second" in row]
    pairs = [row for row in rows if "tokens_per_second" not in row]
    beside = max(1, (console.width - LABEL_WIDTH - 4) // (NUMBER_WIDTH + 3))  # a column has 2 spaces and a line
    for kin, table in ((pairs, _pairs_table), (writers, _writers_table)):
        for start in range(0, len(kin), beside):
            console.print(table(kin[start : start + beside]))


LABEL_WIDTH = 20
"""characters of the longest label of a row"""
NUMBER_WIDTH = 12
"""characters that a number needs at most; the names above them are folded"""


def _models_table(rows: Sequence[dict[str, Any]], title: str) -> Table:
    """A table without rows yet: a column of labels and one for each model."""
    table = Table(title=title)
    table.add_column("", no_wrap=True)
    for row in rows:
        table.add_column(escape(row["name"]), justify="right", overflow="fold", min_width=NUMBER_WIDTH)
    return table


def _pairs_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Models side by side: parameters and MACs in both conventions, latency by pass, peak memory."""
    table = _models_table(rows, f"latency and memory of {rows[0]['batch_size']} image-text pairs at a time")
    table.add_row("parameters", *(_millions(row["parameters"]) for row in rows))
    table.add_row("  without positions", *(_millions(row["parameters_without_positions"]) for row in rows))
    table.add_row("MACs", *(_giga(row["macs"]) for row in rows))
    table.add_row("  with attention", *(_giga(row["macs_with_attention"]) for row in rows))
    for part in ("image", "text", "fusion", "whole"):
        times = [row["latency_ms"].get(part) for row in rows]
        table.add_row(f"{part} ms", *("-" if time is None else f"{time:.2f}" for time in times))
    table.add_row("peak MiB", *(f"{row['peak_memory_mib']:.1f}" for row in rows))
    return table


def _writers_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Models side by side: parameters by tower, MACs in both conventions, latency by token, speed, peak memory."""
    tokens, words, size = (rows[0][key] for key in ("new_tokens", "words", "batch_size"))
    table = _models_table(rows, f"{tokens} tokens about a picture and {words} words, {size} at a time")
    towers = dict.fromkeys(tower for row in rows for tower in row["parameters_by_tower"])
    table.add_row("parameters", *(_millions(row["parameters"]) for row in rows))
    for tower in towers:
        counts = [row["parameters_by_tower"].get(tower) for row in rows]
        table.add_row(f"  {tower}", *("-" if count is None else _millions(count) for count in counts))
    for part, label in (("first_token", "MACs to first token"), ("next_token", "MACs a further token")):
        table.add_row(label, *(operations(row["macs_by_part"][part]) for row in rows))
        table.add_row("  with attention", *(operations(row["macs_with_attention_by_part"][part]) for row in rows))
    for part, label in (("first_token", "first token ms"), ("next_token", "further token ms"), ("whole", "whole ms")):
        table.add_row(label, *(f"{row['latency_ms'][part]:.2f}" for row in rows))
    table.add_row("tokens a second", *(f"{row['tokens_per_second']:.1f}" for row in rows))
    table.add_row("peak MiB", *(f"{row['peak_memory_mib']:.1f}" for row in rows))
    return table


def print_scales(console: Console, rows: Sequence[dict[str, Any]]) -> None:
    """DLIP's Table 1: every tower's parameters, MACs and latency."""
    table = Table("tower", title="DLIP's Table 1, on this machine")
    for heading in ("parameters", "MACs", "latency ms"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(row["name"], _millions(row["parameters"]), _giga(row["macs"]), f"{row['latency_ms']:.1f}")
    console.print(table)


def _writers(name: str) -> dict[str, Path]:
    """The folders of a name's models that write, by what their rows are called; none where it names none."""
    folder = Path(shipped(name))
    found = {}
    for own, place in ((f"{name}/tiny", folder / "tiny"), (name, folder)):
        model = place / "student" if (place / "student").is_dir() else place
        if (model / "config.json").is_file() and read_model_type(model) in GENERATIVE:
            found[own] = model
    return found


def _model(name: str) -> Model:
    folder = Path(shipped(name))
    if folder.is_dir():
        return load_model(folder / "student" if (folder / "student").is_dir() else folder).eval()
    recipe = load_recipe(str(find_recipe(name)))
    if not isinstance(recipe, DLIPRecipe):
        raise ValueError(
            f"{name}: `limbeck profile` takes a {recipe.method} run's folder, or a model folder, not its recipe"
        )
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
