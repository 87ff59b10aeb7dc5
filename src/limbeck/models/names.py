"""What parameters are called elsewhere: limbeck's name -> the name in transformers or in Salesforce's checkpoints.

Every function gives a whole table for one tower, so that both directions are a plain renaming.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

VISION_TRANSFORMERS = {
    "class_token": "embeddings.class_embedding",
    "positions": "embeddings.position_embedding",
    "patches.*": "embeddings.patch_embedding.*",
    "norm.*": "post_layernorm.*",
    "blocks.#.attention_norm.*": "encoder.layers.#.layer_norm1.*",
    "blocks.#.attention.qkv.*": "encoder.layers.#.self_attn.qkv.*",
    "blocks.#.attention.output.*": "encoder.layers.#.self_attn.projection.*",
    "blocks.#.feed_forward_norm.*": "encoder.layers.#.layer_norm2.*",
    "blocks.#.up.*": "encoder.layers.#.mlp.fc1.*",
    "blocks.#.down.*": "encoder.layers.#.mlp.fc2.*",
}
"""transformers' BlipVisionModel. `#` is a layer's index, `*` both weight and bias."""

VISION_SALESFORCE = {
    "class_token": "cls_token",
    "positions": "pos_embed",
    "patches.*": "patch_embed.proj.*",
    "norm.*": "norm.*",
    "blocks.#.attention_norm.*": "blocks.#.norm1.*",
    "blocks.#.attention.qkv.*": "blocks.#.attn.qkv.*",
    "blocks.#.attention.output.*": "blocks.#.attn.proj.*",
    "blocks.#.feed_forward_norm.*": "blocks.#.norm2.*",
    "blocks.#.up.*": "blocks.#.mlp.fc1.*",
    "blocks.#.down.*": "blocks.#.mlp.fc2.*",
}
"""Salesforce's visual_encoder, which has timm's names."""

TEXT_BODY = {
    "embeddings.words.weight": "embeddings.word_embeddings.weight",
    "embeddings.positions.weight": "embeddings.position_embeddings.weight",
    "embeddings.norm.*": "embeddings.LayerNorm.*",
    "layers.#.up.*": "encoder.layer.#.intermediate.dense.*",
    "layers.#.down.*": "encoder.layer.#.output.dense.*",
    "layers.#.norm.*": "encoder.layer.#.output.LayerNorm.*",
}
"""BERT, as transformers and Salesforce both call it."""

TEXT_HEAD = {
    "head.dense.*": "predictions.transform.dense.*",
    "head.norm.*": "predictions.transform.LayerNorm.*",
    "head.bias": "predictions.bias",
}
"""The head over the vocabulary, below `cls.`."""

Role = Literal["encoder", "decoder"]


def vision_names(layers: int, table: Mapping[str, str], prefix: str) -> dict[str, str]:
    """A VisionTransformer's parameters -> their names below `prefix` there."""
    return {ours: prefix + theirs for ours, theirs in _expand(table, range(layers)).items()}


def text_names(layers: int, role: Role, prefix: str, *, cross: bool = True, head: str | None = None) -> dict[str, str]:
    """A TextTransformer's parameters in one role -> their names below `prefix` there.

    `cross` says whether every layer has a cross-attention, `head` where the vocabulary's head stands, if there is one.
    """
    table = TEXT_BODY | _attention(f"{role}_attention", "attention")
    if cross:
        table |= _attention("cross_attention", "crossattention")
    names = {ours: prefix + theirs for ours, theirs in _expand(table, range(layers)).items()}
    if head is not None:
        names |= {ours: head + theirs for ours, theirs in _expand(TEXT_HEAD, range(layers)).items()}
    return names


def _attention(ours: str, theirs: str) -> dict[str, str]:
    table = {
        f"layers.#.{ours}.{part}.*": f"encoder.layer.#.{theirs}.self.{part}.*" for part in ("query", "key", "value")
    }
    return table | {
        f"layers.#.{ours}.output.*": f"encoder.layer.#.{theirs}.output.dense.*",
        f"layers.#.{ours}.norm.*": f"encoder.layer.#.{theirs}.output.LayerNorm.*",
    }


def _expand(table: Mapping[str, str], layers: Iterable[int]) -> dict[str, str]:
    """Every `#` and `*` of a table filled in."""

    def spell(name: str, index: int, kind: str) -> str:
        return name.replace("#", str(index)).replace("*", kind)

    return {
        spell(ours, index, kind): spell(theirs, index, kind)
        for ours, theirs in table.items()
        for index in (layers if "#" in ours else (0,))
        for kind in (("weight", "bias") if "*" in ours else ("",))
    }


def vision_values(config: Any) -> dict[str, Any]:
    """A transformers vision config's values under our names."""
    return {
        "width": config.hidden_size,
        "layers": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        "feed_forward": None if config.intermediate_size == 4 * config.hidden_size else config.intermediate_size,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "norm_eps": config.layer_norm_eps,
    }


def text_values(config: Any) -> dict[str, Any]:
    """A transformers text config's values under our names."""
    return {
        "width": config.hidden_size,
        "layers": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        "feed_forward": None if config.intermediate_size == 4 * config.hidden_size else config.intermediate_size,
        "vocab_size": config.vocab_size,
        "max_positions": config.max_position_embeddings,
        "norm_eps": config.layer_norm_eps,
        "pad_token_id": config.pad_token_id,
    }
