"""A duet from pretrained parts: every weight in its place, parts that do not fit refused, the paper's sizes."""

from pathlib import Path

import pytest
import torch
from tiny_duets import BOS, EOS, IMAGE, PAD, ROWS, batch, conversation, eye_config, pixels, stirred, text_config
from tokenizers import Tokenizer, models
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    CLIPConfig,
    CLIPModel,
    CohereConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipModel,
    ViTForImageClassification,
)

from limbeck.models.duet import Duet
from limbeck.models.duet_base import make_connector
from limbeck.models.duet_build import build_duet, check_same_tokenizer, principal_table
from limbeck.models.duet_scales import LANGUAGE_MODELS, paper_config, parameter_groups
from limbeck.models.tiny_vlm import TinyVLM

IDS = {"image_token_id": IMAGE, "pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}


def language_model(kind: str, width: int = 24, seed: int = 0, **values: object) -> PreTrainedModel:
    torch.manual_seed(seed)
    return stirred(AutoModelForCausalLM.from_config(text_config(kind, width, **values)))


def eye_folder(kind: str, folder: Path) -> dict[str, torch.Tensor]:
    """Save a whole CLIP, SigLIP or ViT model; returns its image tower's weights."""
    vision = eye_config(kind)
    text = {**TOWER, "vocab_size": 20, "max_position_embeddings": 8}
    match kind:
        case "clip":
            whole = CLIPModel(CLIPConfig(text_config=text, vision_config=vision.to_dict(), projection_dim=8))
        case "siglip":
            whole = SiglipModel(SiglipConfig(text_config=text, vision_config=vision.to_dict()))
        case _:
            whole = ViTForImageClassification(vision)
    whole.save_pretrained(folder)
    tower = whole.vit if isinstance(whole, ViTForImageClassification) else whole.vision_model
    return {name: weight for name, weight in tower.state_dict().items() if not name.startswith("head.")}


@pytest.mark.parametrize(
    ("eye", "tiny", "large"), [("clip", "opt", "llama"), ("siglip", "llama", "opt"), ("vit", "qwen3", "qwen2")]
)
def test_every_pretrained_weight_is_in_its_place(eye: str, tiny: str, large: str, tmp_path: Path, caplog) -> None:
    seen = eye_folder(eye, tmp_path / "eye")
    small, big = language_model(tiny), language_model(large, 32, seed=1)
    small.save_pretrained(tmp_path / "tiny")
    big.save_pretrained(tmp_path / "large")
    folders = [tmp_path / name for name in ("eye", "tiny", "large")]
    ids, mask, _ = batch(conversation(2, 3, 4, image_tokens=0), conversation(0, 5, 2, image_tokens=0, seed=1))
    words = torch.randn(*ids.shape, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        said = big(input_ids=ids, attention_mask=mask).logits
        read = small.base_model(inputs_embeds=words, attention_mask=mask).last_hidden_state
    duet = build_duet(*folders, tokenizer_length=ROWS + 1, **IDS)
    assert not duet.training
    for own, given in ((duet.tiny.eye, seen), (duet.large, big.state_dict())):
        assert own.state_dict().keys() == given.keys()
        assert [name for name, weight in own.state_dict().items() if not torch.equal(weight, given[name])] == []
    given = small.base_model.state_dict()
    own = duet.tiny.body.state_dict()
    assert [name for name, weight in own.items() if not torch.equal(weight, given[name])] == []
    assert [name for name in given if name not in own] == [name for name in given if "embed_tokens" in name]
    assert torch.equal(duet.tiny.table.weight, big.get_input_embeddings().weight)
    assert duet.tiny.table.weight.data_ptr() != duet.large.get_input_embeddings().weight.data_ptr()
    assert not duet.tiny.cross[0].output.weight.any()
    with torch.no_grad():
        assert torch.equal(duet.large(input_ids=ids, attention_mask=mask).logits[mask], said[mask])
        assert torch.equal(duet.tiny.body(inputs_embeds=words, attention_mask=mask)[0][mask], read[mask])
    duet.save_pretrained(tmp_path / "duet")
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "duet")
    state = loaded.state_dict()
    assert [name for name, weight in duet.state_dict().items() if not torch.equal(weight, state[name])] == []
    assert [record.message for record in caplog.records if record.name.startswith("limbeck")] == []


def build(**values: object) -> Duet:
    parts = {"eye": eye_config(), "tiny": text_config("opt"), "large": text_config("llama", 32)}
    return build_duet(**{**parts, "tokenizer_length": ROWS + 1, **IDS, **values})


def test_configs_make_random_models_and_stay_as_they_are() -> None:
    tiny = text_config("opt", word_embed_proj_dim=16, vocab_size=99, pad_token_id=1)
    duet = build(tiny=tiny, dtype=torch.bfloat16)
    assert (tiny.vocab_size, tiny.word_embed_proj_dim, tiny.pad_token_id) == (99, 16, 1)
    assert {weight.dtype for weight in duet.parameters()} == {torch.bfloat16}
    assert duet.tiny.table.weight.shape == (ROWS, 32)
    assert duet.tiny.config.text_part.pad_token_id == PAD


def test_models_that_are_given_are_used_themselves() -> None:
    large = language_model("llama", 32)
    body = language_model("qwen2")
    duet = build(large=large, tiny=body)
    assert duet.large is large
    assert duet.tiny.body is body.base_model


def test_a_part_keeps_its_own_way_to_attend() -> None:
    large = language_model("llama", 32)
    large.set_attn_implementation("eager")
    duet = build(large=large)
    assert [part.config._attn_implementation for part in (duet.large, duet.tiny.body, duet.tiny.eye)] == [
        "eager",
        "sdpa",
        "sdpa",
    ]


def test_a_resized_table_holds_the_large_ones_principal_components() -> None:
    large = language_model("llama", 32)
    duet = build(large=large, embeddings="resized")
    table = large.get_input_embeddings().weight.detach()
    own = duet.tiny.table.weight.detach()
    torch.testing.assert_close(own, principal_table(table, 24))
    torch.testing.assert_close(own.std(), torch.tensor(0.02), rtol=1e-4, atol=0)
    centred = (table - table.mean(0)).double()
    main = torch.linalg.svd(centred)[2][:24].T
    shape = centred @ main @ main.T @ centred.T
    torch.testing.assert_close((own @ own.T).double() / own.square().sum(), shape / shape.trace(), rtol=1e-3, atol=1e-5)
    assert own.requires_grad is False
    assert duet.tiny.table.weight.requires_grad
    with pytest.raises(ValueError, match="a table 32 wide has no 40 principal components"):
        build(tiny=text_config("llama", 40), embeddings="resized")


def test_rows_past_the_tokenizer_and_the_image_token_are_never_generated() -> None:
    duet = build(tokenizer_length=50, image_token_id=49)
    unwanted = [49, *range(50, 60)]
    with torch.no_grad():
        duet.large.lm_head.weight[unwanted] *= 100
    for model in (duet, duet.tiny):
        assert model.generation_config.suppress_tokens == unwanted
        ids = torch.tensor([[BOS, 49, 49, 49, 49, 7]])
        answer = model.generate(ids, pixels(1), max_new_tokens=8, do_sample=True)[0, 6:]
        assert not set(answer.tolist()) & set(unwanted)
    assert build().generation_config.suppress_tokens is None


def test_the_models_generation_settings_survive(tmp_path: Path) -> None:
    large = language_model("llama", 32)
    large.generation_config.eos_token_id = [EOS, 9]
    large.generation_config.pad_token_id = None
    duet = build(large=large, tokenizer_length=50, image_token_id=49)
    duet.save_pretrained(tmp_path)
    loaded = Duet.from_pretrained(tmp_path)
    assert loaded.generation_config.eos_token_id == [EOS, 9]
    assert loaded.generation_config.pad_token_id == PAD
    assert loaded.tiny.generation_config.suppress_tokens == [49, *range(50, 60)]
    assert loaded.tiny.generation_config.eos_token_id == EOS


def test_the_large_models_sampling_and_penalties_do_not_become_the_duets(tmp_path: Path) -> None:
    large = language_model("llama", 32)
    for name, value in {"temperature": 0.6, "top_p": 0.9, "top_k": 3, "repetition_penalty": 1.3}.items():
        setattr(large.generation_config, name, value)
    duet = build(large=large)
    duet.save_pretrained(tmp_path)
    for settings in (duet.generation_config, Duet.from_pretrained(tmp_path).generation_config):
        own = settings.to_diff_dict()
        assert not own.keys() & {"temperature", "top_p", "top_k", "repetition_penalty"}
        assert (settings.bos_token_id, settings.eos_token_id, settings.pad_token_id) == (BOS, EOS, PAD)


def test_parts_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has 61 tokens beside the image token, but the large model only 60"):
        build(tokenizer_length=62, image_token_id=61)
    with pytest.raises(ValueError, match="CohereForCausalLM: its logits are not its hidden states times its head"):
        build(large=CohereConfig(**TOWER, vocab_size=ROWS, logit_scale=0.3, pad_token_id=0))
    language_model("llama").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="model_type 'llama' is no eye; known are clip"):
        build(eye=tmp_path)
    with pytest.raises(FileNotFoundError, match="no such model folder"):
        build(tiny=tmp_path / "nothing")
    model = language_model("llama", 32)
    state = model.state_dict()
    state.pop("model.layers.1.mlp.up_proj.weight")
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ValueError, match=r"lacks model.layers.1.mlp.up_proj.weight"):
        build(large=tmp_path)


def tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="?"))
    )


def test_tokenizers_must_agree_token_by_token() -> None:
    words = ["?", "a", "cat", "sat"]
    check_same_tokenizer(tokenizer(words), tokenizer(words))
    with pytest.raises(ValueError, match="token 2 is 'cat' in the first and 'dog' in the second"):
        check_same_tokenizer(tokenizer(words), tokenizer(["?", "a", "dog", "sat"]))
    longer = tokenizer(words)
    longer.add_tokens(["<image>"])
    with pytest.raises(ValueError, match=r"the student model's .* token 4 is nothing in the first and '<image>'"):
        check_same_tokenizer(tokenizer(words), longer, ("student", "teacher"))


def test_parameters_at_the_papers_size() -> None:
    """The bold figures of the specification, section 2.4, in millions."""
    with torch.device("meta"):
        counts = parameter_groups(Duet(paper_config()))
        direct = sum(weight.numel() for weight in make_connector("mlp", 1024, 4096).parameters())
        resized = parameter_groups(Duet(paper_config("resized")))
    millions = {name: round(count / 1e6, 2) for name, count in counts.items()}
    assert round((counts["tiny.body"] + counts["tiny.cross"]) / 1e6, 2) == 115.00
    assert (millions["tiny.body"], millions["tiny.projections"], millions["tiny.connector"]) == (86.63, 6.29, 1.38)
    assert (millions["connector"], millions["tiny.table"]) == (19.93, 131.07)
    assert round((counts["large"] + counts["tiny.eye"] + direct) / 1e9, 3) == 7.063
    assert round((sum(counts.values()) - counts["tiny.table"]) / 1e9, 2) == 7.18
    assert round(sum(counts.values()) / 1e9, 2) == 7.32
    assert round((resized["tiny.body"] + resized["tiny.table"]) / 1e6, 2) == 111.21


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("facebook/opt-125m", 125_239_296),
        ("lmsys/vicuna-7b-v1.5", 6_738_415_616),
        ("HuggingFaceTB/SmolLM2-135M", 134_515_008),
        ("Qwen/Qwen3-0.6B", 596_049_920),
    ],
)
def test_shapes_are_those_of_the_checkpoints(name: str, count: int) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(LANGUAGE_MODELS[name])
    assert sum(weight.numel() for weight in model.parameters()) == count


@torch.no_grad()
@pytest.mark.parametrize("config", [text_config("llama"), text_config("opt", do_layer_norm_before=False)])
def test_any_decoder_serves_as_prefix_body(config: PreTrainedConfig) -> None:
    duet = build(tiny=config, fusion="prefix")
    ids, mask, _ = batch(conversation(1, 2, 2))
    assert isinstance(duet.tiny, TinyVLM)
    assert duet(input_ids=ids, attention_mask=mask, pixel_values=pixels(1)).logits.shape[-1] == ROWS


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_models_load_in_the_precision_that_is_asked_for_and_answer(dtype, tmp_path):
    language_model("opt").save_pretrained(tmp_path / "small")  # whose config says in which precision it was saved
    language_model("llama", 32).save_pretrained(tmp_path / "large")
    eye_folder("vit", tmp_path / "eye")
    made = build(eye=tmp_path / "eye", tiny=tmp_path / "small", large=tmp_path / "large")
    made.save_pretrained(tmp_path / "duet")
    made.tiny.save_pretrained(tmp_path / "tiny")
    ids, mask, _ = batch(conversation(1, 2, 1))
    for kind, name in ((Duet, "duet"), (TinyVLM, "tiny")):
        model = kind.from_pretrained(tmp_path / name, dtype=dtype)
        assert {parameter.dtype for parameter in model.parameters()} == {dtype}
        said = model.generate(ids, pixel_values=pixels(1), attention_mask=mask, max_new_tokens=2, min_new_tokens=2)
        assert said.shape == (1, ids.shape[1] + 2)
        assert said[:, : ids.shape[1]].equal(ids)
