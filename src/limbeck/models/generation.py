"""Writing text: transformers' greedy and beam search over our decoder and its cache."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, GenerationConfig, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from limbeck.models.med import CrossHeads, TextTransformer


def generate(
    writer: TextTransformer,
    memory: CrossHeads,
    prompt_ids: Tensor,
    *,
    num_beams: int,
    max_new_tokens: int,
    min_new_tokens: int,
) -> Tensor:
    """Prompts [P, T] over the memory's rows go on to the separator -> ids [P, T + new], padded behind."""
    settings = GenerationConfig(
        num_beams=num_beams,
        max_new_tokens=max_new_tokens,
        min_new_tokens=min_new_tokens or None,
        do_sample=False,
        eos_token_id=writer.config.sep_token_id,
        pad_token_id=writer.config.pad_token_id,
    )
    rows = torch.arange(len(prompt_ids), device=prompt_ids.device).repeat_interleave(num_beams)
    decoder = _Decoder(writer, memory.gather(rows if num_beams > 1 else None))
    ids = decoder.generate(  # pyright: ignore[reportAttributeAccessIssue]  # the mixin's protocol is narrower than its use
        input_ids=prompt_ids,
        attention_mask=torch.ones_like(prompt_ids),
        past_key_values=DynamicCache(),
        generation_config=settings,
    )
    assert isinstance(ids, Tensor)
    return ids


class _DecoderConfig(PreTrainedConfig):
    """What generation asks of a model's config."""

    model_type = "limbeck_decoder"
    vocab_size: int = 0
    num_hidden_layers: int = 0
    is_decoder: bool = True


class _Decoder(PreTrainedModel, GenerationMixin):
    """The face that transformers' generation wants of a decoder: the next token's logits, given a cache."""

    config_class = _DecoderConfig
    main_input_name = "input_ids"

    def __init__(self, writer: TextTransformer, memory: CrossHeads):
        config = _DecoderConfig()
        config.vocab_size = writer.config.vocab_size
        config.num_hidden_layers = writer.config.layers
        super().__init__(config)
        self.writer = writer
        self.memory = memory

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        position_ids: Tensor | None = None,
        cache_position: Tensor | None = None,
        use_cache: bool = True,
        return_dict: bool = True,
    ) -> CausalLMOutputWithPast:
        """The tokens that the cache does not hold yet [P, T] -> logits of the last one, [P, 1, V]."""
        trace = self.writer.decode(input_ids, None, self.memory, cache=past_key_values)
        return CausalLMOutputWithPast(logits=self.writer.logits(trace.hidden[:, -1:]), past_key_values=past_key_values)
