"""A model from what lies on disk: limbeck's own folders, transformers' BLIP and CLIP folders, Salesforce's BLIP files."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import BlipConfig, CLIPConfig

from limbeck.models.albef import Albef
from limbeck.models.blip import Blip
from limbeck.models.clip import ClipConfig, DualEncoder
from limbeck.models.files import CONFIG, WEIGHTS, fill, listed
from limbeck.models.fusion import FusionConfig, FusionVLM
from limbeck.models.med import TextConfig
from limbeck.models.names import VISION_SALESFORCE, VISION_TRANSFORMERS, text_names, vision_names
from limbeck.models.vision import VisionConfig

State = dict[str, Tensor]

FAMILIES = {"blip": Blip, "albef": Albef}
CLIP_PARTS = {
    "vision.": "vision_model.",
    "text.": "text_model.",
    "image_head.": "visual_projection.",
    "text_head.": "text_projection.",
}
"""limbeck's parts of a dual encoder -> transformers' parts of a CLIPModel"""
HEADS = {
    f"{ours}.{kind}": f"{theirs}.{kind}"
    for ours, theirs in {"image_head": "vision_proj", "text_head": "text_proj", "match_head": "itm_head"}.items()
    for kind in ("weight", "bias")
}
PASSED_OVER = re.compile(
    r"position_ids$|_m\.|^(image_queue|text_queue|idx_queue|queue_ptr|ptr_queue)$|cls\.predictions\.decoder\.(weight|bias)$"
)
"""What BLIP checkpoints hold beside weights: index buffers, momentum copies, queues, and second names of tied weights."""


def build_model(config: FusionConfig | ClipConfig) -> FusionVLM | DualEncoder:
    """A model with random first weights."""
    return DualEncoder(config) if isinstance(config, ClipConfig) else FAMILIES[config.family](config)


def load_model(*sources: Path | str) -> FusionVLM | DualEncoder:
    """The model that one folder or file holds, or the BLIP that several hold together (retrieval and captioning).

    Known are limbeck's folders, transformers' folders of BlipForImageTextRetrieval, BlipForConditionalGeneration,
    BlipForQuestionAnswering and CLIPModel, and Salesforce's BLIP files (.pth, read with weights_only). A BLIP checkpoint
    without some part gives a model without it. Returned in `eval` mode.

    Raises FileNotFoundError where nothing is there, ValueError naming the weights that are missing, unknown, of a wrong
    shape, not finite or nothing but zeros.
    """
    if not sources:
        raise ValueError("load_model wants at least one folder or file")
    paths = [Path(source) for source in sources]
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such model folder or file")
    kinds = [_kind(path) for path in paths]
    if len(paths) > 1 and set(kinds) - {"blip", "salesforce"}:
        raise ValueError(
            f"only BLIP checkpoints can be put together; {paths[0]} is {kinds[0]}, {paths[1]} is {kinds[1]}"
        )
    match kinds[0]:
        case "limbeck_blip" | "limbeck_albef" | "limbeck_clip":
            model = _load_limbeck(paths[0])
        case "clip":
            model = _load_clip(paths[0])
        case _:
            parts = [_read_blip(path) if kind == "blip" else _read_salesforce(path) for path, kind in zip(paths, kinds)]
            model = _assemble(parts)
    return model.eval()


def read_weights(folder: Path) -> State:
    """Every tensor of a transformers folder: one safetensors file, several with an index, or a pickle of plain tensors."""
    index, pickled = folder / f"{WEIGHTS}.index.json", folder / "pytorch_model.bin"
    if (folder / WEIGHTS).exists():
        return load_file(folder / WEIGHTS)
    if index.exists():
        state: State = {}
        for name in sorted(set(json.loads(index.read_text())["weight_map"].values())):
            state |= load_file(folder / Path(name).name)
        return state
    if pickled.exists():
        return torch.load(pickled, map_location="cpu", weights_only=True)
    raise FileNotFoundError(f"{folder}: neither {WEIGHTS} nor {index.name} nor {pickled.name}")


def read_model_type(folder: Path) -> str:
    """What config.json says the folder is."""
    if not (folder / CONFIG).exists():
        raise FileNotFoundError(f"{folder}: no {CONFIG}")
    return str(json.loads((folder / CONFIG).read_text()).get("model_type"))


@dataclass(frozen=True, kw_only=True)
class BlipParts:
    """What one BLIP checkpoint holds, under limbeck's names."""

    origin: Path
    vision_config: VisionConfig
    text_config: TextConfig
    embedding: int
    vision: State
    encoder: State | None
    decoder: State | None
    heads: State | None
    temperature: Tensor | None

    @property
    def answers(self) -> bool:
        """Whether the decoder reads questions: it stands beside an encoder, but there is nothing to retrieve by."""
        return self.encoder is not None and self.decoder is not None and self.heads is None


def _kind(path: Path) -> str:
    if path.is_file():
        return "salesforce"
    kind = read_model_type(path)
    known = ("limbeck_blip", "limbeck_albef", "limbeck_clip", "blip", "clip")
    if kind not in known:
        raise ValueError(f"{path / CONFIG}: model_type {kind!r}; known are {', '.join(known)}")
    return kind


def _load_limbeck(folder: Path) -> FusionVLM | DualEncoder:
    values = json.loads((folder / CONFIG).read_text())
    kind = values.pop("model_type")
    config = (ClipConfig if kind == "limbeck_clip" else FusionConfig).model_validate(values)
    return _filled(config, read_weights(folder), folder)


def _filled(config: FusionConfig | ClipConfig, state: State, origin: Path) -> FusionVLM | DualEncoder:
    if isinstance(config, ClipConfig):
        model = build_model(config)
    else:
        with torch.device("meta"):
            model = build_model(config)
    fill(model, state, str(origin))
    return model


def _load_clip(folder: Path) -> DualEncoder:
    config = CLIPConfig.from_pretrained(folder)
    vision, text = config.vision_config, config.text_config
    assert not isinstance(vision, dict | None) and not isinstance(text, dict | None)
    if vision.hidden_act != text.hidden_act:
        raise ValueError(
            f"{folder / CONFIG}: towers of different hidden_act, {vision.hidden_act} and {text.hidden_act}"
        )
    ours = ClipConfig.model_validate(
        {
            "vision": _vision_values(vision),
            "text": {
                **_text_values(text),
                "dropout": float(text.attention_dropout),
                "sep_token_id": text.eos_token_id,
            },
            "embedding": config.projection_dim,
            "activation": text.hidden_act,
        }
    )
    theirs = {name: tensor for name, tensor in read_weights(folder).items() if not name.endswith("position_ids")}
    state = {}
    for name, tensor in theirs.items():
        part = next((part for part, prefix in CLIP_PARTS.items() if name.startswith(prefix)), None)
        state[name if part is None else part + name.removeprefix(CLIP_PARTS[part])] = tensor
    if "logit_scale" in state:
        state["temperature"] = torch.exp(-state.pop("logit_scale").float())
    model = _filled(ours, state, folder)
    assert isinstance(model, DualEncoder)
    return model


def _vision_values(config: Any) -> dict[str, Any]:
    """A transformers vision config's values under our names."""
    return {
        "width": config.hidden_size,
        "layers": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        "feed_forward": config.intermediate_size,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "norm_eps": config.layer_norm_eps,
    }


def _text_values(config: Any) -> dict[str, Any]:
    """A transformers text config's values under our names."""
    return {
        "width": config.hidden_size,
        "layers": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        "feed_forward": config.intermediate_size,
        "vocab_size": config.vocab_size,
        "max_positions": config.max_position_embeddings,
        "norm_eps": config.layer_norm_eps,
        "pad_token_id": config.pad_token_id,
    }


def _read_blip(folder: Path) -> BlipParts:
    config = BlipConfig.from_pretrained(folder)
    vision, text = config.vision_config, config.text_config
    assert not isinstance(vision, dict | None) and not isinstance(text, dict | None)
    for tower in (vision, text):
        if tower.hidden_act != "gelu":
            raise ValueError(f"{folder / CONFIG}: {tower.model_type}.hidden_act {tower.hidden_act!r}; BLIP's is gelu")
    text_config = TextConfig.model_validate(
        {
            **_text_values(text),
            "dropout": float(text.hidden_dropout_prob),
            "sep_token_id": text.sep_token_id,
            "dec_token_id": text.bos_token_id,
            "enc_token_id": text.to_dict().get("enc_token_id", text.bos_token_id + 1),
        }
    )
    vision_config = VisionConfig.model_validate(_vision_values(vision))
    tower = vision_names(vision_config.layers, VISION_TRANSFORMERS, "vision_model.")
    return _take(folder, read_weights(folder), tower, vision_config, text_config)


def _read_salesforce(file: Path) -> BlipParts:
    """Heads are 64 wide, as in all of Salesforce's checkpoints; widths and depths are read off the weights."""
    state = torch.load(file, map_location="cpu", weights_only=True)
    state = state.get("model", state)
    if "visual_encoder.pos_embed" not in state:
        raise ValueError(f"{file}: no visual_encoder.pos_embed, so this is no BLIP checkpoint of Salesforce's")
    patches, positions = state["visual_encoder.patch_embed.proj.weight"], state["visual_encoder.pos_embed"]
    width, patch_size = patches.shape[0], patches.shape[-1]
    vision_config = VisionConfig(
        width=width,
        layers=_depth(state, r"visual_encoder\.blocks\.(\d+)\."),
        heads=width // 64,
        patch_size=patch_size,
        image_size=math.isqrt(positions.shape[1] - 1) * patch_size,
        feed_forward=len(state["visual_encoder.blocks.0.mlp.fc1.weight"]),
    )
    body = "text_encoder." if any(name.startswith("text_encoder.") for name in state) else "text_decoder.bert."
    words = state[f"{body}embeddings.word_embeddings.weight"]
    text_config = TextConfig(
        width=words.shape[1],
        layers=_depth(state, re.escape(body) + r"encoder\.layer\.(\d+)\."),
        heads=words.shape[1] // 64,
        vocab_size=len(words),
        max_positions=len(state[f"{body}embeddings.position_embeddings.weight"]),
        feed_forward=len(state[f"{body}encoder.layer.0.intermediate.dense.weight"]),
        dec_token_id=len(words) - 2,
        enc_token_id=len(words) - 1,
    )
    tower = vision_names(vision_config.layers, VISION_SALESFORCE, "visual_encoder.")
    return _take(file, state, tower, vision_config, text_config)


def _depth(state: Mapping[str, Tensor], pattern: str) -> int:
    return 1 + max(int(found[1]) for name in state if (found := re.match(pattern, name)))


def _take(
    origin: Path, state: State, vision: dict[str, str], vision_config: VisionConfig, text_config: TextConfig
) -> BlipParts:
    """Sort a checkpoint's tensors into parts. ValueError for a name that is missing, or that belongs to no part."""
    rest = {name: tensor for name, tensor in state.items() if not PASSED_OVER.search(name)}
    for second, first in {  # transformers keeps one name of two that are tied, Salesforce both
        "text_decoder.cls.predictions.decoder.bias": "text_decoder.cls.predictions.bias",
        "text_decoder.cls.predictions.decoder.weight": "text_decoder.bert.embeddings.word_embeddings.weight",
    }.items():
        if second in state:
            rest.setdefault(first, state[second])

    def take(names: dict[str, str]) -> State:
        missing = [theirs for theirs in names.values() if theirs not in rest]
        if missing:
            raise ValueError(f"{origin}: lacks {listed(missing)}")
        return {ours: rest.pop(theirs).float() for ours, theirs in names.items()}

    def holds(prefix: str) -> bool:
        return any(name.startswith(prefix) for name in rest)

    layers = text_config.layers
    encoder = take(text_names(layers, "encoder", "text_encoder.")) if holds("text_encoder.") else None
    decoder = None
    if holds("text_decoder."):
        decoder = take(text_names(layers, "decoder", "text_decoder.bert.", head="text_decoder.cls."))
    heads = take(HEADS) if holds("vision_proj.") else None
    parts = BlipParts(
        origin=origin,
        vision_config=vision_config,
        text_config=text_config,
        embedding=256 if heads is None else len(heads["image_head.weight"]),
        vision=take(vision),
        encoder=encoder,
        decoder=decoder,
        heads=heads,
        temperature=rest.pop("temp", None),
    )
    if encoder is None and decoder is None:
        raise ValueError(f"{origin}: neither text_encoder nor text_decoder in it")
    if rest:
        raise ValueError(f"{origin}: has unknown {listed(list(rest))}")
    return parts


def _assemble(parts: list[BlipParts]) -> FusionVLM:
    """One model of several checkpoints' parts."""
    first = parts[0]
    for other in parts[1:]:
        for name, mine, theirs in (
            ("vision", first.vision_config, other.vision_config),
            ("text", first.text_config, other.text_config.model_copy(update={"dropout": first.text_config.dropout})),
        ):
            if mine != theirs:
                raise ValueError(f"{first.origin} and {other.origin} have different {name} towers: {mine} and {theirs}")
    encoding = _only("text encoder", [part for part in parts if part.encoder is not None])
    writing = _only("decoder", [part for part in parts if part.decoder is not None and not part.answers])
    answering = _only("answer decoder", [part for part in parts if part.answers])
    seeing = encoding or first
    heads = None if encoding is None else encoding.heads

    state = {f"vision.{name}": tensor for name, tensor in seeing.vision.items()}
    tied = own_vision = False
    if encoding is not None:
        assert encoding.encoder is not None
        state |= {f"text.{name}": tensor for name, tensor in encoding.encoder.items()}
        state |= heads or {}
    if writing is not None:
        assert writing.decoder is not None
        shared = {} if encoding is None or encoding.encoder is None else encoding.encoder
        common = shared.keys() & writing.decoder.keys()
        own_vision = not all(torch.equal(tensor, writing.vision[name]) for name, tensor in seeing.vision.items())
        tied = (
            bool(common) and not own_vision and all(torch.equal(shared[name], writing.decoder[name]) for name in common)
        )
        state |= {f"{'text' if tied else 'decoder'}.{name}": tensor for name, tensor in writing.decoder.items()}
        if own_vision:
            state |= {f"decoder_vision.{name}": tensor for name, tensor in writing.vision.items()}
    if answering is not None:
        assert answering.decoder is not None
        state |= {f"answer_decoder.{name}": tensor for name, tensor in answering.decoder.items()}
    temperature = next((part.temperature for part in parts if part.temperature is not None), torch.tensor(0.07))
    state["temperature"] = temperature.float().reshape(())

    config = FusionConfig(
        family="blip",
        vision=seeing.vision_config,
        text=seeing.text_config,
        embedding=seeing.embedding,
        encoder=encoding is not None,
        heads=heads is not None,
        decoder="none" if writing is None else "tied" if tied else "separate",
        decoder_vision=own_vision,
        answer_decoder="tied" if answering is None else "separate",
    )
    model = _filled(config, state, first.origin)
    assert isinstance(model, FusionVLM)
    return model


def _only(what: str, parts: list[BlipParts]) -> BlipParts | None:
    if len(parts) > 1:
        raise ValueError(f"{parts[0].origin} and {parts[1].origin} both hold a {what}: give one of them")
    return parts[0] if parts else None
