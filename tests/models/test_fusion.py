"""BLIP's passes: padding, causality, tying, rows of a memory, questions, what is refused, precision."""

import copy
from collections.abc import Callable

import pytest
import torch
from pydantic import ValidationError
from tiny_models import stir, text, vision
from torch import Tensor

from limbeck.models.albef import Albef
from limbeck.models.blip import Blip
from limbeck.models.fusion import FusionConfig, FusionVLM, Memory
from limbeck.types import AttentionState, Signals

MakeBlip = Callable[..., Blip]


def picture_memory(model: FusionVLM, pixels: Tensor) -> Memory:
    return model.image_memory(model.encode_image(pixels).hidden)


def passes(model: Blip, pixels: Tensor, ids: Tensor, mask: Tensor) -> dict[str, Signals]:
    memory = picture_memory(model, pixels)
    fused = model.fuse(memory, ids, mask, capture=True)
    asked = model.question_memory(fused.hidden, mask)
    return {
        "text": model.encode_text(ids, mask, capture=True),
        "fused": fused,
        "decoded": model.decode(memory, ids, mask, capture=True),
        "answer": model.answer(asked, ids, mask, capture=True),
    }


@torch.no_grad()
def test_padding_changes_nothing(make_blip: MakeBlip, pixels: Tensor, ids: Tensor, mask: Tensor) -> None:
    model = make_blip()
    padded = torch.cat((ids, torch.randint(7, 50, (3, 4))), dim=1)
    longer = torch.cat((mask, torch.zeros(3, 4, dtype=torch.bool)), dim=1)
    short, long = passes(model, pixels, ids, mask), passes(model, pixels, padded, longer)
    for name in short:
        torch.testing.assert_close(long[name].hidden[:, :8][mask], short[name].hidden[mask])
    torch.testing.assert_close(long["text"].output, short["text"].output)
    torch.testing.assert_close(long["fused"].output, short["fused"].output)


@torch.no_grad()
def test_later_token_never_changes_an_earlier_logit(make_blip: MakeBlip, pixels: Tensor, ids: Tensor) -> None:
    model = make_blip()
    memory = picture_memory(model, pixels)
    before = model.decode(memory, ids, None).output
    for place in range(1, 8):
        changed = ids.clone()
        changed[:, place:] = 20 + place
        after = model.decode(memory, changed, None).output
        torch.testing.assert_close(after[:, :place], before[:, :place])
        assert not torch.allclose(after[:, place:], before[:, place:])


@torch.no_grad()
def test_gathered_rows_are_what_computing_again_gives(
    make_blip: MakeBlip, pixels: Tensor, ids: Tensor, mask: Tensor
) -> None:
    model = make_blip()
    memory, rows = picture_memory(model, pixels), torch.tensor([2, 0, 0])
    again = picture_memory(model, pixels[rows])
    for call in (model.fuse, model.decode):
        torch.testing.assert_close(
            call(memory, ids, mask, rows=rows).output, call(again, ids, mask).output, atol=1e-5, rtol=1e-5
        )
    fused = model.fuse(memory, ids, mask)
    asked, again = model.question_memory(fused.hidden, mask), model.question_memory(fused.hidden[rows], mask[rows])
    torch.testing.assert_close(model.answer(asked, ids, mask, rows=rows).output, model.answer(again, ids, mask).output)


@torch.no_grad()
@pytest.mark.parametrize("name", ["text", "fused", "decoded", "answer"])
def test_captured_attention_is_the_maps(
    make_blip: MakeBlip, pixels: Tensor, ids: Tensor, mask: Tensor, name: str
) -> None:
    """Probabilities from what is captured, times values, are what the last layer mixed."""
    model = make_blip()
    assert model.text is not None
    layer = model.text.stack()[-1]
    own = layer.encoder_attention if name in ("text", "fused") else layer.decoder_attention
    assert own is not None
    seen: list[tuple[Tensor, Tensor]] = []
    own.output.register_forward_hook(lambda _m, given, _out: seen.append(given[0]))
    values: list[Tensor] = []
    own.value.register_forward_hook(lambda _m, _given, out: values.append(out))
    signals = passes(model, pixels, ids, mask)[name]
    state = signals.self_attention
    assert isinstance(state, AttentionState)
    assert state.query.shape == state.key.shape == (3, 4, 8, 6)
    assert state.mask is not None
    scores = (state.scale * state.query @ state.key.mT).masked_fill(~state.mask, -torch.inf)
    index = {"text": 1, "fused": 0, "decoded": 0, "answer": 1}[name]
    mixed = (scores.softmax(-1) @ own.split(values[index])).transpose(1, 2).flatten(2)
    torch.testing.assert_close(mixed, seen[index])
    assert (signals.cross_attention is None) == (name == "text")


def test_decoder_shares_all_but_its_self_attention(make_blip: MakeBlip, pixels: Tensor, ids: Tensor) -> None:
    model = make_blip()
    assert model.text is not None
    model.decode(picture_memory(model, pixels), ids, None).output.sum().backward()
    reached = {name for name, parameter in model.text.named_parameters() if parameter.grad is not None}
    assert reached == {name for name, _ in model.text.named_parameters() if ".encoder_attention." not in name}
    separate = make_blip(decoder="separate")
    alone = sum(parameter.numel() for parameter in separate.parameters())
    assert alone > sum(parameter.numel() for parameter in model.parameters())


def test_answers_need_towers_of_one_width_or_a_decoder_of_their_own(
    make_blip: MakeBlip, pixels: Tensor, ids: Tensor, mask: Tensor
) -> None:
    model = make_blip(vision=vision(32))
    fused = model.fuse(picture_memory(model, pixels), ids, mask)
    with pytest.raises(ValueError, match=r"vision.width is 32, text.width 24: set answer_decoder: separate"):
        model.question_memory(fused.hidden, mask)
    own = make_blip(vision=vision(32), answer_decoder="separate")
    asked = own.question_memory(own.fuse(picture_memory(own, pixels), ids, mask).hidden, mask)
    assert own.answer(asked, ids, mask).output.shape == (3, 8, 50)


def test_memory_of_the_wrong_kind_is_refused(make_blip: MakeBlip, pixels: Tensor, ids: Tensor, mask: Tensor) -> None:
    model = make_blip()
    pictures = picture_memory(model, pixels)
    questions = model.question_memory(model.fuse(pictures, ids, mask).hidden, mask)
    for call, memory in ((model.answer, pictures), (model.decode, questions), (model.fuse, questions)):
        with pytest.raises(ValueError, match="wants the memory of"):
            call(memory, ids, mask)


def test_text_that_is_too_long_is_refused(make_blip: MakeBlip) -> None:
    with pytest.raises(ValueError, match="a text of 33 tokens; max_positions is 32"):
        make_blip().encode_text(torch.ones(1, 33, dtype=torch.long), None)


@torch.no_grad()
def test_class_tokens_are_put_in_by_the_model(make_blip: MakeBlip, pixels: Tensor, ids: Tensor, mask: Tensor) -> None:
    model = make_blip()
    memory = picture_memory(model, pixels)
    other = ids.clone()
    other[:, 0] = 9
    for call in (model.fuse, model.decode):
        assert torch.equal(call(memory, ids, mask).output, call(memory, other, mask).output)
    assert not torch.equal(model.encode_text(ids, mask).output, model.encode_text(other, mask).output)


@torch.no_grad()
def test_fusion_layers_are_the_last_ones(make_blip: MakeBlip, pixels: Tensor, ids: Tensor, mask: Tensor) -> None:
    model = make_blip(text=text(fusion_layers=1))
    assert model.text is not None
    assert [layer.cross_attention is not None for layer in model.text.stack()] == [False, False, True]
    assert len(picture_memory(model, pixels).encoder.heads) == 1  # pyright: ignore[reportOptionalMemberAccess]
    assert passes(model, pixels, ids, mask)["decoded"].cross_attention is not None


@torch.no_grad()
def test_albef_fuses_from_where_its_text_layers_end(pixels: Tensor, ids: Tensor, mask: Tensor) -> None:
    config = FusionConfig(family="albef", vision=vision(), text=text(fusion_layers=2), embedding=16)
    model = stir(Albef(config))
    assert isinstance(model, Albef)
    assert model.text is not None
    alone = model.encode_text(ids, mask)
    torch.testing.assert_close(alone.hidden, model.text.encode(ids, mask, layers=1).hidden)
    memory = picture_memory(model, pixels)
    filled, fused = model.fill(memory, ids, mask, capture=True), model.fuse(memory, ids, mask)
    assert filled.output.shape == (3, 8, 50)
    assert filled.cross_attention is not None
    torch.testing.assert_close(fused.output, model.match_head(fused.hidden[:, 0]))  # pyright: ignore
    with pytest.raises(ValueError, match="no decoder"):
        model.decode(memory, ids, mask)


def test_special_token_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"text.enc_token_id 50 is not in a vocabulary of 50 words"):
        FusionConfig(family="blip", vision=vision(), text=text(enc_token_id=50))


def test_albef_without_text_layers_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"needs text.fusion_layers below text.layers"):
        FusionConfig(family="albef", vision=vision(), text=text())


@pytest.mark.parametrize("family", ["blip", "albef"])
def test_mixed_precision_runs_forward_and_backward(family: str, pixels: Tensor, ids: Tensor, mask: Tensor) -> None:
    words = text(fusion_layers=2) if family == "albef" else text()
    config = FusionConfig.model_validate({"family": family, "vision": vision(), "text": words})
    model = (Blip if family == "blip" else Albef)(config).train()
    with torch.autocast("cpu", torch.bfloat16):
        image = model.encode_image(pixels, capture=True)
        memory = model.image_memory(image.hidden)
        outputs = [model.encode_text(ids, mask).output, model.fuse(memory, ids, mask, capture=True).output]
        if isinstance(model, Blip):
            outputs.append(model.decode(memory, ids, mask, capture=True).output)
    assert image.output.dtype == torch.float32
    torch.stack([output.float().square().sum() for output in outputs]).sum().backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in model.parameters())


@torch.no_grad()
def test_copy_is_independent(make_blip: MakeBlip, pixels: Tensor) -> None:
    model = make_blip()
    copied = copy.deepcopy(model)
    for parameter in copied.parameters():
        parameter.zero_()
    assert model.encode_image(pixels).output.abs().sum() > 0
