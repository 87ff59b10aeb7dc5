"""What lies on disk, loaded: our folders, transformers' folders, Salesforce's files, and what can be wrong there."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import stir, text, vision
from torch import Tensor
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
    CLIPConfig,
    CLIPModel,
    PreTrainedTokenizerFast,
)

from limbeck.models.albef import Albef
from limbeck.models.blip import Blip
from limbeck.models.clip import ClipConfig, DualEncoder
from limbeck.models.convert import blip_config, export
from limbeck.models.fusion import FusionConfig, FusionVLM
from limbeck.models.hub import local_model
from limbeck.models.load import load_model
from limbeck.models.names import VISION_SALESFORCE, text_names, vision_names

MakeBlip = Callable[..., Blip]
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    theirs = other.state_dict()
    return one.state_dict().keys() == theirs.keys() and all(
        torch.equal(tensor, theirs[name]) for name, tensor in one.state_dict().items()
    )


def blip(folder: Path) -> FusionVLM:
    model = load_model(folder)
    assert isinstance(model, FusionVLM)
    return model


@pytest.mark.parametrize("family", ["blip", "albef", "clip"])
def test_saved_folder_loads_as_it_was(family: str, tmp_path: Path) -> None:
    words = text(fusion_layers=2) if family == "albef" else text()
    if family == "clip":
        model = stir(DualEncoder(ClipConfig(vision=vision(32), text=words, embedding=16)))
    else:
        config = FusionConfig.model_validate({"family": family, "vision": vision(32), "text": words})
        model = stir((Blip if family == "blip" else Albef)(config))
    model.save(tmp_path / "model")  # pyright: ignore
    loaded = load_model(tmp_path / "model")
    assert type(loaded) is type(model)
    assert loaded.config == model.config
    assert same_weights(loaded, model)
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert not loaded.training
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["config.json", "model.safetensors"]


def test_exported_retrieval_and_captioning_folders_are_the_whole_model_again(
    make_blip: MakeBlip, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = make_blip()
    export(model, tokenizer, tmp_path / "retrieval", task="retrieval")
    export(model, tokenizer, tmp_path / "captioning", task="captioning")
    whole = load_model(tmp_path / "retrieval", tmp_path / "captioning")
    assert whole.config == model.config
    assert same_weights(whole, model)


@torch.no_grad()
def test_folders_of_different_models_make_a_teacher_that_is_each_of_them(
    tmp_path: Path, pixels: Tensor, ids: Tensor, mask: Tensor
) -> None:
    config = blip_config(FusionConfig(family="blip", vision=vision(32), text=text(), embedding=16))
    matching, captioning = BlipForImageTextRetrieval(config), BlipForConditionalGeneration(config)
    for seed, theirs in enumerate((matching, captioning)):
        stir(theirs, seed)
        theirs.save_pretrained(tmp_path / str(seed))
    model = load_model(tmp_path / "0", tmp_path / "1")
    assert isinstance(model, FusionVLM)
    assert model.config.decoder == "separate"
    assert model.config.decoder_vision
    image = model.encode_image(pixels)
    memory = model.image_memory(image)
    asked, told = ids.clone(), ids.clone()
    asked[:, 0], told[:, 0] = 6, 5
    theirs = matching(pixel_values=pixels, input_ids=asked, attention_mask=mask.long())
    torch.testing.assert_close(model.fuse(memory, ids, mask).output, theirs.itm_score, **CLOSE)
    theirs = captioning(pixel_values=pixels, input_ids=told, attention_mask=mask.long())
    torch.testing.assert_close(model.decode(memory, ids, mask).output[mask], theirs.logits[mask], **CLOSE)
    with pytest.raises(ValueError, match="image tower of its own"):
        model.image_memory(image.hidden)
    model.save(tmp_path / "whole")
    assert same_weights(load_model(tmp_path / "whole"), model)


@torch.no_grad()
def test_captioning_folder_alone_has_no_encoder(tmp_path: Path, pixels: Tensor, ids: Tensor) -> None:
    config = blip_config(FusionConfig(family="blip", vision=vision(), text=text()))
    theirs = stir(BlipForConditionalGeneration(config))
    theirs.save_pretrained(tmp_path)  # pyright: ignore
    model = blip(tmp_path)
    image = model.encode_image(pixels)
    assert image.output.shape == (3, 0)
    memory = model.image_memory(image)
    told = ids.clone()
    told[:, 0] = 5
    expected = theirs(pixel_values=pixels, input_ids=told).logits
    torch.testing.assert_close(model.decode(memory, ids, None).output, expected, **CLOSE)
    with pytest.raises(ValueError, match="no text encoder to match texts with pictures"):
        model.fuse(memory, ids, None)


@torch.no_grad()
def test_vqa_folder_answers(tmp_path: Path, pixels: Tensor, ids: Tensor) -> None:
    theirs = stir(BlipForQuestionAnswering(blip_config(FusionConfig(family="blip", vision=vision(), text=text()))))
    theirs.save_pretrained(tmp_path)  # pyright: ignore
    model = blip(tmp_path)
    asked = ids.clone()
    asked[:, 0] = 6
    fused = model.fuse(model.image_memory(model.encode_image(pixels)), ids, None)
    ours = model.generate(model.question_memory(fused.hidden, None), torch.full((3, 1), 2), max_new_tokens=5)
    assert ours.tolist() == theirs.generate(input_ids=asked, pixel_values=pixels, max_new_tokens=5).tolist()  # pyright: ignore


@torch.no_grad()
def test_clip_folder_of_openais_kind_gives_its_similarities(tmp_path: Path, pixels: Tensor) -> None:
    towers = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2}
    words = {
        "vocab_size": 50,
        "max_position_embeddings": 12,
        "bos_token_id": 48,
        "eos_token_id": 49,
        "pad_token_id": 49,
    }
    config = CLIPConfig(
        projection_dim=16,
        vision_config=towers | {"image_size": 16, "patch_size": 4},
        text_config=towers | words,
    )
    theirs = stir(CLIPModel(config))
    theirs.save_pretrained(tmp_path)  # pyright: ignore
    model = load_model(tmp_path)
    assert isinstance(model, DualEncoder)
    assert model.config.activation == "quick_gelu"
    ids = torch.tensor([[48, 3, 4, 49, 49], [48, 3, 4, 5, 49]])
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]).bool()
    expected = theirs(input_ids=ids, pixel_values=pixels, attention_mask=mask.long()).logits_per_image
    ours = model.encode_image(pixels).output @ model.encode_text(ids, mask).output.T / model.temperature
    torch.testing.assert_close(ours, expected, **CLOSE)


def salesforce(model: FusionVLM) -> dict[str, Tensor]:
    """The model's weights as Salesforce's pre-training checkpoint calls them, with what else stands in one."""
    own = model.state_dict()
    layers = model.config.text.layers
    names = vision_names(model.config.vision.layers, VISION_SALESFORCE, "vision.visual_encoder.")
    state = {theirs.removeprefix("vision."): own[f"vision.{ours}"] for ours, theirs in names.items()}
    encoder = text_names(layers, "encoder", "text_encoder.")
    decoder = text_names(layers, "decoder", "text_decoder.bert.", head="text_decoder.cls.")
    state |= {theirs: own[f"text.{ours}"] for names in (encoder, decoder) for ours, theirs in names.items()}
    for ours, theirs in {"image_head": "vision_proj", "text_head": "text_proj", "match_head": "itm_head"}.items():
        state |= {f"{theirs}.{kind}": own[f"{ours}.{kind}"] for kind in ("weight", "bias")}
    state |= {
        f"{name.replace('_encoder.', '_encoder_m.', 1)}": state[name] for name in list(state) if "_encoder." in name
    }
    state["text_encoder.embeddings.position_ids"] = torch.arange(32)[None]
    state["text_decoder.cls.predictions.decoder.weight"] = own["text.embeddings.words.weight"]
    state |= {"temp": torch.tensor(0.05), "image_queue": torch.zeros(16, 4), "queue_ptr": torch.zeros(1)}
    return state


def test_salesforce_pretraining_file_is_a_tied_model(tmp_path: Path) -> None:
    words = text(64, heads=1, vocab_size=110, dec_token_id=108, enc_token_id=109, sep_token_id=102)
    config = FusionConfig(family="blip", vision=vision(64, heads=1), text=words, embedding=16)
    model = stir(Blip(config))
    model.temperature.data.fill_(0.05)  # pyright: ignore
    assert isinstance(model, Blip)
    torch.save({"model": salesforce(model), "epoch": 3}, tmp_path / "model_base.pth")
    loaded = blip(tmp_path / "model_base.pth")
    assert loaded.config.decoder == "tied"
    assert loaded.config.text.heads == 1
    assert same_weights(loaded, model)


def spoil(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("vision.blocks.0.up.weight"), r"lacks vision\.blocks\.0\.up\.weight"),
        (lambda state: state.update(extra=torch.ones(1)), "has unknown extra"),
        (lambda state: state.update({"match_head.bias": torch.ones(3)}), r"match_head\.bias \(3,\) in place of \(2,\)"),
        (lambda state: state["text.head.dense.weight"].fill_(torch.nan), r"not finite, text\.head\.dense\.weight"),
        (lambda state: [tensor.zero_() for tensor in state.values()], "nothing but zeros, vision.class_token"),
    ],
)
def test_spoilt_weights_are_named(
    make_blip: MakeBlip, tmp_path: Path, change: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    make_blip().save(tmp_path)
    spoil(tmp_path, change)
    with pytest.raises(ValueError, match=message):
        load_model(tmp_path)


def test_transformers_folder_without_a_weight_is_refused(tmp_path: Path) -> None:
    BlipForImageTextRetrieval(blip_config(FusionConfig(family="blip", vision=vision(), text=text()))).save_pretrained(
        tmp_path
    )
    spoil(tmp_path, lambda state: state.pop("text_encoder.encoder.layer.1.output.dense.bias"))
    with pytest.raises(ValueError, match=r"lacks text_encoder\.encoder\.layer\.1\.output\.dense\.bias"):
        load_model(tmp_path)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 123\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.safetensors", POINTER, "a pointer of Git LFS, .*`git lfs pull`"),
        ("model.safetensors", b"\x10\0\0\0\0\0\0\0{", "no safetensors file, or cut short"),
        ("model.safetensors", b"", "no safetensors file, or cut short"),
        ("model.safetensors.index.json", b"{}", "no weight_map"),
        ("pytorch_model.bin", POINTER, "a pointer of Git LFS, .*`git lfs pull`"),
        ("pytorch_model.bin", b"PK\x03\x04", "not written by torch.save, or cut short"),
        ("pytorch_model.bin", b"", "not written by torch.save, or cut short"),
        ("config.json", POINTER, "a pointer of Git LFS, .*`git lfs pull`"),
        ("config.json", b"{", "not JSON: .*line 1 column 2"),
        ("config.json", b"\xff", "not JSON: .*utf-8"),
        ("config.json", b"[]", r"wanted a JSON object, found \[\]"),
        ("config.json", b'{"model_type": "limbeck_blip", "visoin": 1}', ".*visoin: unknown key; did you mean 'vision'"),
    ],
)
def test_damaged_file_is_named_in_one_line(
    make_blip: MakeBlip, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    make_blip().save(tmp_path)
    if name != "config.json":
        (tmp_path / "model.safetensors").unlink()
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"^{tmp_path / name}: {message}") as error:
        load_model(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["model-00002-of-00002.safetensors", "tokenizer.json", "vocab.txt"])
def test_pointer_of_git_lfs_is_found_before_anything_reads_the_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(b"weights")
    assert local_model(tmp_path) == tmp_path
    (tmp_path / name).write_bytes(POINTER)
    with pytest.raises(ValueError, match=rf"^{tmp_path / name}: a pointer of Git LFS"):
        local_model(tmp_path)


def test_pickle_of_something_else_than_tensors_is_refused(make_blip: MakeBlip, tmp_path: Path) -> None:
    make_blip().save(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    for content, message in (([1], "found list"), ({"a": 1, "b": torch.ones(1)}, "no tensor, a$")):
        torch.save(content, tmp_path / "pytorch_model.bin")
        with pytest.raises(ValueError, match=message):
            load_model(tmp_path)


def test_what_is_no_model_is_refused(make_blip: MakeBlip, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match="model_type 'bert'; known are limbeck_blip"):
        load_model(tmp_path)
    make_blip().save(tmp_path / "one")
    with pytest.raises(ValueError, match="only BLIP checkpoints can be put together"):
        load_model(tmp_path / "one", tmp_path / "one")
    BlipForConditionalGeneration(BlipConfig.from_dict(small().to_dict())).save_pretrained(tmp_path / "two")
    with pytest.raises(ValueError, match="both hold a decoder"):
        load_model(tmp_path / "two", tmp_path / "two")


def small() -> BlipConfig:
    return blip_config(FusionConfig(family="blip", vision=vision(), text=text()))


@pytest.mark.parametrize("content", [{"model": Path("x")}, {"model": 3}, [torch.ones(1)]])
def test_file_with_code_in_it_is_not_run_and_nobody_is_told_how_to(tmp_path: Path, content: object) -> None:
    file = tmp_path / "evil.pth"
    torch.save(content, file)
    with pytest.raises(ValueError, match=rf"^{file}: ") as error:
        load_model(file)
    assert "weights_only" not in str(error.value)
    file.write_bytes(POINTER)
    with pytest.raises(ValueError, match="git lfs pull"):
        load_model(file)
