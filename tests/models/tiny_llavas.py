"""LLaVAs of some thousand parameters, a tokenizer and a processor for them."""

from __future__ import annotations

import torch
from tiny_duets import eye_config, text_config
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from limbeck.data.decoder_tokenizer import DecoderIds
from limbeck.models.llava import build_llava

SAID = ("Is there a dog? Yes, a brown dog.", "How many cats are there? Two.", "What is it? A small red ball.")


def llava(
    tokenizer: PreTrainedTokenizerFast,
    *,
    eye: str = "clip",
    text: str = "llama",
    image_size: int = 8,
    seed: int = 0,
    **values: object,
) -> LlavaForConditionalGeneration:
    """A random LLaVA that reads the tokenizer's ids; every weight has a value of its own but the identity's."""
    ids = DecoderIds.of(tokenizer)
    torch.manual_seed(seed)
    rows = len(tokenizer) - 1 if ids.image == len(tokenizer) - 1 else len(tokenizer)
    seeing = eye_config(eye)
    seeing.image_size = image_size
    return build_llava(
        seeing,
        text_config(text, vocab_size=rows, max_position_embeddings=256),
        tokenizer_length=len(tokenizer),
        image_token_id=ids.image,
        pad_token_id=ids.pad,
        bos_token_id=ids.bos,
        eos_token_id=ids.eos,
        **values,
    )
