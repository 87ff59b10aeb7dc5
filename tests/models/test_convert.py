"""Folders that we write are read by plain transformers, and give what our model gives."""

from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image
from tiny_models import stir, text, vision
from torch import Tensor
from transformers import (
    AutoProcessor,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
    CLIPModel,
    PreTrainedTokenizerFast,
)

from limbeck.models.blip import Blip
from limbeck.models.clip import ClipConfig, DualEncoder
from limbeck.models.convert import export

CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def with_first(ids: Tensor, token: int) -> Tensor:
    changed = ids.clone()
    changed[:, 0] = token
    return changed


@torch.no_grad()
def test_captioning_folder_gives_our_logits_and_hidden_states(
    make_blip: Callable[..., Blip],
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    pixels: Tensor,
    ids: Tensor,
    mask: Tensor,
) -> None:
    model = make_blip(vision=vision(32))
    export(model, tokenizer, tmp_path, task="captioning")
    theirs, report = BlipForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    image = model.encode_image(pixels)
    ours = model.decode(model.image_memory(image), ids, mask)
    out = theirs.eval()(pixel_values=pixels, input_ids=with_first(ids, 5), attention_mask=mask.long())
    torch.testing.assert_close(out.image_embeds, image.hidden, **CLOSE)
    torch.testing.assert_close(out.logits[mask], ours.output[mask], **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize(("beams", "least"), [(1, 0), (3, 0), (3, 6)])
def test_captioning_folder_generates_our_captions(
    make_blip: Callable[..., Blip],
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    pixels: Tensor,
    beams: int,
    least: int,
) -> None:
    model = make_blip()
    export(model, tokenizer, tmp_path, task="captioning")
    theirs = BlipForConditionalGeneration.from_pretrained(tmp_path).eval()
    prompt = torch.tensor([[2, 9, 10, 11]]).expand(3, -1)
    settings = {"num_beams": beams, "max_new_tokens": 10, "min_new_tokens": least}
    ours = model.generate(model.image_memory(model.encode_image(pixels)), prompt, **settings)
    # transformers drops the last token of a prompt: the tokenizer ends it with a separator
    ended = torch.cat((prompt, torch.full((3, 1), 3)), dim=1)
    assert ours.tolist() == theirs.generate(pixel_values=pixels, input_ids=ended, **settings).tolist()


@torch.no_grad()
def test_retrieval_folder_gives_our_similarities_and_match_logits(
    make_blip: Callable[..., Blip],
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    pixels: Tensor,
    ids: Tensor,
    mask: Tensor,
) -> None:
    model = make_blip(vision=vision(32))
    export(model, tokenizer, tmp_path, task="retrieval")
    theirs, report = BlipForImageTextRetrieval.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    theirs.eval()
    image, words = model.encode_image(pixels), model.encode_text(ids, mask)
    cosine = theirs(pixel_values=pixels, input_ids=ids, attention_mask=mask.long(), use_itm_head=False)
    torch.testing.assert_close(cosine.itm_score, image.output @ words.output.T, **CLOSE)
    torch.testing.assert_close(cosine.question_embeds[mask], words.hidden[mask], **CLOSE)
    matched = theirs(pixel_values=pixels, input_ids=with_first(ids, 6), attention_mask=mask.long())
    torch.testing.assert_close(matched.itm_score, model.fuse(model.image_memory(image), ids, mask).output, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("answer_decoder", ["tied", "separate"])
def test_vqa_folder_gives_our_answers(
    make_blip: Callable[..., Blip],
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    pixels: Tensor,
    ids: Tensor,
    mask: Tensor,
    answer_decoder: str,
) -> None:
    model = make_blip(answer_decoder=answer_decoder)
    export(model, tokenizer, tmp_path, task="vqa")
    theirs, report = BlipForQuestionAnswering.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    theirs.eval()
    seen = []
    theirs.text_decoder.register_forward_hook(lambda _module, _inputs, output: seen.append(output.logits))
    theirs(
        pixel_values=pixels,
        input_ids=with_first(ids, 6),
        attention_mask=mask.long(),
        decoder_input_ids=with_first(ids, 5),
        decoder_attention_mask=mask.long(),
    )
    question = model.fuse(model.image_memory(model.encode_image(pixels)), ids, mask)
    # transformers' answers look at the padding of their question, ours only where they are let
    seeing_padding = model.answer(model.question_memory(question.hidden, None), ids, mask)
    torch.testing.assert_close(seen[0][mask], seeing_padding.output[mask], **CLOSE)
    memory = model.question_memory(question.hidden, mask)
    torch.testing.assert_close(seen[0][0], model.answer(memory, ids, mask).output[0], **CLOSE)
    one = model.question_memory(question.hidden[:1], mask[:1])
    ours = model.generate(one, torch.tensor([[2]]), num_beams=3, max_new_tokens=6)
    found = theirs.generate(input_ids=with_first(ids, 6)[:1], pixel_values=pixels[:1], num_beams=3, max_new_tokens=6)
    assert ours.tolist() == found.tolist()


@torch.no_grad()
def test_clip_folder_gives_our_similarities(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, pixels: Tensor, ids: Tensor, mask: Tensor
) -> None:
    model = stir(DualEncoder(ClipConfig(vision=vision(32), text=text(), embedding=16)))
    assert isinstance(model, DualEncoder)
    export(model, tokenizer, tmp_path, task="clip")
    theirs, report = CLIPModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    out = theirs.eval()(input_ids=ids, pixel_values=pixels, attention_mask=mask.long())
    ours = model.encode_image(pixels).output @ model.encode_text(ids, mask).output.T / model.temperature
    torch.testing.assert_close(out.logits_per_image, ours, **CLOSE)


@pytest.mark.parametrize("task", ["captioning", "vqa", "retrieval", "clip"])
def test_processor_of_a_folder_gives_what_the_model_takes(
    make_blip: Callable[..., Blip], tokenizer: PreTrainedTokenizerFast, tmp_path: Path, task: str
) -> None:
    model = make_blip() if task != "clip" else DualEncoder(ClipConfig(vision=vision(), text=text(), embedding=16))
    export(model, tokenizer, tmp_path, task=task, image_mean=(0.5, 0.5, 0.5), image_std=(0.25, 0.25, 0.25))  # pyright: ignore
    processor = AutoProcessor.from_pretrained(tmp_path)
    picture = Image.fromarray(numpy.full((20, 30, 3), 255, dtype=numpy.uint8))
    out = processor(images=picture, text="w0 w1", return_tensors="pt")
    assert out["pixel_values"].shape == (1, 3, 16, 16)
    assert torch.allclose(out["pixel_values"], torch.tensor(2.0), atol=1e-3)
    assert out["input_ids"].tolist() == [[6 if task == "vqa" else 2, 7, 8, 3]]
    assert tokenizer("w0")["input_ids"][0] == 2, "the caller's tokenizer stays as it was"


def test_exported_config_says_what_transformers_gets_wrong_by_default(
    make_blip: Callable[..., Blip], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    export(make_blip(), tokenizer, tmp_path, task="captioning")
    theirs = BlipForConditionalGeneration.from_pretrained(tmp_path)
    config = theirs.config
    assert config.text_config.num_attention_heads == 4
    assert config.text_config.hidden_dropout_prob == 0.1
    assert config.text_config.layer_norm_eps == 1e-12
    assert config.text_config.eos_token_id == 3
    assert config.text_config.label_smoothing == 0.1
    assert config.vision_config.layer_norm_eps == 1e-6
    assert config.vision_config.initializer_range == 0.02
    assert config.vision_config.image_size == 16
    assert theirs.generation_config.eos_token_id == 3
    words = theirs.text_decoder.bert.embeddings.word_embeddings.weight
    assert theirs.text_decoder.cls.predictions.decoder.weight is words


@pytest.mark.parametrize(
    ("values", "task", "message"),
    [
        ({"text": text(fusion_layers=2)}, "captioning", "cross-attention in every layer; this model in 2 of 3"),
        ({"text": text(fusion_layers=2)}, "vqa", "cross-attention in every layer"),
        ({"vision": vision(32), "answer_decoder": "separate"}, "vqa", "vision.width is 32, text.width 24"),
        ({"decoder": "none"}, "captioning", "no decoder"),
        ({"heads": False}, "retrieval", "no contrastive and matching heads"),
        ({}, "clip", "no class for a blip model and task clip"),
    ],
)
def test_what_transformers_cannot_hold_is_refused(
    make_blip: Callable[..., Blip],
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    values: dict[str, object],
    task: str,
    message: str,
) -> None:
    with pytest.raises(ValueError, match=message):
        export(make_blip(**values), tokenizer, tmp_path, task=task)  # pyright: ignore
