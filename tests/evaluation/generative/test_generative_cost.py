"""What an answer costs: parameters against the modules, multiply-accumulates by hand, and how often time is taken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn
from transformers import CLIPVisionConfig, LlamaConfig, OPTConfig

from limbeck.data.chat import Chat, ChatConfig
from limbeck.data.decoder_tokenizer import BpeTokenizer, load_decoder_tokenizer
from limbeck.evaluation.generative import cost
from limbeck.evaluation.generative.cost import FIRST, NEXT, profile_generative
from limbeck.evaluation.generative.model import GenerativeModel
from limbeck.models.duet import Duet
from limbeck.models.duet_build import build_duet
from limbeck.models.duet_processor import make_processor
from limbeck.profiles import compare_profiles, print_profiles
from limbeck.quickstart import report_runs
from limbeck.recipe.ctvlm import CTVLMRecipe
from limbeck.runs.writers import examine, open_saved

LAYERS, HEADS, PATCHES, EYE, EYE_INNER = 2, 2, 4, 16, 32
TINY, TINY_INNER = 20, 28
LARGE, LARGE_INNER, KEYS = 24, 44, 12
"""widths; KEYS of one of the large model's two heads, which share it"""
TOWER: dict[str, Any] = {"num_hidden_layers": LAYERS, "num_attention_heads": HEADS}


def make_models(positions: int = 256) -> dict[str, GenerativeModel]:
    """A random duet and its tiny model, with the table and the projections of the paper."""
    tokenizer = load_decoder_tokenizer(BpeTokenizer(tokenizer="bpe", vocab_size=320), ["what is the thing"])
    chat = Chat(tokenizer, ChatConfig(template="vicuna_v1", system=""))
    words: dict[str, Any] = {"vocab_size": len(tokenizer) - 1, "max_position_embeddings": positions, **TOWER}
    torch.manual_seed(0)
    duet = build_duet(
        CLIPVisionConfig(hidden_size=EYE, intermediate_size=EYE_INNER, image_size=32, patch_size=16, **TOWER),
        OPTConfig(hidden_size=TINY, word_embed_proj_dim=TINY, ffn_dim=TINY_INNER, **words),
        LlamaConfig(hidden_size=LARGE, intermediate_size=LARGE_INNER, num_key_value_heads=1, **words),
        tokenizer_length=len(tokenizer),
        image_token_id=chat.ids.image,
        pad_token_id=chat.ids.pad,
        bos_token_id=chat.ids.bos,
        eos_token_id=chat.ids.eos,
    )
    processor = make_processor(duet.config, tokenizer, chat.jinja)
    return {"tiny": GenerativeModel(duet.tiny, processor), "large": GenerativeModel(duet, processor)}


@pytest.fixture(scope="module")
def models() -> dict[str, GenerativeModel]:
    return make_models()


@pytest.fixture(scope="module")
def profiles(models) -> dict[str, cost.GenerativeProfile]:
    return {name: profile_generative(model, words=3, new_tokens=4, repeats=2) for name, model in models.items()}


def weights(*modules: nn.Module | None) -> int:
    return sum(weight.numel() for module in modules if module is not None for weight in module.parameters())


def test_parameters_are_those_of_the_modules(models, profiles):
    duet = models["large"].model
    assert isinstance(duet, Duet)
    tiny = duet.tiny
    own = {
        "eye": weights(tiny.eye),
        "connectors": weights(tiny.connector),
        "table": weights(tiny.table),
        "tiny": weights(tiny.body, tiny.cross, tiny.project_in, tiny.project_out),
    }
    assert profiles["tiny"].parameters_by_tower == own
    assert profiles["tiny"].parameters == weights(tiny)
    both = own | {"connectors": weights(tiny.connector, duet.connector), "large": weights(duet.large)}
    assert profiles["large"].parameters_by_tower == both
    assert profiles["large"].parameters == weights(duet) == sum(both.values())


def test_parameters_of_another_model_are_those_of_its_parts(vlm):
    found = profile_generative(vlm, words=2, new_tokens=2, repeats=1)
    model = vlm.model
    assert found.parameters_by_tower == {
        "vision_tower": weights(model.model.vision_tower),
        "multi_modal_projector": weights(model.model.multi_modal_projector),
        "language_model": weights(model.model.language_model),
        "lm_head": weights(model.lm_head),
    }
    assert found.parameters == weights(model)


def eye_by_hand() -> tuple[int, int]:
    """Of one picture, with weights and LayerNorms, and inside attention."""
    tokens = PATCHES + 1
    layer = 2 * 4 * tokens * EYE + 4 * tokens * EYE**2 + 2 * tokens * EYE * EYE_INNER
    norms = 4 * tokens * EYE + 4 * EYE  # before the layers, and of the class token after them
    return PATCHES * EYE * 3 * 16 * 16 + norms + LAYERS * layer, LAYERS * 2 * tokens**2 * EYE


def norms_by_hand(positions: int) -> int:
    """The tiny model's LayerNorms: before self-attention, cross-attention and inner layer, and the last."""
    return 4 * positions * TINY * (3 * LAYERS + 1)


def tiny_by_hand(words: int, positions: int, keys: int) -> tuple[int, int]:
    """Of so many positions that attend to `keys` and to the picture; `words` of them come through the projection."""
    layer = (4 + 2) * positions * TINY**2 + 2 * positions * TINY * TINY_INNER
    seeing = LAYERS * 2 * positions * PATCHES * TINY
    attention = LAYERS * 2 * positions * keys * TINY + seeing
    return words * LARGE * TINY + LAYERS * layer + norms_by_hand(positions), attention


def picture_by_hand() -> int:
    """The connector, and each layer's keys and values."""
    return PATCHES * (EYE * TINY + TINY**2) + LAYERS * 2 * PATCHES * TINY**2


def large_by_hand(positions: int, keys: int) -> tuple[int, int]:
    """Of so many positions that attend to `keys`; RMSNorm and the angles of rotary positions count nothing."""
    layer = positions * (2 * LARGE**2 + 2 * LARGE * KEYS + 3 * LARGE * LARGE_INNER)
    return LAYERS * layer, LAYERS * 2 * positions * keys * LARGE


def ids_of(model: GenerativeModel, words: int) -> list[int]:
    inputs = cost._asked(model, words, cost.Image.new("RGB", (32, 32)), 1)
    return inputs["input_ids"][0].tolist()


def test_macs_of_the_tiny_model_by_hand(models, profiles):
    found, ids = profiles["tiny"], ids_of(models["tiny"], 3)
    length, vocabulary = len(ids), models["tiny"].model.table.weight.shape[0]
    head = TINY * LARGE + LARGE * vocabulary
    eye, eye_attention = eye_by_hand()
    first, attention = tiny_by_hand(length - PATCHES, length, length)
    plain = eye + picture_by_hand() + first + head
    assert found.macs == found.macs_by_part[FIRST] == plain
    norms = 4 * ((PATCHES + 1) * EYE * (2 * LAYERS + 1) + EYE) + norms_by_hand(length)
    assert found.macs_with_attention == plain - norms + eye_attention + attention
    further, attention = tiny_by_hand(1, 1, length + 1)
    assert found.macs_by_part[NEXT] == further + head
    assert found.macs_with_attention_by_part[NEXT] == further + head - norms_by_hand(1) + attention


def test_macs_of_the_duet_by_hand(models, profiles):
    found, ids = profiles["large"], ids_of(models["large"], 3)
    prompt = ids.index(models["large"].model.image_token_id)
    text = len(ids) - prompt - PATCHES
    features = PATCHES + text
    seen = prompt + features + text
    eye, eye_attention = eye_by_hand()
    tiny, tiny_attention = tiny_by_hand(len(ids) - PATCHES, len(ids), len(ids))
    connector = features * (TINY * LARGE + LARGE**2)
    large, large_attention = large_by_hand(seen, seen)
    head = LARGE * models["large"].model.large_head_weight.shape[0]
    plain = eye + picture_by_hand() + tiny + connector + large + head
    assert found.macs == plain
    norms = 4 * ((PATCHES + 1) * EYE * (2 * LAYERS + 1) + EYE) + norms_by_hand(len(ids))
    assert found.macs_with_attention == plain - norms + eye_attention + tiny_attention + large_attention
    further, attention = large_by_hand(1, seen + 1)
    assert found.macs_by_part[NEXT] == further + head, "neither eye nor tiny model reads a further token"
    assert found.macs_with_attention_by_part[NEXT] == further + head + attention


def test_attention_counts_the_same_however_it_is_computed(vlm):
    whole = profile_generative(vlm, words=2, new_tokens=2, repeats=1)
    vlm.model.set_attn_implementation("eager")
    try:
        plain = profile_generative(vlm, words=2, new_tokens=2, repeats=1)
    finally:
        vlm.model.set_attn_implementation("sdpa")
    assert plain.macs_with_attention == whole.macs_with_attention > whole.macs
    assert plain.macs == whole.macs


def test_macs_are_of_one_answer_and_memory_of_all(models, profiles):
    found = profile_generative(models["large"], batch_size=3, words=3, new_tokens=2, repeats=1)
    assert found.macs_by_part == profiles["large"].macs_by_part
    assert found.macs_with_attention_by_part == profiles["large"].macs_with_attention_by_part
    own = 4 * found.parameters / 2**20
    assert profiles["large"].peak_memory_mib > own
    assert found.peak_memory_mib - own > 2 * (profiles["large"].peak_memory_mib - own)


def test_every_token_is_timed_and_the_model_stays_as_it_was(models, monkeypatch):
    ticks = iter(range(10_000))
    monkeypatch.setattr(cost.time, "perf_counter", lambda: next(ticks) / 1000)
    model = models["tiny"].model.train()
    found = profile_generative(models["tiny"], batch_size=2, words=3, new_tokens=5, repeats=3)
    assert model.training
    model.eval()
    assert found.latency_ms == pytest.approx({FIRST: 1.0, NEXT: 1.0, "whole": 5.0})
    assert found.tokens_per_second == pytest.approx(2 * 5 / 0.005)
    assert next(ticks) == (cost.WARM_UP + 3) * (1 + 5), "whatever the model says, no answer ends early"


def test_a_question_that_has_no_room_is_cut():
    models = make_models(positions=64)
    for name, room in (("tiny", 64), ("large", 32)):
        found = profile_generative(models[name], words=16, new_tokens=2, repeats=1)
        assert 1 <= found.words < 16
        assert found.prompt_tokens + 2 <= room


def test_what_cannot_be_measured_is_refused(models):
    with pytest.raises(ValueError, match=r"at least 2 new_tokens.*found 1, 16, 10"):
        profile_generative(models["tiny"], new_tokens=1)


def save(model: GenerativeModel, folder: Path) -> None:
    model.model.save_pretrained(folder)
    model.processor.save_pretrained(folder)


def test_a_run_folder_gives_a_row_for_each_model(models, profiles, tmp_path: Path):
    for name, place in (("large", tmp_path / "run"), ("tiny", tmp_path / "run" / "tiny")):
        save(models[name], place / "student")
    run = str(tmp_path / "run")
    rows = compare_profiles([run, f"{run}/tiny/student"], batch_size=1)
    assert [row["name"] for row in rows] == [f"{run}/tiny", run, f"{run}/tiny/student"]
    assert [row["parameters"] for row in rows] == [profiles[name].parameters for name in ("tiny", "large", "tiny")]
    assert {"macs", "macs_with_attention", "peak_memory_mib", "batch_size"} <= rows[0].keys()
    assert set(rows[0]["latency_ms"]) == {FIRST, NEXT, "whole"}
    console = Console(record=True, width=400)
    print_profiles(console, rows)
    text = console.export_text()
    assert "connectors" in text
    assert "tokens a second" in text
    assert "MACs a further token" in text


def test_examining_a_model_leaves_all_that_the_page_needs(models, profiles, tmp_path: Path):
    model = {"kind": "opt", "width": 8, "layers": 1, "heads": 1}
    scenes = {"source": "builtin:scenes", "split": "test", "count": 2, "size": 32}
    benchmarks = [
        {"benchmark": "scenes_vqa", "name": name, "data": scenes, "max_new_tokens": 2} for name in ("vqa", "again")
    ]
    recipe = CTVLMRecipe.model_validate_json(
        json.dumps(
            {
                "method": "ctvlm",
                "output": "run",
                "duet": {"eye": "eye", "tiny": model, "large": model},
                "tokenizer": {"tokenizer": "bpe"},
                "stages": [
                    {
                        "kind": "language",
                        "data": [{"source": "captions", "of": scenes}],
                        "chat": {"template": "vicuna_v1"},
                    }
                ],
                "evaluation": {"benchmarks": benchmarks},
                "profile_words": 3,
            }
        )
    )
    save(models["tiny"], tmp_path / "model")
    out = tmp_path / "out"
    examine(out, lambda: open_saved(tmp_path / "model"), recipe)
    costs = json.loads((out / "profile.json").read_text())
    assert costs["parameters_by_tower"] == profiles["tiny"].parameters_by_tower
    assert costs["macs"] == profiles["tiny"].macs
    page = report_runs(tmp_path / "page", [out], "A title")
    (row,) = json.loads(page.json.read_text())
    assert (row["role"], row["parameters"]) == ("model", profiles["tiny"].parameters)
    assert row["metrics"].keys() == {"VQA", "again"}
    assert page.html.read_text().count('<article class="case">') == 2

    summary = out / "evaluation" / "summary.json"
    whole = json.loads(summary.read_text())
    summary.write_text(json.dumps({"vqa": whole["vqa"]}))
    (out / "evaluation" / "asked.json").unlink()
    (out / "profile.json").write_text("{}")
    examine(out, lambda: open_saved(tmp_path / "model"), recipe)
    assert json.loads(summary.read_text()) == whole, "what a kill between two benchmarks has left out is done"
    assert (out / "profile.json").read_text() == "{}", "what is there stays"

    answers = out / "evaluation" / "vqa.jsonl"
    kept = [{**json.loads(line), "prediction": "as before"} for line in answers.read_text().splitlines()]
    answers.write_text("".join(json.dumps(row) + "\n" for row in kept))
    (out / "gallery" / "old.png").write_bytes(b"")
    longer = [benchmarks[0], {**benchmarks[1], "short_answer": " In a word."}]
    other = json.loads(recipe.model_dump_json()) | {"evaluation": {"benchmarks": longer}}
    examine(out, lambda: open_saved(tmp_path / "model"), CTVLMRecipe.model_validate_json(json.dumps(other)))
    prompts = [json.loads(line)["prompt"] for line in (out / "evaluation" / "again.jsonl").read_text().splitlines()]
    assert all(prompt.endswith(" In a word.") for prompt in prompts), "a benchmark asked otherwise is asked anew"
    predictions = {json.loads(line)["prediction"] for line in answers.read_text().splitlines()}
    assert predictions == {"as before"}, "what was answered is not asked again"
    assert not (out / "gallery" / "old.png").exists(), "the gallery is of the new benchmarks"
    assert (out / "gallery" / "gallery.json").exists()
