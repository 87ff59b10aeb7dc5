"""Cross-attention from a text to a picture, put into any pre-norm decoder of transformers without a copy of its code.

After self-attention the residual stream gets CA(LN(x + SA(x))) added (CTVLM, section 3.1). The decoder's own layers
stay as they are: hooks keep what enters a layer's first norm, take the picture out of the keyword arguments that reach
its self-attention, and add to what its self-attention returns. All three run inside the layer, so a layer that
gradient checkpointing computes again meets the same picture again. Dropout after self-attention, where a decoder has
it, covers both parts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn import functional
from transformers import OPTConfig, PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Picture:
    """What a language model sees of B pictures; further rows of a batch, k for each, look at the same ones."""

    tokens: Tensor
    """[B, N, D]"""
    keys_values: tuple[tuple[Tensor, Tensor], ...] = ()
    """for each layer [B, H, N, d] twice, kept for decoding; empty: each layer computes them when it needs them"""
    reached: set[int] = field(default_factory=set)
    """the layers that have looked"""


class Layout(NamedTuple):
    """Where a decoder layer of a known kind has its first norm and its self-attention, and what else it is made of."""

    norm: str
    attention: str
    others: frozenset[str]


LAYOUTS = (
    Layout("input_layernorm", "self_attn", frozenset({"post_attention_layernorm", "mlp"})),
    Layout("self_attn_layer_norm", "self_attn", frozenset({"activation_fn", "fc1", "fc2", "final_layer_norm"})),
    Layout("ln_1", "attn", frozenset({"ln_2", "mlp"})),
)
"""Llama, Mistral, Qwen2, Qwen3, SmolLM; OPT; GPT-2."""


class ZeroLinear(nn.Linear):
    """A linear map whose first weights are zero."""


class CrossAttention(nn.Module):
    """One layer's cross-attention. Its output starts as zero, so that the model starts as the plain language model."""

    def __init__(self, width: int, heads: int, index: int):
        super().__init__()
        self.heads = heads
        self.index = index
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = ZeroLinear(width, width)
        self._stream: Tensor | None = None
        self._picture: Picture | None = None

    def keys_values(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Picture tokens [B, N, D] -> keys and values [B, H, N, d]."""
        keys, values = (map_(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2) for map_ in (self.key, self.value))
        return keys, values

    def forward(self, stream: Tensor, picture: Picture) -> Tensor:
        """Residual stream [k * B, T, D] -> what is added to it [k * B, T, D]; k rows look at each picture."""
        rows, length, _ = stream.shape
        keys, values = (
            picture.keys_values[self.index]
            if picture.keys_values
            else self.keys_values(picture.tokens.to(stream.dtype))
        )
        query = self.query(self.norm(stream)).view(len(keys), -1, self.heads, keys.shape[-1]).transpose(1, 2)
        mixed = functional.scaled_dot_product_attention(query, keys, values)
        picture.reached.add(self.index)
        return self.output(mixed.transpose(1, 2).reshape(rows, length, -1))

    def attach(self, norm: nn.Module, attention: nn.Module) -> None:
        """Hook into a decoder layer, given its first norm and its self-attention."""
        norm.register_forward_pre_hook(self._keep_stream)
        attention.register_forward_pre_hook(self._take_picture, with_kwargs=True)
        attention.register_forward_hook(self._add)

    def _keep_stream(self, _norm: nn.Module, given: tuple[Any, ...]) -> None:
        self._stream = given[0]

    def _take_picture(
        self, _attention: nn.Module, given: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        self._picture = named.get("picture")
        return given, {name: value for name, value in named.items() if name != "picture"}

    def _add(self, _attention: nn.Module, _given: tuple[Any, ...], output: Any) -> Any:
        stream, picture = self._stream, self._picture
        self._stream = self._picture = None
        if picture is None:
            return None
        assert stream is not None
        if isinstance(output, tuple):
            return (output[0] + self(stream + output[0], picture), *output[1:])
        return output + self(stream + output, picture)


def cross_attention(body: PreTrainedModel, config: PreTrainedConfig) -> nn.ModuleList:
    """New cross-attention for every layer of a decoder, hooked into it. Raises ValueError where it does not fit."""
    layers = repeated_layers(body, config.num_hidden_layers)
    layout = _layout(layers[0], config)
    width, heads = config.hidden_size, config.num_attention_heads
    if width % heads:
        raise ValueError(f"cross-attention: the width {width} does not divide into {heads} heads")
    made = nn.ModuleList(CrossAttention(width, heads, index) for index in range(len(layers)))
    for cross, layer in zip(made, layers, strict=True):
        assert isinstance(cross, CrossAttention)
        cross.attach(layer.get_submodule(layout.norm), layer.get_submodule(layout.attention))
    return made


def repeated_layers(model: PreTrainedModel, count: int) -> nn.ModuleList:
    """The list of a model's `count` layers."""
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise ValueError(f"{type(model).__name__} has no list of {count} layers")


def _layout(layer: nn.Module, config: PreTrainedConfig) -> Layout:
    parts = {name for name, part in layer.named_children() if not isinstance(part, nn.Dropout)}
    before = not isinstance(config, OPTConfig) or config.do_layer_norm_before
    for layout in LAYOUTS:
        if before and parts == {layout.norm, layout.attention, *layout.others}:
            return layout
    raise ValueError(
        f"fusion with cross-attention wants layers that norm before self-attention and add its output to their input, "
        f"as OPT's, Llama's, Qwen's and GPT-2's do; {type(layer).__name__} of model_type {config.model_type!r} is not "
        f'known to be one: take fusion "prefix"'
    )
