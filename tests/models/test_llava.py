"""LLaVAs from parts: plain transformers loads them, a linear connector is linear, the paper's student has its size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_duets import eye_config, text_config
from tiny_llavas import SAID, llava
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaForConditionalGeneration,
)

from limbeck.data.chat import Chat, ChatConfig
from limbeck.data.decoder_tokenizer import BpeTokenizer, load_decoder_tokenizer
from limbeck.models.duet_eye import without_pooling
from limbeck.models.llava import build_llava, make_llava_processor, trained_connector


@pytest.fixture(scope="module")
def tokenizer():
    return load_decoder_tokenizer(BpeTokenizer(tokenizer="bpe", vocab_size=320), SAID)


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8))


def asked(model, tokenizer):
    """A prompt with a picture, as the processor makes it."""
    processor = make_llava_processor(model, tokenizer, Chat(tokenizer, ChatConfig()).jinja)
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}
    text = processor.apply_chat_template([turn], add_generation_prompt=True)
    return processor, processor(images=[picture(10, 6)], text=[text], add_special_tokens=False, return_tensors="pt")


@pytest.mark.parametrize("eye", ["clip", "siglip", "vit"])
@pytest.mark.parametrize("text", ["llama", "opt", "qwen3"])
def test_plain_transformers_loads_the_same_model(eye, text, tokenizer, tmp_path: Path):
    model = llava(tokenizer, eye=eye, text=text)
    processor, inputs = asked(model, tokenizer)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded, info = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is LlavaForConditionalGeneration
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    again = AutoProcessor.from_pretrained(tmp_path)
    assert again.tokenizer.chat_template == processor.tokenizer.chat_template
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, loaded(**inputs).logits)
    assert trained_connector(loaded) == trained_connector(model) == "model.multi_modal_projector.linear_1"


def test_a_linear_connector_is_one_linear_layer(tokenizer):
    model = llava(tokenizer)
    connector = model.model.multi_modal_projector
    hidden = torch.randn(3, 4, 16)
    assert torch.equal(connector(hidden), connector.linear_1(hidden))
    assert not connector.linear_2.weight.requires_grad
    assert trained_connector(llava(tokenizer, connector="mlp")) == "model.multi_modal_projector"


def test_the_picture_is_the_eyes_chosen_layer_without_its_class_token(tokenizer):
    for eye, layer in (("clip", -2), ("vit", -2), ("siglip", -2), ("clip", -1)):
        model = llava(tokenizer, eye=eye, eye_layer=layer)
        pixels = torch.randn(2, 3, 8, 8)
        with torch.no_grad():
            hidden = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states
            seen = torch.stack(list(model.model.get_image_features(pixels).pooler_output))
            expected = model.model.multi_modal_projector(hidden[layer][:, 0 if eye == "siglip" else 1 :])
        assert len(hidden) == 4, "what goes into the first layer, and what comes out of each"
        torch.testing.assert_close(seen, expected)
        assert seen.shape[1] == model.config.image_seq_length == 4


def test_parts_that_are_given_keep_their_weights(tokenizer):
    torch.manual_seed(0)
    speaking = AutoModelForCausalLM.from_config(text_config("llama", vocab_size=320))
    head, table = speaking.lm_head.weight.detach().clone(), speaking.get_input_embeddings().weight.detach().clone()
    model = build_llava(
        eye_config(), speaking, tokenizer_length=321, image_token_id=320, pad_token_id=0, bos_token_id=1, eos_token_id=2
    )
    assert torch.equal(model.lm_head.weight[:320], head)
    assert torch.equal(model.get_input_embeddings().weight[:320], table)
    assert model.config.text_config.vocab_size == 321, "the image token is looked up before the picture replaces it"
    torch.testing.assert_close(model.lm_head.weight[320], head.mean(0))
    assert 320 in model.generation_config.suppress_tokens


def test_an_image_token_of_the_vocabulary_needs_no_row():
    model = build_llava(
        eye_config(),
        text_config("llama"),
        tokenizer_length=50,
        image_token_id=40,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    assert len(model.lm_head.weight) == 60
    assert model.generation_config.suppress_tokens == [40, *range(50, 60)]


def test_a_limbeck_eye_sees_as_it_did(tokenizer):
    from limbeck.models.eyes import as_vit
    from limbeck.models.vision import VisionConfig, VisionTransformer

    torch.manual_seed(0)
    eye = without_pooling(
        as_vit(VisionTransformer(VisionConfig(width=16, layers=3, heads=2, image_size=8, patch_size=4)))
    )
    pixels = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        before = eye(pixels).last_hidden_state
        model = build_llava(
            eye,
            text_config("llama"),
            tokenizer_length=61,
            image_token_id=60,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
        torch.testing.assert_close(model.model.vision_tower(pixels).last_hidden_state, before)


def test_the_papers_student_has_its_size():
    eye = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=224,
        patch_size=14,
    )
    with torch.device("meta"):
        model = build_llava(
            eye,
            LlamaConfig(),
            tokenizer_length=32001,
            image_token_id=32000,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    identity = sum(x.numel() for x in model.model.multi_modal_projector.linear_2.parameters())
    assert round((model.num_parameters() - identity) / 1e9, 3) == 7.046
    connector = model.get_submodule(trained_connector(model))
    assert connector.weight.shape == (4096, 1024)
    assert model.config.image_seq_length == 256


def test_what_does_not_fit_is_named(tokenizer):
    with pytest.raises(ValueError, match="eye_layer is -4; this eye has the layers -3 to -1"):
        llava(tokenizer, eye_layer=-4)
    with pytest.raises(ValueError, match="siglip_vision_model' has no class token"):
        llava(tokenizer, eye="siglip", drop_class_token=True)
    with pytest.raises(ValueError, match="model_type 'llama'; known are"):
        build_llava(
            text_config("llama"),
            text_config("llama"),
            tokenizer_length=61,
            image_token_id=60,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
