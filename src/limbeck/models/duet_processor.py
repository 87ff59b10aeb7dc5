"""The processor of a tiny VLM or a duet: transformers' LlavaProcessor, which AutoProcessor loads from their folders."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from transformers import LlavaImageProcessorPil, LlavaProcessor, PreTrainedTokenizerBase
from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from limbeck.models.duet_config import CLASS_TOKENS, DuetConfig, TinyVLMConfig

BICUBIC = 3
"""Pillow's number of the filter."""


def make_processor(
    config: TinyVLMConfig | DuetConfig,
    tokenizer: PreTrainedTokenizerBase,
    chat_template: str | None = None,
    *,
    image_size: int | None = None,
    image_token: str = "<image>",
    pad_to_square: bool = True,
    image_mean: Sequence[float] = OPENAI_CLIP_MEAN,
    image_std: Sequence[float] = OPENAI_CLIP_STD,
) -> LlavaProcessor:
    """Pictures to squares of the eye's size, and each `<image>` of a text to as many tokens as the eye makes of one.

    A picture is padded to a square with the mean colour, as LLaVA-1.5 does, or else stretched. Batches of prompts are
    padded on the left. `chat_template` None keeps the tokenizer's own; the tokenizer is copied. Raises ValueError where
    the tokenizer's image token is not the models', or `image_size` not the eye's.
    """
    tiny = config.tiny_part if isinstance(config, DuetConfig) else config
    eye = tiny.eye_part
    if image_size not in (None, eye.image_size):
        raise ValueError(f"image_size is {image_size}; the eye sees {eye.image_size} pixels a side")
    number = tokenizer.convert_tokens_to_ids(image_token)
    if number != tiny.image_token_id:
        raise ValueError(
            f"the tokenizer's {image_token!r} is token {number}; the model's image_token_id is {tiny.image_token_id}"
        )
    own = copy.deepcopy(tokenizer)
    own.padding_side = own.init_kwargs["padding_side"] = "left"  # what is in init_kwargs is saved
    if chat_template is not None:
        own.chat_template = chat_template
    side = {"height": eye.image_size, "width": eye.image_size}
    pictures = LlavaImageProcessorPil(
        do_pad=pad_to_square,
        size=side,
        do_center_crop=False,
        crop_size=side,
        resample=BICUBIC,
        image_mean=list(image_mean),
        image_std=list(image_std),
    )
    return LlavaProcessor(
        image_processor=pictures,
        tokenizer=own,
        patch_size=eye.patch_size,
        vision_feature_select_strategy="default" if tiny.drop_class_token else "full",
        num_additional_image_tokens=CLASS_TOKENS[eye.model_type],
        image_token=image_token,
        chat_template=own.chat_template,
    )
