"""A student's first weights from a teacher or from pretrained towers."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_models import stir, text, vision
from torch import Tensor
from transformers import BertConfig, BertModel, BlipVisionModel, DeiTConfig, DeiTModel, ViTConfig, ViTModel

from limbeck.models.blip import Blip
from limbeck.models.clip import ClipConfig, DualEncoder
from limbeck.models.convert import blip_config
from limbeck.models.inherit import inherit_tower, load_tower

MakeBlip = Callable[..., Blip]
SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "intermediate_size": 96}
PICTURE = {"num_attention_heads": 2, "image_size": 16, "patch_size": 4}


@torch.no_grad()
def test_student_of_the_teachers_size_becomes_the_teacher(
    make_blip: MakeBlip, pixels: Tensor, ids: Tensor, mask: Tensor
) -> None:
    teacher, student = make_blip(seed=1), make_blip(seed=2)
    for tower in ("vision", "text"):
        inherit_tower(student, teacher, tower)
    ours, theirs = student.encode_image(pixels), teacher.encode_image(pixels)
    torch.testing.assert_close(ours.hidden, theirs.hidden)
    ours = student.decode(student.image_memory(ours), ids, mask)
    theirs = teacher.decode(teacher.image_memory(theirs), ids, mask)
    torch.testing.assert_close(ours.output, theirs.output)


@torch.no_grad()
def test_slices_take_the_same_channels_heads_and_layers_everywhere(make_blip: MakeBlip) -> None:
    teacher = make_blip(vision=vision(48, heads=4, layers=4), text=text(48, layers=5))
    student = make_blip(vision=vision(24, heads=2, layers=2), text=text(24, layers=2))
    for tower in ("vision", "text"):
        inherit_tower(student, teacher, tower)
    channels = torch.linspace(0, 47, 24).round().long()
    torch.testing.assert_close(student.vision.positions, teacher.vision.positions[..., channels])
    big, small = teacher.vision.blocks[3], student.vision.blocks[1]
    torch.testing.assert_close(small.attention_norm.weight, big.attention_norm.weight[channels])
    # heads of 12 channels: the first and the last of four, whole
    rows = torch.cat((torch.arange(12), torch.arange(36, 48)))
    value = big.attention.qkv.weight[96:][rows][:, channels]
    torch.testing.assert_close(small.attention.qkv.weight[48:], value)
    torch.testing.assert_close(small.attention.output.weight, big.attention.output.weight[channels][:, rows])
    assert student.text is not None
    assert teacher.text is not None
    own, theirs = student.text.stack()[1], teacher.text.stack()[4]
    assert own.cross_attention is not None
    assert theirs.cross_attention is not None
    # four heads of 12 channels become four of 6, evenly spaced inside
    inside = torch.linspace(0, 11, 6).round().long()
    rows = (torch.arange(4)[:, None] * 12 + inside).flatten()
    torch.testing.assert_close(own.cross_attention.key.weight, theirs.cross_attention.key.weight[rows][:, channels])
    torch.testing.assert_close(student.text.embeddings.words.weight, teacher.text.embeddings.words.weight[:, channels])


@torch.no_grad()
@pytest.mark.parametrize("kind", ["vit", "deit", "blip"])
def test_pretrained_image_tower_gives_its_hidden_states(
    make_blip: MakeBlip, tmp_path: Path, pixels: Tensor, kind: str
) -> None:
    student = make_blip()
    if kind == "vit":
        theirs = ViTModel(ViTConfig(**SIZES, **PICTURE, layer_norm_eps=1e-6))
    elif kind == "deit":
        theirs = DeiTModel(DeiTConfig(**SIZES, **PICTURE, layer_norm_eps=1e-6))
    else:
        theirs = BlipVisionModel(blip_config(student.config).vision_config)  # pyright: ignore
    stir(theirs, 5)
    theirs.save_pretrained(tmp_path)
    load_tower(student, tmp_path, "vision")
    if kind == "deit":  # its distillation token is left out, so compare what goes in
        joined = theirs.embeddings.position_embeddings
        torch.testing.assert_close(student.vision.positions, torch.cat((joined[:, :1], joined[:, 2:]), dim=1))
    else:
        expected = theirs(pixel_values=pixels).last_hidden_state
        torch.testing.assert_close(student.encode_image(pixels).hidden, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_pretrained_tower_of_another_picture_size_is_interpolated(make_blip: MakeBlip, tmp_path: Path) -> None:
    theirs = stir(ViTModel(ViTConfig(**SIZES, **PICTURE | {"image_size": 32})))
    theirs.save_pretrained(tmp_path)  # pyright: ignore
    student = make_blip()
    load_tower(student, tmp_path, "vision")
    torch.testing.assert_close(student.vision.positions[:, 0], theirs.embeddings.position_embeddings[:, 0])  # pyright: ignore


@torch.no_grad()
def test_bert_gives_its_hidden_states_and_both_self_attentions(
    make_blip: MakeBlip, tmp_path: Path, ids: Tensor, mask: Tensor
) -> None:
    config = BertConfig(**SIZES, num_attention_heads=4, vocab_size=48, max_position_embeddings=32)
    theirs = stir(BertModel(config))
    theirs.save_pretrained(tmp_path)  # pyright: ignore
    student = make_blip(text=text(layers=2))
    assert student.text is not None
    added = student.text.embeddings.words.weight[48:].clone()
    load_tower(student, tmp_path, "text")
    ids = ids.clamp(max=47)
    expected = theirs(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    torch.testing.assert_close(student.encode_text(ids, mask).hidden[mask], expected[mask], atol=1e-5, rtol=1e-5)
    layer = student.text.stack()[1]
    assert layer.encoder_attention is not None
    assert layer.decoder_attention is not None
    assert torch.equal(layer.encoder_attention.key.weight, layer.decoder_attention.key.weight)
    assert torch.equal(student.text.embeddings.words.weight[48:], added), "[DEC] and [ENC] stay"


@torch.no_grad()
def test_clip_student_takes_slices_of_a_clip_teacher(pixels: Tensor) -> None:
    teacher = DualEncoder(ClipConfig(vision=vision(48, layers=4), text=text(48)))
    student = DualEncoder(ClipConfig(vision=vision(24), text=text(24)))
    for tower in ("vision", "text"):
        inherit_tower(student, teacher, tower)
    channels = torch.linspace(0, 47, 24).round().long()
    own = student.get_submodule("vision.encoder.layers.1.mlp.fc2")
    theirs = teacher.get_submodule("vision.encoder.layers.3.mlp.fc2")
    inner = torch.linspace(0, 191, 96).round().long()
    assert isinstance(own.weight, Tensor)
    assert isinstance(theirs.weight, Tensor)
    torch.testing.assert_close(own.weight, theirs.weight[channels][:, inner])
    assert student.encode_image(pixels).output.isfinite().all()


@pytest.mark.parametrize(
    ("values", "tower", "message"),
    [
        ({"vision": vision(48)}, "vision", r"vision\.width is 24, and the student wants 48"),
        ({"vision": vision(layers=3)}, "vision", r"vision\.layers is 2, and the student wants 3"),
        ({"text": text(vocab_size=60)}, "text", "a vocabulary of 50 words for a student of 60"),
    ],
)
def test_smaller_teacher_is_refused(make_blip: MakeBlip, values: dict[str, object], tower: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        inherit_tower(make_blip(**values), make_blip(), tower)  # pyright: ignore


def test_other_families_are_refused(make_blip: MakeBlip) -> None:
    clip = DualEncoder(ClipConfig(vision=vision(), text=text()))
    with pytest.raises(ValueError, match="a clip student cannot take slices of a blip teacher"):
        inherit_tower(clip, make_blip(), "vision")
