"""A model that writes: any transformers image-text-to-text model with its processor, limbeck's own folders too."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from PIL import Image
from pydantic import Field
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    BatchFeature,
    GenerationConfig,
    GenerationMixin,
    PreTrainedModel,
    ProcessorMixin,
)

from limbeck.config import Section
from limbeck.evaluation.generative.items import Item
from limbeck.evaluation.inputs import evaluating
from limbeck.models.duet import Duet
from limbeck.models.hub import local_model
from limbeck.models.tiny_vlm import TinyVLM

log = logging.getLogger(__name__)


class AnsweringConfig(Section):
    """How prompts are answered. The defaults write greedily, so that the same model gives the same answers."""

    batch_size: int = Field(default=8, ge=1)
    """prompts at once"""
    workers: int = Field(default=0, ge=0)
    """processes that decode and prepare pictures; 0 does it in this one"""
    max_skipped: float = Field(default=0.01, ge=0, le=1)
    """share of broken pictures, and of prompts that leave a model no position for an answer, past which the evaluation
    stops; what is skipped counts nowhere"""
    num_beams: int = Field(default=1, ge=1)
    """1 writes greedily"""
    temperature: float = Field(default=0, ge=0)
    """above 0 samples; the answers then depend on how prompts fall into batches too"""
    top_p: float = Field(default=1, gt=0, le=1)
    """sampling: from the likeliest tokens that hold this share"""
    seed: int = 0
    """sampling"""


class GenerativeModel:
    """A model and its processor, by what evaluation asks of them."""

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin) -> None:
        """Raises ValueError where the model cannot write, or its processor has no chat template or padding token."""
        if not isinstance(model, GenerationMixin):
            raise ValueError(f"{type(model).__name__} cannot generate; wanted an image-text-to-text model")
        if processor.chat_template is None and processor.tokenizer.chat_template is None:
            raise ValueError(f"{type(processor).__name__}: no chat template, so there is no telling how it is asked")
        if processor.tokenizer.pad_token_id is None:
            raise ValueError(f"{type(processor.tokenizer).__name__}: no padding token; set `pad_token`, e.g. to </s>")
        self.model = model
        self.processor = processor
        self._generate = cast(Any, model).generate
        self._said_first_alone = False

    @classmethod
    def from_folder(
        cls,
        folder: Path | str,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | Literal["auto"] = "auto",
    ) -> GenerativeModel:
        """Load a folder, or a model by its Hugging Face name; `dtype` "auto" is the one its weights were saved in."""
        path = local_model(folder)
        model = AutoModelForImageTextToText.from_pretrained(path, dtype=dtype, use_safetensors=True)
        return cls(cast(Any, model).to(device), AutoProcessor.from_pretrained(path))

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    def fingerprint(self) -> str:
        """Tells models apart: class, settings, and the first numbers of every parameter."""
        digest = hashlib.blake2b(digest_size=8)
        settings = json.dumps(_plain(self.model.config.to_dict()), sort_keys=True, default=str)
        digest.update(f"{type(self.model).__name__} {settings}".encode())
        for name, parameter in self.model.named_parameters():
            start = parameter.detach().flatten()[:16].double().cpu()
            digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode() + start.numpy().tobytes())
        return digest.hexdigest()

    def shown(self, items: Sequence[Item]) -> list[Item]:
        """The items as this model can be shown them: a duet or tiny model of ours the first picture alone, as LLaVA-1.5
        was run, which is logged once; any other model all."""
        several = sum(len(item.images) > 1 for item in items)
        if not several or not isinstance(self.model, TinyVLM | Duet):
            return list(items)
        if not self._said_first_alone:
            self._said_first_alone = True
            log.warning(
                "%s reads one picture at a time: of several, as in %d of %d items here, it is shown the first",
                type(self.model).__name__,
                several,
                len(items),
            )
        return [replace(item, images=item.images[:1]) for item in items]

    @property
    def hears(self) -> bool:
        """Whether the chat template keeps what the user says; that of a model of bare captions does not."""
        try:
            self.render("what is it?", 1)
        except ValueError:
            return False
        return True

    def render(self, prompt: str, images: int) -> str:
        """The whole text that the model reads: the chat template around pictures and prompt.

        Raises ValueError where the template leaves the prompt out, as that of a model that has learned captions only.
        """
        conversation = [_turn("user", prompt, images)]
        text = self.processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
        assert isinstance(text, str)
        if prompt.strip() not in text:
            raise ValueError(
                f"the model's chat template leaves out what the user says, {prompt[:60]!r}; it can only be "
                'shown pictures (a captioning benchmark with the prompt "")'
            )
        return text

    def render_answered(self, prompt: str, images: int, answer: str) -> str:
        """What `render` gives, and after it, as the chat template writes it, an answer to its end; no stop token.

        Raises ValueError where the template does not write an answer after what it writes to ask for one.
        """
        begun, answer = self.render(prompt, images), answer.strip()
        conversation = [_turn("user", prompt, images), _turn("assistant", answer, 0)]
        text = self.processor.apply_chat_template(conversation, tokenize=False)
        assert isinstance(text, str)
        place = text.find(answer, len(begun))
        if not answer or not text.startswith(begun) or place < 0:
            raise ValueError(
                f"the model's chat template asks for an answer with {begun[-40:]!r} and writes {answer[:40]!r} as "
                f"{text[-80:]!r}: the one does not go on where the other ends, so there is no telling how likely it is"
            )
        return text[: place + len(answer)]

    def length(self, text: str) -> int:
        """How many tokens a rendered text has, each picture counted as one."""
        return len(self.processor.tokenizer(text, add_special_tokens=False)["input_ids"])

    def room(self, inputs: BatchFeature) -> int | None:
        """How many tokens can follow prepared texts [B, T] before the model has no more positions, below 0 where they
        are too long themselves; None where its config does not say."""
        ids = inputs["input_ids"]
        if isinstance(self.model, Duet):
            return self.model.room(ids, inputs["attention_mask"])
        if isinstance(self.model, TinyVLM):
            return self.model.room(ids)
        positions = self.model.config.get_text_config().to_dict().get("max_position_embeddings")
        return None if positions is None else positions - ids.shape[1]

    def write(self, inputs: BatchFeature, max_new_tokens: int, config: AnsweringConfig) -> list[str]:
        """The answers to prepared prompts [B, T], without special tokens and outer spaces."""
        return [self.text_of(tokens) for tokens in self.write_tokens(inputs, max_new_tokens, config)]

    def write_tokens(self, inputs: BatchFeature, max_new_tokens: int, config: AnsweringConfig) -> list[list[int]]:
        """The tokens written after prepared prompts [B, T], up to the stop token; that is there unless it was cut."""
        inputs = inputs.to(self.device, dtype=self.model.dtype)
        sampling, pad = config.temperature > 0, self.processor.tokenizer.pad_token_id
        settings = GenerationConfig(
            max_new_tokens=max_new_tokens,
            num_beams=config.num_beams,
            do_sample=sampling,
            temperature=config.temperature if sampling else 1.0,
            top_p=config.top_p if sampling else 1.0,
            top_k=0 if sampling else 50,
            pad_token_id=pad,
        )
        with evaluating(self.model, self.device, bf16=False):
            written = self._generate(**inputs, generation_config=settings)
        assert isinstance(written, torch.Tensor)
        return [self._until_stop(row) for row in written[:, inputs["input_ids"].shape[1] :].tolist()]

    def text_of(self, tokens: Sequence[int]) -> str:
        """What tokens say, without special tokens and outer spaces."""
        return self.processor.tokenizer.decode(tokens, skip_special_tokens=True).strip()

    @property
    def stop_ids(self) -> frozenset[int]:
        """The tokens that end an answer."""
        settings = cast(Any, self.model).generation_config.eos_token_id
        return frozenset([settings] if isinstance(settings, int) else settings or ())

    def _until_stop(self, tokens: list[int]) -> list[int]:
        stops = self.stop_ids
        end = next((place for place, token in enumerate(tokens, start=1) if token in stops), len(tokens))
        return tokens[:end]


def prepare(
    processor: ProcessorMixin,
    texts: Sequence[str],
    images: Sequence[Sequence[Image.Image]],
    *,
    padding_side: Literal["left", "right"] = "left",
) -> BatchFeature:
    """Rendered texts and the pictures of each, equally many, as padded tensors; generation wants the left side."""
    start = processor.tokenizer.bos_token
    return cast(Any, processor)(
        text=list(texts),
        images=[list(shown) for shown in images] if images[0] else None,
        padding=True,
        padding_side=padding_side,
        add_special_tokens=start is None or not texts[0].startswith(start),
        return_tensors="pt",
    )


def no_room(inputs: BatchFeature) -> str:
    """Why a prepared text [1, T] for which `GenerativeModel.room` has nothing left cannot be answered."""
    return f"its {inputs['input_ids'].shape[1]} tokens leave the model no position for an answer"


def _turn(role: str, text: str, images: int) -> dict[str, Any]:
    """One turn as chat templates take it, pictures first."""
    parts: list[dict[str, str]] = [{"type": "image"}] * images
    return {"role": role, "content": [*parts, {"type": "text", "text": text}] if text else parts}


def _plain(settings: Mapping[Any, Any]) -> dict[str, Any]:
    """Settings of a model without what depends on where it lies and who wrote it."""
    return {
        str(key): _plain(value) if isinstance(value, Mapping) else value
        for key, value in settings.items()
        if not str(key).startswith("_") and key not in ("transformers_version", "dtype", "torch_dtype")
    }
