"""BLIP checkpoints of others, taken apart and put together: transformers' three classes and Salesforce's files.

No checkpoint of transformers' holds a whole BLIP. What a retrieval and a captioning folder hold together is one, though
their towers need not be the same: then the decoder keeps layers, and an image tower, of its own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import BlipConfig, BlipTextConfig, BlipVisionConfig

from limbeck.models.families import filled_model
from limbeck.models.files import CONFIG, State, listed, read_pickle, read_weights, tensors_of
from limbeck.models.fusion import FusionConfig, FusionVLM
from limbeck.models.med import TextConfig
from limbeck.models.names import (
    VISION_SALESFORCE,
    VISION_TRANSFORMERS,
    text_names,
    text_values,
    vision_names,
    vision_values,
)
from limbeck.models.vision import VisionConfig

HEADS = {
    f"{ours}.{kind}": f"{theirs}.{kind}"
    for ours, theirs in {"image_head": "vision_proj", "text_head": "text_proj", "match_head": "itm_head"}.items()
    for kind in ("weight", "bias")
}
PASSED_OVER = re.compile(
    r"position_ids$|_m\.|^(image_queue|text_queue|idx_queue|queue_ptr|ptr_queue)$|cls\.predictions\.decoder\.(weight|bias)$"
)
"""What BLIP checkpoints hold beside weights: index buffers, momentum copies, queues, second names of tied weights."""


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


def read_blip(folder: Path) -> BlipParts:
    """What a transformers folder of one of the three BLIP classes holds."""
    config = BlipConfig.from_pretrained(folder)
    vision, text = config.vision_config, config.text_config
    assert isinstance(vision, BlipVisionConfig)
    assert isinstance(text, BlipTextConfig)
    for tower in (vision, text):
        if tower.hidden_act != "gelu":
            raise ValueError(f"{folder / CONFIG}: {tower.model_type}.hidden_act {tower.hidden_act!r}; BLIP's is gelu")
    start = text.bos_token_id
    if start is None:
        raise ValueError(f"{folder / CONFIG}: text_config.bos_token_id is null; it is BLIP's [DEC]")
    text_config = TextConfig.model_validate(
        {
            **text_values(text),
            "dropout": float(text.hidden_dropout_prob),
            "sep_token_id": text.sep_token_id,
            "dec_token_id": start,
            "enc_token_id": text.to_dict().get("enc_token_id", start + 1),
        }
    )
    vision_config = VisionConfig.model_validate(vision_values(vision))
    tower = vision_names(vision_config.layers, VISION_TRANSFORMERS, "vision_model.")
    return _take(folder, read_weights(folder), tower, vision_config, text_config)


def read_salesforce(file: Path) -> BlipParts:
    """What a file of Salesforce's holds.

    Heads are 64 wide, as in all of Salesforce's checkpoints; widths and depths are read off the weights. Raises
    ValueError where it is damaged, or no such file.
    """
    values = read_pickle(file)
    state = tensors_of(values.get("model", values), file)
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


def assemble(parts: list[BlipParts]) -> FusionVLM:
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
    model = filled_model(config, state, first.origin)
    assert isinstance(model, FusionVLM)
    return model


def _only(what: str, parts: list[BlipParts]) -> BlipParts | None:
    if len(parts) > 1:
        raise ValueError(f"{parts[0].origin} and {parts[1].origin} both hold a {what}: give one of them")
    return parts[0] if parts else None
