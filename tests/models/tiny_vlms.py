"""Small random models of transformers' classes, each with the processor and a chat template of its kind."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image
from tiny_llavas import SAID, llava
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLVisionConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.internvl.processing_internvl import InternVLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
from transformers.models.smolvlm.processing_smolvlm import SmolVLMProcessor

from limbeck.data.chat import Chat, ChatConfig
from limbeck.data.decoder_tokenizer import PAD, train_bpe
from limbeck.models.llava import make_llava_processor

KINDS = ("llava", "qwen2_vl", "qwen3_vl", "smolvlm", "internvl")
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}PICTURE{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Qwen's and InternVL's, PICTURE in the place of theirs."""
SMOLVLM = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
QWEN = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
SMOL = (
    "<|im_start|>",
    "<end_of_utterance>",
    "<image>",
    "<fake_token_around_image>",
    "<global-img>",
    *(f"<row_{row}_col_{col}>" for row in range(1, 5) for col in range(1, 5)),
)
INTERN = ("<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>")


class _NoVideos:
    """transformers' processors of pictures and videos want torchvision for the videos; these do without."""

    def check_argument_for_proper_class(self, argument_name: str, argument: object) -> type:
        return type(argument)


class Qwen2(_NoVideos, Qwen2VLProcessor):
    pass


class Qwen3(_NoVideos, Qwen3VLProcessor):
    pass


class Smol(_NoVideos, SmolVLMProcessor):
    video_processor = SimpleNamespace(num_frames=1, fps=1)


class Intern(_NoVideos, InternVLProcessor):
    pass


def tokenizer_of(tokens: tuple[str, ...], eos: str, template: str, **named: str) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with special tokens and a chat template."""
    return PreTrainedTokenizerFast(
        tokenizer_object=train_bpe(SAID, 400, tokens),
        pad_token=PAD,
        eos_token=eos,
        chat_template=template,
        extra_special_tokens=named,
        clean_up_tokenization_spaces=False,
    )


def vlm(kind: str, seed: int = 0) -> tuple[PreTrainedModel, ProcessorMixin]:
    """A model of some thousand parameters, each with a value of its own, and its processor."""
    torch.manual_seed(seed)
    model, processor = {
        "llava": _llava,
        "qwen2_vl": _qwen2,
        "qwen3_vl": _qwen3,
        "smolvlm": _smolvlm,
        "internvl": _internvl,
    }[kind]()
    return model.eval(), processor


def picture(width: int = 40, height: int = 24, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def _llava():
    from limbeck.data.decoder_tokenizer import BpeTokenizer, load_decoder_tokenizer

    tokenizer = load_decoder_tokenizer(BpeTokenizer(tokenizer="bpe", vocab_size=320), SAID)
    model = llava(tokenizer)
    return model, make_llava_processor(model, tokenizer, Chat(tokenizer, ChatConfig()).jinja)


def _text(tokenizer: PreTrainedTokenizerFast, **values: object) -> dict:
    shared = {"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 2}
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    return {
        "vocab_size": len(tokenizer),
        "intermediate_size": 48,
        "max_position_embeddings": 512,
        **shared,
        **ids,
        **values,
    }


def _qwen_parts(processor: type[ProcessorMixin], patch: int):
    template = CHATML.replace("PICTURE", "<|vision_start|><|image_pad|><|vision_end|>")
    tokenizer = tokenizer_of(QWEN, "<|im_end|>", template)
    pictures = Qwen2VLImageProcessorPil(patch_size=patch, min_pixels=8 * 8 * 4, max_pixels=64 * 64, merge_size=2)
    ids = {
        "image_token_id": tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        "video_token_id": tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        "vision_start_token_id": tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        "vision_end_token_id": tokenizer.convert_tokens_to_ids("<|vision_end|>"),
    }
    made = processor(image_processor=pictures, tokenizer=tokenizer, chat_template=template)
    return made, tokenizer, ids


def _qwen2():
    processor, tokenizer, ids = _qwen_parts(Qwen2, 4)
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
    config = Qwen2VLConfig(
        text_config=_text(tokenizer, rope_parameters=rope),
        vision_config={
            "depth": 2,
            "embed_dim": 16,
            "hidden_size": 32,
            "num_heads": 2,
            "patch_size": 4,
            "mlp_ratio": 2,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
        **ids,
    )
    return Qwen2VLForConditionalGeneration(config), processor


def _qwen3():
    processor, tokenizer, ids = _qwen_parts(Qwen3, 4)
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0, "mrope_interleaved": True}
    config = Qwen3VLConfig(
        text_config=_text(tokenizer, head_dim=16, num_hidden_layers=3, rope_parameters=rope),
        vision_config={
            "depth": 3,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_heads": 2,
            "patch_size": 4,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "out_hidden_size": 32,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1],
        },
        **ids,
    )
    return Qwen3VLForConditionalGeneration(config), processor


def _smolvlm():
    tokenizer = tokenizer_of(SMOL, "<end_of_utterance>", SMOLVLM)
    pictures = SmolVLMImageProcessorPil(
        do_image_splitting=True, size={"longest_edge": 32}, max_image_size={"longest_edge": 16}
    )
    processor = Smol(pictures, tokenizer, Smol.video_processor, image_seq_len=4, chat_template=SMOLVLM)
    config = SmolVLMConfig(
        text_config={**_text(tokenizer), "model_type": "llama"},
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 16,
            "patch_size": 4,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=tokenizer.pad_token_id,
    )
    return SmolVLMForConditionalGeneration(config), processor


def _internvl():
    template = CHATML.replace("PICTURE", "<IMG_CONTEXT>\n")
    tokenizer = tokenizer_of(
        INTERN,
        "<|im_end|>",
        template,
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    pictures = GotOcr2ImageProcessorPil(
        size={"height": 16, "width": 16}, crop_to_patches=True, min_patches=1, max_patches=3
    )
    processor = Intern(pictures, tokenizer, None, image_seq_length=4, chat_template=template)
    config = InternVLConfig(
        vision_config=InternVLVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=[16, 16],
            patch_size=[4, 4],
        ),
        text_config={**_text(tokenizer), "model_type": "qwen2"},
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
    )
    return InternVLForConditionalGeneration(config), processor
