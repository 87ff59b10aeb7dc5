"""CTVLM's duet: a tiny VLM whose hidden states, through a connector, are what a large language model sees.

    tiny: picture, [P], [T], answer -> F          large: [P], P2(F), [T], answer

Importing this module makes both models known to transformers' Auto classes.
"""

from __future__ import annotations

from copy import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    GenerationConfig,
    LlavaProcessor,
    PreTrainedModel,
)
from transformers.generation.utils import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast

from limbeck.models.duet_base import DuetPreTrainedModel, make_connector, without_head
from limbeck.models.duet_config import DuetConfig, TinyVLMConfig, embedding_width
from limbeck.models.duet_layout import move_labels, pack, segments
from limbeck.models.tiny_vlm import TinyVLM, positions_of, with_prompts
from limbeck.types import IGNORE


class LargeInputs(NamedTuple):
    """A batch as the large model reads it."""

    inputs_embeds: Tensor
    """[B, L, W]"""
    attention_mask: Tensor
    """[B, L] boolean"""
    labels: Tensor
    """[B, L] shifted; IGNORE everywhere where there were none"""


class Duet(DuetPreTrainedModel, GenerationMixin):
    """Both models. `tiny` and `large`, where given, are used in place of new ones."""

    config_class = DuetConfig
    config: DuetConfig

    def __init__(self, config: DuetConfig, *, tiny: TinyVLM | None = None, large: PreTrainedModel | None = None):
        super().__init__(config)
        self.tiny = tiny if tiny is not None else TinyVLM(config.tiny_part)
        self.connector = make_connector(config.connector, config.tiny_part.width, embedding_width(config.large_part))
        dtype = torch.get_default_dtype()
        self.large = large if large is not None else AutoModelForCausalLM.from_config(config.large_part, dtype=dtype)
        self.generation_config = self.large.generation_config
        self.post_init()

    @property
    def image_token_id(self) -> int:
        return self.config.image_token_id

    def settle(self) -> None:
        self.tiny.settle()
        self.tiny.generation_config.suppress_tokens = self.generation_config.suppress_tokens

    def get_input_embeddings(self) -> nn.Module:
        return self.large.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module | None:
        return self.large.get_output_embeddings()

    @property
    def large_head_weight(self) -> Tensor:
        """[V, E]"""
        head = self.large.get_output_embeddings()
        assert isinstance(head, nn.Linear)
        return head.weight

    def large_embeddings(self, input_ids: Tensor) -> Tensor:
        """Ids [B, T] -> the large model's own embeddings [B, T, W]."""
        return self.large.get_input_embeddings()(input_ids)

    def room(self, input_ids: Tensor, attention_mask: Tensor) -> int:
        """How many tokens the large model can write after prompts [B, T] before it has no more positions; below 0: so
        many tokens are too many for it, or for the tiny model, which reads the prompts alone."""
        segment = segments(input_ids, attention_mask, None, self.config.image_token_id, self.config.answer_marker)
        packing = pack(segment, self.config.features, has_features=self.config.tiny_part.in_sequence)
        tiny = self.tiny.room(input_ids)
        large = self.config.large_part.max_position_embeddings - packing.source.shape[1]
        return large if tiny >= 0 else min(large, tiny)

    def large_inputs(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        hidden: Tensor,
        labels: Tensor | None = None,
        *,
        left: bool = False,
    ) -> LargeInputs:
        """The tiny model's sequences and their hidden states -> the large model's sequences.

        `input_ids`, `attention_mask` and the shifted `labels` are [B, T], padded on either side; `hidden` [B, T, D] is
        what `tiny.read` gave for them, and gradients flow back through it. The result is padded on the right or, for
        generation, on the left. A row's labels keep their number and order. Raises ValueError where the large model
        would see nothing of a row's picture.
        """
        config = self.config
        segment = segments(input_ids, attention_mask, labels, config.image_token_id, config.answer_marker)
        packing = pack(segment, config.features, has_features=config.tiny_part.in_sequence, left=left)
        blind = (input_ids == config.image_token_id).any(1) & ~packing.is_feature.any(1)
        if not config.tiny_part.in_sequence and bool(blind.any()):
            raise ValueError(
                f'row {int(blind.nonzero()[0])} has no text between picture and answer: with fusion "cross" and '
                f"features {config.features!r} the large model would see nothing of its picture"
            )
        length = packing.source.shape[1]
        if length > config.large_part.max_position_embeddings:
            raise ValueError(
                f"a sequence of {length} tokens; the large language model has "
                f"{config.large_part.max_position_embeddings} positions"
            )
        words = input_ids.gather(1, packing.source).masked_fill(~packing.is_word, 0)
        embeddings = self.large_embeddings(words)
        rows = torch.arange(len(input_ids), device=input_ids.device)[:, None].expand_as(packing.source)
        chosen = packing.is_feature
        features = self.connector(hidden[rows[chosen], packing.source[chosen]])
        embeddings = embeddings.masked_scatter(chosen[..., None], features.to(embeddings.dtype))
        if labels is None:
            labels = torch.full_like(input_ids, IGNORE)
        return LargeInputs(embeddings, chosen | packing.is_word, move_labels(labels, packing))

    def large_hidden(self, inputs_embeds: Tensor, attention_mask: Tensor) -> Tensor:
        """Embeddings [B, L, W] and mask [B, L] -> what meets the large model's head [B, L, E]."""
        positions = positions_of(attention_mask, attention_mask.shape[1], attention_mask.device)
        out = without_head(self.large)(
            inputs_embeds=inputs_embeds, attention_mask=attention_mask, position_ids=positions, use_cache=False
        )
        return out.last_hidden_state

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> CausalLMOutputWithPast:
        """The large model's logits [B, L, V] over its own, longer sequence and, given unshifted `labels`, their
        cross-entropy. For decoding, which has a cache, there is `generate`."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        shifted = None
        if labels is not None:
            shifted = torch.cat((labels[:, 1:], torch.full_like(labels[:, :1], IGNORE)), dim=1)
        inputs = self.large_inputs(input_ids, mask, self._read(input_ids, mask, pixel_values), shifted)
        hidden = self.large_hidden(inputs.inputs_embeds, inputs.attention_mask)
        logits = functional.linear(hidden, self.large_head_weight)
        loss = None
        if labels is not None:
            loss = functional.cross_entropy(logits.flatten(0, 1).float(), inputs.labels.flatten(), ignore_index=IGNORE)
        return CausalLMOutputWithPast(loss=loss, logits=logits)

    @torch.no_grad()
    def generate(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image: Tensor | None = None,
        **options: Any,
    ) -> Any:
        """The large model's answers after prompts padded on the left: ids [B, T] -> prompts and answers [B, T + U].

        `image`, picture tokens [B, N, D] that `tiny.see` has made, takes the place of pixels. `options` are those of
        transformers' `generate`. The tiny model reads each prompt once, whatever the beams.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        inputs = self.large_inputs(input_ids, mask, self._read(input_ids, mask, pixel_values, image), left=True)
        settings: GenerationConfig | None = options.get("generation_config")
        if "max_length" in options:
            options["max_new_tokens"] = options.pop("max_length") - input_ids.shape[1]
        elif settings is not None and settings.max_length is not None and settings.max_new_tokens is None:
            options["generation_config"] = settings = copy(settings)
            settings.max_new_tokens, settings.max_length = settings.max_length - input_ids.shape[1], None
        self.large.generation_config = self.generation_config
        decode: Any = self.large.generate
        output = decode(inputs_embeds=inputs.inputs_embeds, attention_mask=inputs.attention_mask.long(), **options)
        return with_prompts(output, input_ids, 0)

    def _read(
        self, input_ids: Tensor, mask: Tensor, pixel_values: Tensor | None, image: Tensor | None = None
    ) -> Tensor:
        if image is None and pixel_values is not None:
            image = self.tiny.see(pixel_values)
        return self.tiny.read(input_ids, mask, image)


AutoConfig.register(TinyVLMConfig.model_type, TinyVLMConfig)
AutoConfig.register(DuetConfig.model_type, DuetConfig)
AutoModelForImageTextToText.register(TinyVLMConfig, TinyVLM)
AutoModelForImageTextToText.register(DuetConfig, Duet)
AutoProcessor.register(TinyVLMConfig, LlavaProcessor)
AutoProcessor.register(DuetConfig, LlavaProcessor)
