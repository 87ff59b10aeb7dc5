"""BLIP's text transformer: BERT's post-norm blocks that read text alone, text over a picture, or write text.

Encoder and decoder are one module: a layer holds one self-attention for each and shares the rest (cross-attention,
feed-forward, embeddings) by construction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional
from transformers import Cache
from transformers.modeling_layers import GradientCheckpointingLayer

from limbeck.config import Section
from limbeck.models.vision import initialise
from limbeck.types import AttentionState


class TextConfig(Section):
    """A text tower."""

    width: int = Field(gt=0)
    """hidden width D"""
    layers: int = Field(default=12, gt=0)
    heads: int = Field(default=12, gt=0)
    feed_forward: int | None = Field(default=None, gt=0)
    """width inside the feed-forward block; null: four times `width`"""
    vocab_size: int = Field(default=30524, gt=0)
    max_positions: int = Field(default=512, gt=0)
    """longest text in tokens"""
    fusion_layers: int | None = Field(default=None, gt=0)
    """only the last so many layers look at the picture; null: all of them"""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """of hidden states and of attention probabilities"""
    norm_eps: float = Field(default=1e-12, gt=0)
    pad_token_id: int = 0
    sep_token_id: int = 102
    """ends a text"""
    dec_token_id: int = 30522
    """the class token of a text to write, `[DEC]`"""
    enc_token_id: int = 30523
    """the class token of a text to match with a picture, `[ENC]`"""

    @model_validator(mode="after")
    def _fits(self) -> TextConfig:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} does not divide into heads {self.heads}")
        if self.fusion_layers is not None and self.fusion_layers > self.layers:
            raise ValueError(f"fusion_layers {self.fusion_layers} is more than layers {self.layers}")
        return self

    @property
    def feed_forward_width(self) -> int:
        return self.feed_forward or 4 * self.width

    @property
    def first_fusion_layer(self) -> int:
        """Index of the first layer with cross-attention."""
        return 0 if self.fusion_layers is None else self.layers - self.fusion_layers


@dataclass(frozen=True)
class CrossHeads:
    """What cross-attention looks at: keys and values of every fusion layer, made once and gathered by row."""

    heads: tuple[tuple[Tensor, Tensor], ...]
    """(key, value), each [B, H, S, d], of every layer that has a cross-attention, first to last"""
    mask: Tensor | None = None
    """[B, S] boolean, True where a key may be looked at; None where every key may"""

    def gather(self, rows: Tensor | None) -> CrossHeads:
        """The same for the sources `rows` [P]; None leaves them as they are."""
        if rows is None:
            return self
        heads = tuple((key.index_select(0, rows), value.index_select(0, rows)) for key, value in self.heads)
        return CrossHeads(heads, None if self.mask is None else self.mask.index_select(0, rows))


Role = Literal["encoder", "decoder"]


class Trace(NamedTuple):
    """What a layer, or a pass through the layers, leaves behind."""

    hidden: Tensor
    """[B, T, D]"""
    self_attention: AttentionState | None
    cross_attention: AttentionState | None


class Attention(nn.Module):
    """Multi-head attention with BERT's residual and norm behind it."""

    def __init__(self, config: TextConfig, source_width: int):
        super().__init__()
        self.heads = config.heads
        self.dropout = config.dropout
        self.query = nn.Linear(config.width, config.width)
        self.key = nn.Linear(source_width, config.width)
        self.value = nn.Linear(source_width, config.width)
        self.output = nn.Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width, config.norm_eps)

    def split(self, projected: Tensor) -> Tensor:
        """[B, S, D] -> [B, H, S, d]."""
        return projected.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def source(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values, each [B, H, S, d], of the states [B, S, D] to look at."""
        return self.split(self.key(states)), self.split(self.value(states))

    def forward(self, hidden: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """hidden [B, T, D], key, value [B, H, S, d], mask [B, 1, T or 1, S] -> hidden [B, T, D], query [B, H, T, d]."""
        query = self.split(self.query(hidden))
        dropout = self.dropout if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        update = self.output(mixed.transpose(1, 2).flatten(2))
        return self.norm(hidden + functional.dropout(update, self.dropout, self.training)), query


class TextLayer(GradientCheckpointingLayer):
    """One post-norm layer. `encoder_attention` and `decoder_attention` are what the two roles do not share."""

    def __init__(self, config: TextConfig, memory_width: int | None, *, encoder: bool, decoder: bool):
        super().__init__()
        self.dropout = config.dropout
        self.encoder_attention = Attention(config, config.width) if encoder else None
        self.decoder_attention = Attention(config, config.width) if decoder else None
        self.cross_attention = Attention(config, memory_width) if memory_width is not None else None
        self.up = nn.Linear(config.width, config.feed_forward_width)
        self.down = nn.Linear(config.feed_forward_width, config.width)
        self.norm = nn.LayerNorm(config.width, config.norm_eps)

    def forward(
        self,
        hidden: Tensor,
        role: Role,
        allowed: Tensor | None,
        source: tuple[Tensor, Tensor] | None = None,
        seen: Tensor | None = None,
        cache: Cache | None = None,
        depth: int = 0,
    ) -> Trace:
        """hidden [B, T, D], through the role's self-attention, cross-attention if there is a `source`, feed-forward.

        `allowed` [B, 1, 1 or T, T] says which tokens may be looked at, `source` is (key, value) [B, H, S, d] of what
        cross-attention looks at and `seen` [B, 1, 1, S] its mask. `cache` holds the earlier tokens' keys and values,
        this layer's under `depth`.
        """
        attention = self.encoder_attention if role == "encoder" else self.decoder_attention
        assert attention is not None
        key, value = attention.source(hidden)
        if cache is not None:
            key, value = cache.update(key, value, depth)
        hidden, query = attention(hidden, key, value, allowed)
        self_state = AttentionState(query=query, key=key, mask=allowed, scale=query.shape[-1] ** -0.5)
        cross_state = None
        if source is not None:
            assert self.cross_attention is not None
            hidden, query = self.cross_attention(hidden, *source, seen)
            cross_state = AttentionState(query=query, key=source[0], mask=seen, scale=query.shape[-1] ** -0.5)
        return Trace(self.feed_forward(hidden), self_state, cross_state)

    def feed_forward(self, hidden: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        update = self.down(functional.gelu(self.up(hidden)))
        return self.norm(hidden + functional.dropout(update, self.dropout, self.training))


class TokenEmbeddings(nn.Module):
    """BERT's embeddings without token types."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.dropout = config.dropout
        self.words = nn.Embedding(config.vocab_size, config.width, padding_idx=config.pad_token_id)
        self.positions = nn.Embedding(config.max_positions, config.width)
        self.norm = nn.LayerNorm(config.width, config.norm_eps)

    def forward(self, input_ids: Tensor, start: int = 0) -> Tensor:
        """Ids [B, T] of the positions from `start` on -> [B, T, D]. ValueError where a text is longer than those."""
        stop = start + input_ids.shape[1]
        if stop > self.positions.num_embeddings:
            raise ValueError(f"a text of {stop} tokens; max_positions is {self.positions.num_embeddings}")
        hidden = self.norm(self.words(input_ids) + self.positions.weight[start:stop])
        return functional.dropout(hidden, self.dropout, self.training)


class TokenHead(nn.Module):
    """BERT's head over the vocabulary, but for the table of words: that is the embeddings' own."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.dense = nn.Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width, config.norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden: Tensor, words: Tensor) -> Tensor:
        """hidden [B, T, D] and the words' table [V, D] -> logits [B, T, V]."""
        return functional.linear(self.norm(functional.gelu(self.dense(hidden))), words, self.bias)


class TextTransformer(nn.Module):
    """Texts to hidden states, alone (`encode`), over a memory (`encode` with one), or causally over one (`decode`).

    `memory_width` is the width of the states that cross-attention looks at. `encoder` and `decoder` say which
    self-attentions there are; `head` whether there is one over the vocabulary.
    """

    def __init__(self, config: TextConfig, memory_width: int, *, encoder: bool, decoder: bool, head: bool):
        super().__init__()
        self.config = config
        self.embeddings = TokenEmbeddings(config)
        self.layers = nn.ModuleList(
            TextLayer(
                config,
                memory_width if depth >= config.first_fusion_layer else None,
                encoder=encoder,
                decoder=decoder,
            )
            for depth in range(config.layers)
        )
        self.head = TokenHead(config) if head else None
        self.apply(initialise)

    def memory(self, states: Tensor, mask: Tensor | None = None) -> CrossHeads:
        """Keys and values of every fusion layer for the states [B, S, D] of a picture or a question."""
        attentions = (layer.cross_attention for layer in self.stack())
        return CrossHeads(tuple(each.source(states) for each in attentions if each is not None), mask)

    def stack(self) -> list[TextLayer]:
        """The layers, first to last."""
        return [layer for layer in self.layers if isinstance(layer, TextLayer)]

    def encode(
        self,
        input_ids: Tensor,
        mask: Tensor | None,
        memory: CrossHeads | None = None,
        *,
        layers: int | None = None,
        capture: bool = False,
    ) -> Trace:
        """Ids [B, T] and boolean mask [B, T], through the first `layers` layers, over the memory if there is one."""
        allowed = None if mask is None else mask[:, None, None, :]
        return self._run(self.embeddings(input_ids), "encoder", allowed, memory, layers, None, capture)

    def decode(
        self,
        input_ids: Tensor,
        mask: Tensor | None,
        memory: CrossHeads,
        *,
        cache: Cache | None = None,
        capture: bool = False,
    ) -> Trace:
        """Like `encode`, but no token sees a later one. `cache` holds the earlier tokens' keys and values."""
        past = 0 if cache is None else cache.get_seq_length()
        length = input_ids.shape[1]
        causal = torch.ones(length, past + length, dtype=torch.bool, device=input_ids.device).tril(past)
        allowed = causal[None, None] if mask is None else causal & mask[:, None, None, :]
        return self._run(self.embeddings(input_ids, past), "decoder", allowed, memory, None, cache, capture)

    def logits(self, hidden: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, V]."""
        assert self.head is not None
        return self.head(hidden, self.embeddings.words.weight)

    def _run(
        self,
        hidden: Tensor,
        role: Role,
        allowed: Tensor | None,
        memory: CrossHeads | None,
        layers: int | None,
        cache: Cache | None,
        capture: bool,
    ) -> Trace:
        seen = None if memory is None or memory.mask is None else memory.mask[:, None, None, :]
        sources = iter(() if memory is None else memory.heads)
        trace = Trace(hidden, None, None)
        for depth, layer in enumerate(self.stack()[:layers]):
            source = None if memory is None or layer.cross_attention is None else next(sources)
            trace = layer(trace.hidden, role, allowed, source, seen, cache, depth)
        return trace if capture else Trace(trace.hidden, None, None)
