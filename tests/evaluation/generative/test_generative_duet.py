"""limbeck's own folders, tiny and large, answer like any other model, in every chat template."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig, OPTConfig

from limbeck.data.chat import Chat, ChatConfig
from limbeck.data.decoder_tokenizer import BpeTokenizer, load_decoder_tokenizer
from limbeck.data.scenes import ScenesConfig
from limbeck.evaluation.generative.answering import answer_all, answers_to
from limbeck.evaluation.generative.benchmarks import evaluate_generative
from limbeck.evaluation.generative.model import AnsweringConfig, GenerativeModel, prepare
from limbeck.evaluation.generative.source_questions import ScenesVqaConfig
from limbeck.models.duet_build import build_duet
from limbeck.models.duet_processor import make_processor

TOWER = {"num_hidden_layers": 2, "num_attention_heads": 2}


def make_folders(template: str, tmp_path_factory) -> dict[str, Path]:
    """A random duet and its tiny model alone, saved with tokenizer, chat template and processor."""
    extra = ("<|im_start|>", "<|im_end|>") if template == "qwen" else ()
    recipe = BpeTokenizer(tokenizer="bpe", vocab_size=320, extra_tokens=extra)
    tokenizer = load_decoder_tokenizer(recipe, ["what colour is it?", "USER: ASSISTANT: single word or phrase"])
    chat = Chat(tokenizer, ChatConfig.model_validate({"template": template}))
    torch.manual_seed(0)
    size = len(tokenizer) - 1
    duet = build_duet(
        CLIPVisionConfig(hidden_size=16, intermediate_size=32, image_size=32, patch_size=16, **TOWER),
        OPTConfig(vocab_size=size, hidden_size=16, word_embed_proj_dim=16, ffn_dim=32, **TOWER),
        LlamaConfig(vocab_size=size, hidden_size=24, intermediate_size=48, initializer_range=0.5, **TOWER),
        tokenizer_length=len(tokenizer),
        image_token_id=chat.ids.image,
        pad_token_id=chat.ids.pad,
        bos_token_id=chat.ids.bos,
        eos_token_id=chat.ids.eos,
        embeddings="resized",
        fusion="prefix+cross",
        connector="mlp",
        features="I+T",
    )
    with torch.no_grad():
        for parameter in duet.parameters():
            parameter += 0.2 * torch.randn(parameter.shape)
    found = {}
    for name, model in (("large", duet), ("tiny", duet.tiny)):
        found[name] = tmp_path_factory.mktemp(f"{template}-{name}")
        model.generation_config.eos_token_id = chat.stop_id
        model.save_pretrained(found[name])
        make_processor(model.config, tokenizer, chat.jinja).save_pretrained(found[name])
    return found


@pytest.fixture(scope="module", params=["vicuna_v1", "llama", "qwen"])
def folders(request, tmp_path_factory):
    return make_folders(request.param, tmp_path_factory)


@pytest.mark.parametrize("name", ["tiny", "large"])
def test_answers_do_not_depend_on_the_batch(folders, items, name):
    model = GenerativeModel.from_folder(folders[name])
    alone = answers_to(model, items, max_new_tokens=5, config=AnsweringConfig(batch_size=1))
    assert answers_to(model, items, max_new_tokens=5, config=AnsweringConfig(batch_size=4)) == alone
    assert any(alone)
    start = model.processor.tokenizer.bos_token_id
    text = model.render("What?", 1)
    ids = model.processor(text=[text], images=[items[0].images[0].open()])["input_ids"][0]
    assert sum(id == start for id in ids) == 1


@pytest.mark.parametrize("name", ["tiny", "large"])
def test_answers_longer_than_the_models_positions_are_cut(folders, items, name, tmp_path):
    model = GenerativeModel.from_folder(folders[name])
    whole = answer_all(model, items, tmp_path / "whole.jsonl", max_new_tokens=20, progress=False)
    config = model.model.config
    part = config.large_part if name == "large" else config.text_part
    inputs = prepare(model.processor, [model.render(items[4].prompt, 1)], [[items[4].images[0].open()]])
    part.max_position_embeddings -= model.room(inputs) - 3
    assert model.room(inputs) == 3
    cut = answer_all(
        model, items, tmp_path / "cut.jsonl", max_new_tokens=20, config=AnsweringConfig(max_skipped=1), progress=False
    )
    assert {row["id"] for row in cut.rows} < {row["id"] for row in whole.rows}
    full = {row["id"]: row["prediction"] for row in whole.rows}
    assert all(full[row["id"]].startswith(row["prediction"].rstrip("\ufffd")) for row in cut.rows)


@pytest.mark.parametrize("name", ["tiny", "large"])
def test_of_several_pictures_the_first_is_shown_and_that_is_said_once(folders, items, name, tmp_path, caplog):
    model, only = GenerativeModel.from_folder(folders[name]), [item for item in items if item.images]
    several = [replace(item, images=(*item.images, *only[0].images)) for item in only]
    assert answers_to(model, several, max_new_tokens=5) == answers_to(model, only, max_new_tokens=5)
    rows = answer_all(model, several, tmp_path / "rows.jsonl", max_new_tokens=5, progress=False).rows
    assert [row["prediction"] for row in rows] == answers_to(model, only, max_new_tokens=5)
    said = [record.getMessage() for record in caplog.records if record.name.startswith("limbeck")]
    assert [text.partition(":")[0] for text in said] == [f"{type(model.model).__name__} reads one picture at a time"]


def test_a_duet_goes_through_a_benchmark(folders, tmp_path):
    pytest.importorskip("resvg_py")
    scenes = ScenesConfig(source="builtin:scenes", split="test", count=2, size=32, questions=2)
    config = ScenesVqaConfig(benchmark="scenes_vqa", data=scenes, max_new_tokens=3)
    summary = evaluate_generative(GenerativeModel.from_folder(folders["large"]), [config], tmp_path, progress=False)
    assert summary["scenes_vqa"]["questions"] == 4


def test_a_model_of_captions_is_shown_pictures_only(tmp_path_factory, items):
    model = GenerativeModel.from_folder(make_folders("plain", tmp_path_factory)["tiny"])
    shown = [replace(item, prompt="") for item in items if item.images]
    assert any(answers_to(model, shown, max_new_tokens=5))
    with pytest.raises(ValueError, match="leaves out what the user says, 'Which colour is it"):
        answers_to(model, items, max_new_tokens=5)


@pytest.mark.parametrize("name", ["tiny", "large"])
def test_choices_have_the_likelihood_of_the_models_own_loss(folders, items, name, tmp_path):
    model = GenerativeModel.from_folder(folders[name])
    choices = ("red", "what colour", "it is a phrase")
    shown = [replace(item, choices=choices) for item in items if item.images]
    rows = answer_all(
        model, shown, tmp_path / "rows.jsonl", max_new_tokens=1, config=AnsweringConfig(batch_size=9), progress=False
    ).rows
    for item, row in zip(shown, rows, strict=True):
        for choice, found, tokens in zip(choices, row["log_probabilities"], row["tokens"], strict=True):
            whole = model.render_answered(item.prompt, 1, choice)
            inputs = prepare(model.processor, [whole], [[item.images[0].open()]])
            labels = torch.full_like(inputs["input_ids"], -100)
            labels[:, -tokens:] = inputs["input_ids"][:, -tokens:]
            with torch.no_grad():
                loss = model.model(**inputs, labels=labels).loss
            assert found == pytest.approx(-float(loss) * tokens, abs=2e-3)
