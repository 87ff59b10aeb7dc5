"""Going on with a trained model at another size, with drop path, or with an answer decoder of its own."""

import pytest
import torch

from limbeck.models.albef import Albef
from limbeck.models.blip import Blip
from limbeck.models.clip import ClipConfig, DualEncoder
from limbeck.models.fusion import FusionConfig
from limbeck.models.med import TextConfig
from limbeck.models.refit import refit
from limbeck.models.vision import VisionConfig

TEXT = TextConfig(width=24, layers=2, heads=3, vocab_size=40, dec_token_id=38, enc_token_id=39, sep_token_id=3)
PICTURES = torch.linspace(-1, 1, 2 * 3 * 48 * 48).view(2, 3, 48, 48)


def vision(width: int = 24) -> VisionConfig:
    return VisionConfig(width=width, layers=2, heads=3, patch_size=16, image_size=32)


def blip(width: int = 24, text: TextConfig = TEXT) -> Blip:
    torch.manual_seed(0)
    return Blip(FusionConfig(family="blip", vision=vision(width), text=text, embedding=16)).eval()


@pytest.mark.parametrize("family", ["blip", "albef", "clip"])
def test_another_picture_size_sees_what_interpolation_at_every_step_saw(family):
    torch.manual_seed(0)
    if family == "clip":
        model = DualEncoder(ClipConfig(vision=vision(), text=TEXT, embedding=16)).eval()
    elif family == "albef":
        text = TEXT.model_copy(update={"fusion_layers": 1})
        model = Albef(FusionConfig(family="albef", vision=vision(), text=text, embedding=16)).eval()
    else:
        model = blip()
    larger = refit(model, image_size=48)
    assert larger.config.vision.image_size == 48
    assert larger.config.vision.tokens == 10
    torch.testing.assert_close(larger.encode_image(PICTURES).output, model.encode_image(PICTURES).output)


def test_the_same_size_keeps_every_weight_and_the_mode():
    model = blip().train()
    same = refit(model, image_size=32, drop_path=0.1)
    assert same.training
    assert same.config.vision.drop_path == 0.1
    for name, tensor in model.state_dict().items():
        assert torch.equal(same.state_dict()[name], tensor), name


def test_an_answer_decoder_starts_as_the_caption_decoder_and_then_trains_alone():
    model = blip()
    own = refit(model, answer_decoder=True)
    ids = torch.tensor([[2, 5, 7, 3], [2, 9, 3, 0]])
    questions = model.fuse(model.image_memory(model.encode_image(PICTURES).hidden), ids, ids > 0)
    tied = model.answer(model.question_memory(questions.hidden, ids > 0), ids, ids > 0).output
    torch.testing.assert_close(own.answer(own.question_memory(questions.hidden, ids > 0), ids, ids > 0).output, tied)
    assert own.answer_decoder is not None
    with torch.no_grad():
        own.answer_decoder.layers[0].up.weight.zero_()
    assert own.text is not None
    assert own.text.layers[0].up.weight.any()


def test_an_answer_decoder_over_another_width_copies_all_but_keys_and_values():
    model = blip(width=36)
    assert model.text is not None
    own = refit(model, answer_decoder=True).answer_decoder
    assert own is not None
    theirs, ours = model.text.layers[0], own.layers[0]
    assert torch.equal(ours.cross_attention.query.weight, theirs.cross_attention.query.weight)
    assert torch.equal(ours.decoder_attention.key.weight, theirs.decoder_attention.key.weight)
    assert theirs.cross_attention.key.weight.shape == (24, 36)
    assert ours.cross_attention.key.weight.shape == (24, 24)


def test_layers_without_fusion_give_the_answer_decoder_a_new_cross_attention():
    model = blip(text=TEXT.model_copy(update={"fusion_layers": 1}))
    own = refit(model, answer_decoder=True).answer_decoder
    assert own is not None
    assert own.layers[0].cross_attention is not None
    assert torch.equal(own.layers[1].cross_attention.key.weight, model.text.layers[1].cross_attention.key.weight)


def test_albefs_answer_decoder_starts_as_its_fusion_layers_and_answers_word_by_word():
    torch.manual_seed(0)
    text = TEXT.model_copy(update={"layers": 3, "fusion_layers": 2})
    model = Albef(FusionConfig(family="albef", vision=vision(), text=text, embedding=16)).eval()
    with pytest.raises(ValueError, match="set answer_decoder: separate"):
        model.answerer()
    own = refit(model, answer_decoder=True)
    assert isinstance(own, Albef)
    decoder = own.answerer()
    assert model.text is not None
    assert len(decoder.layers) == 2
    for ours, theirs in zip(decoder.layers, model.text.layers[1:], strict=True):
        assert torch.equal(ours.decoder_attention.query.weight, theirs.encoder_attention.query.weight)
        assert torch.equal(ours.cross_attention.key.weight, theirs.cross_attention.key.weight)
        assert torch.equal(ours.up.weight, theirs.up.weight)
    assert torch.equal(decoder.embeddings.words.weight, model.text.embeddings.words.weight)

    ids = torch.tensor([[2, 5, 7, 3], [2, 9, 3, 0]])
    fused = own.fuse(own.image_memory(own.encode_image(PICTURES[..., :32, :32])), ids, ids > 0)
    memory = own.question_memory(fused.hidden, ids > 0)
    written = own.generate(memory, ids[:, :1], max_new_tokens=4, min_new_tokens=4)
    logits = own.answer(memory, written, None).output
    assert torch.equal(logits[:, :4].argmax(-1), written[:, 1:5])


def test_a_size_that_does_not_divide_and_a_missing_decoder_are_named():
    with pytest.raises(ValueError, match="image_size 40 does not divide into patch_size 16"):
        refit(blip(), image_size=40)
    clip = DualEncoder(ClipConfig(vision=vision(), text=TEXT, embedding=16))
    with pytest.raises(ValueError, match="a clip has none"):
        refit(clip, answer_decoder=True)
