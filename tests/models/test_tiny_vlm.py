"""The tiny VLM beside transformers' own models: same logits, hidden states and answers, with and without a cache."""

import copy

import pytest
import torch
from tiny_duets import BOS, EOS, IMAGE, PAD, ROWS, batch, conversation, pixels, stirred, text_config, tiny_config
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, Olmo2Config, OPTConfig, OPTForCausalLM, PreTrainedModel

from limbeck.models.duet_config import TinyVLMConfig
from limbeck.models.tiny_vlm import TinyVLM

BODIES = ("opt", "llama", "qwen2", "qwen3")
FUSIONS = ("prefix+cross", "prefix", "cross")


def model(body: str = "opt", eye: str = "clip", **values: object) -> TinyVLM:
    config = tiny_config(body, eye, **values)
    torch.manual_seed(0)
    return stirred(TinyVLM(config))


def prompts(*, left: bool = True) -> tuple[Tensor, Tensor]:
    """Two prompts of different length."""
    ids, mask, _ = batch(conversation(2, 3, 1), conversation(0, 6, 1, seed=1), left=left)
    return ids, mask


def texts() -> tuple[Tensor, Tensor]:
    ids = torch.randint(3, ROWS, (3, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(3, 9, dtype=torch.bool)
    mask[0, :4] = mask[2, :1] = False
    return ids.masked_fill(~mask, PAD), mask


def plain_opt(tiny: TinyVLM) -> OPTForCausalLM:
    """transformers' own model over a wider token table, with the tiny one's weights."""
    config = text_config("opt", word_embed_proj_dim=32)
    plain = OPTForCausalLM(config).eval()
    weights = {f"model.{name}": weight for name, weight in tiny.body.state_dict().items()}
    weights["model.decoder.embed_tokens.weight"] = weights["lm_head.weight"] = tiny.table.weight
    weights["model.decoder.project_in.weight"] = tiny.get_parameter("project_in.weight")
    weights["model.decoder.project_out.weight"] = tiny.get_parameter("project_out.weight")
    plain.load_state_dict(weights)
    return plain


def plain_resized(tiny: TinyVLM, body: str) -> PreTrainedModel:
    plain = AutoModelForCausalLM.from_config(text_config(body, tie_word_embeddings=True)).eval()
    weights = {f"model.{name}": weight for name, weight in tiny.body.state_dict().items()}
    place = "model.decoder.embed_tokens.weight" if body == "opt" else "model.embed_tokens.weight"
    plain.load_state_dict({**weights, place: tiny.table.weight, "lm_head.weight": tiny.table.weight})
    return plain


@torch.no_grad()
def test_with_a_frozen_table_it_is_opt_with_word_embed_proj_dim() -> None:
    tiny = model(fusion="prefix")
    plain = plain_opt(tiny)
    ids, mask = texts()
    normed: list[Tensor] = []
    final_norm = plain.get_submodule("model.decoder.final_layer_norm")
    final_norm.register_forward_hook(lambda _norm, _given, out: normed.append(out))
    expected = plain(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(tiny(input_ids=ids, attention_mask=mask).logits[mask], expected[mask])
    hidden = tiny.read(ids, mask)
    assert hidden.shape == (3, 9, 24)
    torch.testing.assert_close(hidden[mask], normed[0][mask])
    torch.testing.assert_close(tiny.head_input(hidden)[mask] @ tiny.head_weight.T, expected[mask])
    own = tiny.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False)
    assert own.tolist() == plain.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False).tolist()


@torch.no_grad()
@pytest.mark.parametrize("body", BODIES)
def test_with_a_resized_table_it_is_the_plain_language_model(body: str) -> None:
    tiny = model(body, embeddings="resized", fusion="prefix")
    ids, mask = texts()
    positions = (mask.long().cumsum(1) - 1).clamp_min(0)
    expected = plain_resized(tiny, body)(input_ids=ids, attention_mask=mask, position_ids=positions).logits
    torch.testing.assert_close(tiny(input_ids=ids, attention_mask=mask).logits[mask], expected[mask])
    assert tiny.table.weight.requires_grad


@torch.no_grad()
@pytest.mark.parametrize("body", BODIES)
def test_new_cross_attention_changes_nothing(body: str) -> None:
    both = TinyVLM(tiny_config(body)).eval()
    prefix = TinyVLM(tiny_config(body, fusion="prefix")).eval()
    cross = TinyVLM(tiny_config(body, fusion="cross")).eval()
    plain = {name: weight for name, weight in both.state_dict().items() if not name.startswith("cross.")}
    prefix.load_state_dict(plain)
    cross.load_state_dict(both.state_dict())
    ids, mask = prompts()
    image = both.see(pixels(2))
    assert torch.equal(both.read(ids, mask, image), prefix.read(ids, mask, image))
    words = ids != IMAGE
    bare, bare_mask = ids[words].view(2, -1), mask[words].view(2, -1)
    torch.testing.assert_close(cross.read(ids, mask, image)[words & mask], prefix.read(bare, bare_mask)[bare_mask])


@torch.no_grad()
@pytest.mark.parametrize("body", ["opt", "llama"])
def test_cross_attention_is_added_to_the_stream_after_self_attention(body: str) -> None:
    tiny = model(body, fusion="cross", text=text_config(body, layers=1))
    ids, _ = texts()
    image = tiny.see(pixels(3))
    asked = {}
    layer = (tiny.body.decoder if body == "opt" else tiny.body).layers[0]
    layer.self_attn.register_forward_hook(
        lambda _module, _given, _named, out: asked.update(sa=out[0]), with_kwargs=True
    )
    layer.register_forward_pre_hook(lambda _module, given: asked.update(x=given[0]))
    seen = tiny.read(ids, None, image)
    fused = asked["x"] + asked["sa"]
    tiny.read(ids)
    stream = asked["x"] + asked["sa"]
    cross = tiny.cross[0]
    heads = [
        linear(given).unflatten(-1, (2, 12)).transpose(1, 2)
        for linear, given in ((cross.query, cross.norm(stream)), (cross.key, image), (cross.value, image))
    ]
    weights = (heads[0] @ heads[1].mT / 12**0.5).softmax(-1)
    expected = stream + cross.output((weights @ heads[2]).transpose(1, 2).flatten(2))
    torch.testing.assert_close(fused, expected)
    inner = layer.final_layer_norm if body == "opt" else layer.post_attention_layernorm
    feed = layer.fc2(layer.activation_fn(layer.fc1(inner(fused)))) if body == "opt" else layer.mlp(inner(fused))
    norm = tiny.body.decoder.final_layer_norm if body == "opt" else tiny.body.norm
    torch.testing.assert_close(seen, norm(fused + feed))


@torch.no_grad()
@pytest.mark.parametrize(("eye", "class_tokens"), [("clip", 1), ("siglip", 0), ("vit", 1)])
@pytest.mark.parametrize("layer", [-1, -2, -3])
def test_patches_are_the_hidden_states_of_the_chosen_layer(eye: str, class_tokens: int, layer: int) -> None:
    tiny = model(eye=eye, eye_layer=layer)
    expected = tiny.eye(pixel_values=pixels(2), output_hidden_states=True).hidden_states[layer]
    torch.testing.assert_close(tiny.patches(pixels(2)), expected[:, class_tokens:])
    assert tiny.see(pixels(2)).shape == (2, tiny.config.image_tokens, tiny.width)
    if class_tokens:
        whole = model(eye=eye, eye_layer=layer, drop_class_token=False)
        assert whole.patches(pixels(2)).shape[1] == whole.config.image_tokens == 5


def test_a_frozen_eye_has_no_graph_and_a_trained_one_has() -> None:
    tiny = model()
    assert tiny.patches(pixels(1)).requires_grad
    tiny.eye.requires_grad_(False)
    assert not tiny.patches(pixels(1)).requires_grad
    assert tiny.see(pixels(1)).requires_grad


@torch.no_grad()
@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("body", BODIES)
def test_padding_changes_nothing(body: str, fusion: str) -> None:
    tiny = model(body, fusion=fusion)
    image = tiny.see(pixels(2))
    for left in (True, False):
        ids, mask = prompts(left=left)
        hidden = tiny.read(ids, mask, image)
        for row in range(2):
            real = mask[row]
            alone = tiny.read(ids[row : row + 1, real], None, image[row : row + 1])
            torch.testing.assert_close(hidden[row, real], alone[0])


GREEDY, BEAMS, BEST_TWO = {}, {"num_beams": 2}, {"num_beams": 3, "num_return_sequences": 2}


@pytest.mark.parametrize(
    ("body", "fusion", "options"),
    [
        *[(body, "prefix+cross", GREEDY) for body in BODIES],
        *[(body, "cross", BEAMS) for body in BODIES],
        ("llama", "prefix+cross", BEAMS),
        ("opt", "prefix", BEST_TWO),
        ("opt", "prefix+cross", BEST_TWO),
        ("opt", "cross", BEST_TWO),
        ("qwen3", "cross", GREEDY),
        ("qwen2", "prefix", GREEDY),
    ],
)
def test_cached_generation_equals_uncached(body: str, fusion: str, options: dict[str, int]) -> None:
    tiny = model(body, fusion=fusion)
    ids, mask = prompts()
    length, given = ids.shape[1], {"max_new_tokens": 5, "do_sample": False, **options}
    seen: list[int] = []
    tiny.eye.register_forward_hook(lambda _eye, _given, _out: seen.append(1))
    cached = tiny.generate(ids, pixels(2), mask, **given)
    assert len(seen) == 1
    assert cached.tolist() == tiny.generate(ids, pixels(2), mask, use_cache=False, **given).tolist()
    rows = options.get("num_return_sequences", 1)
    assert cached[::rows, :length].tolist() == ids.tolist()
    assert cached.shape == (2 * rows, length + 5) or EOS in cached[:, length:]
    if options == GREEDY:
        alone = tiny.generate(ids[:1, mask[0]], pixels(2)[:1], **given)[:, int(mask[0].sum()) :]
        assert alone.tolist() == cached[:1, length : length + alone.shape[1]].tolist()


def test_another_number_of_pictures_than_texts_is_refused() -> None:
    tiny = model()
    ids, mask = prompts()
    with pytest.raises(ValueError, match="2 texts and 3 pictures"):
        tiny.generate(ids, pixels(3), mask, max_new_tokens=2)


def test_sampling_is_repeatable_and_sees_the_picture() -> None:
    tiny = model()
    ids, mask = prompts()
    drawn = []
    for picture in (pixels(2), pixels(2), pixels(2, seed=5)):
        torch.manual_seed(0)
        drawn.append(tiny.generate(ids, picture, mask, max_new_tokens=8, do_sample=True, top_k=20).tolist())
    assert drawn[0] == drawn[1] != drawn[2]


@torch.no_grad()
@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_decoding_loop_of_ones_own_matches_one_pass(fusion: str) -> None:
    tiny = model("llama", fusion=fusion)
    ids, _ = conversation(2, 3, 2)
    ids = ids[None]
    picture = tiny.look(tiny.see(pixels(1)))
    whole = tiny(input_ids=ids, pixel_values=pixels(1)).logits
    out = tiny(input_ids=ids[:, :-2], picture=picture, use_cache=True)
    torch.testing.assert_close(out.logits, whole[:, :-2])
    for place in (-2, -1):
        out = tiny(input_ids=ids[:, place, None], picture=picture, past_key_values=out.past_key_values, use_cache=True)
        torch.testing.assert_close(out.logits[:, 0], whole[:, place])
    assert tiny(input_ids=ids, pixel_values=pixels(1), logits_to_keep=1).logits.shape[1] == 1


@torch.no_grad()
def test_loss_is_that_of_unshifted_labels() -> None:
    tiny = model()
    ids, _ = conversation(1, 2, 3)
    labels = ids.clone()
    labels[:-4] = -100
    out = tiny(input_ids=ids[None], pixel_values=pixels(1), labels=labels[None])
    expected = -out.logits[0, -5:-1].log_softmax(-1).gather(1, ids[-4:, None]).mean()
    torch.testing.assert_close(out.loss, expected)


@pytest.mark.parametrize("body", ["opt", "llama"])
def test_checkpointed_layers_meet_the_picture_of_their_own_pass(body: str) -> None:
    """Three passes with different pictures before one backward, as in stage I-a."""

    def gradients(checkpointed: bool) -> dict[str, Tensor]:
        tiny = model(body).train()
        tiny.eye.requires_grad_(False)
        if checkpointed:
            tiny._set_gradient_checkpointing(True, _checkpoint)
        ids, mask = prompts(left=False)
        words = ids != IMAGE
        passes = [tiny.read(ids, mask, tiny.see(pixels(2, seed))) for seed in (1, 2)]
        passes.append(tiny.read(ids[words].view(2, -1), mask[words].view(2, -1)))
        sum(hidden.square().mean() for hidden in passes).backward()
        return {name: weight.grad for name, weight in tiny.named_parameters() if weight.grad is not None}

    plain, checkpointed = gradients(False), gradients(True)
    assert plain.keys() == checkpointed.keys()
    assert {"cross.0.key.weight", "connector.0.weight", "project_in.weight"} <= plain.keys()
    for name in plain:
        torch.testing.assert_close(plain[name], checkpointed[name])


def _checkpoint(function: object, *given: object) -> object:
    return torch.utils.checkpoint.checkpoint(function, *given, use_reentrant=False)


@torch.no_grad()
def test_a_copy_has_cross_attention_of_its_own() -> None:
    tiny = model()
    ids, mask = prompts()
    image = tiny.see(pixels(2))
    before = tiny.read(ids, mask, image)
    other = copy.deepcopy(tiny)
    for layer in other.cross:
        layer.output.weight.zero_()
    assert torch.equal(tiny.read(ids, mask, image), before)
    assert not torch.allclose(other.read(ids, mask, image), before)


def test_no_weight_is_unused_and_the_table_stays_frozen() -> None:
    tiny = model()
    tiny.eye.requires_grad_(False)
    ids, mask = prompts()
    tiny(input_ids=ids, attention_mask=mask, pixel_values=pixels(2)).logits.sum().backward()
    unused = [name for name, weight in tiny.named_parameters() if weight.requires_grad and weight.grad is None]
    assert unused == []
    assert not tiny.table.weight.requires_grad
    assert tiny.table.padding_idx is None
    assert not [name for name, _ in tiny.body.named_parameters() if "embed_tokens" in name or "project_" in name]


def test_gpt2_layers_take_cross_attention_and_others_are_refused() -> None:
    gpt2 = GPT2Config(
        n_embd=24, n_layer=2, n_head=2, n_positions=64, vocab_size=ROWS, bos_token_id=BOS, eos_token_id=EOS
    )
    tiny = stirred(TinyVLM(tiny_config(text=gpt2)))
    ids, mask = prompts()
    assert not torch.equal(tiny.read(ids, mask, tiny.see(pixels(2))), tiny.read(ids, mask, tiny.see(pixels(2, 7))))
    post_norm = Olmo2Config(hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2)
    with pytest.raises(ValueError, match=r'Olmo2DecoderLayer of model_type .olmo2. is not known.*take fusion "prefix"'):
        TinyVLM(tiny_config(text=post_norm))
    with pytest.raises(ValueError, match="OPTDecoderLayer"):
        TinyVLM(tiny_config(text=text_config("opt", do_layer_norm_before=False)))
    assert isinstance(TinyVLM(tiny_config(text=post_norm, fusion="prefix")).body, PreTrainedModel)


def test_opts_own_projections_do_not_linger() -> None:
    config = text_config("opt", do_layer_norm_before=False, word_embed_proj_dim=16)
    assert isinstance(config, OPTConfig)
    tiny = TinyVLM(tiny_config(text=config, fusion="prefix"))
    ids, mask = texts()
    assert tiny.read(ids, mask).shape == (3, 9, 24)


def test_pictures_and_texts_that_do_not_fit_are_refused() -> None:
    tiny = model()
    ids, mask = prompts()
    image = tiny.see(pixels(2))
    with pytest.raises(ValueError, match="row 0 has image tokens, but there is no picture"):
        tiny.read(ids, mask)
    with pytest.raises(ValueError, match="2 texts and 1 pictures"):
        tiny.read(ids, mask, image[:1])
    broken = ids.clone()
    broken[1, -1] = IMAGE
    with pytest.raises(ValueError, match="row 1 has 5 image tokens; a picture of this eye has 4"):
        tiny.read(broken, mask, image)
    with pytest.raises(ValueError, match="a picture, but no image token"):
        tiny.read(texts()[0][:2], None, image)
    with pytest.raises(ValueError, match="a sequence of 70 tokens; the tiny language model has 64 positions"):
        tiny.read(torch.full((1, 70), 5))
    with pytest.raises(ValueError, match="a sequence that begins with its picture"):
        model(fusion="cross").read(ids[:, (ids[1] == IMAGE).nonzero()[0, 0] :], None, image)


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"fusion is 'both'; it can be 'prefix\+cross', 'prefix', 'cross'"):
        tiny_config(fusion="both")
    with pytest.raises(ValueError, match="an eye of model_type 'siglip_vision_model' has no class token"):
        tiny_config(eye="siglip", drop_class_token=True)
    with pytest.raises(ValueError, match="eye_layer is -4; this eye has the layers -3 to -1"):
        tiny_config(eye_layer=-4)
    with pytest.raises(ValueError, match="eye: model_type 'opt'"):
        TinyVLMConfig(eye=text_config())
    with pytest.raises(ValueError, match="a resized table has the body's width, 24"):
        tiny_config(embeddings="resized", table_width=32)
