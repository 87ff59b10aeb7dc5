"""What BLIP and ALBEF have in common: an image tower, a text tower, and text that looks at a picture."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from limbeck.config import Section
from limbeck.models.files import write_model
from limbeck.models.generation import generate
from limbeck.models.med import CrossHeads, TextConfig, TextTransformer, Trace
from limbeck.models.vision import VisionConfig, VisionTransformer
from limbeck.types import Signals


class FusionConfig(Section):
    """A BLIP or ALBEF model. The last fields say which parts it has; a checkpoint may lack some."""

    family: Literal["blip", "albef"]
    vision: VisionConfig
    text: TextConfig
    embedding: int = Field(default=256, gt=0)
    """width E of the contrastive space"""
    encoder: bool = True
    """whether there is a text encoder"""
    heads: bool = True
    """whether there are contrastive and matching heads; without them those outputs have width 0"""
    decoder: Literal["tied", "separate", "none"] = "tied"
    """`tied`: the encoder's layers, self-attention aside (BLIP); `separate`: layers of its own; `none` (ALBEF)"""
    decoder_vision: bool = False
    """whether a separate decoder looks at pictures through an image tower of its own (checkpoints put together)"""
    answer_decoder: Literal["tied", "separate"] = "tied"
    """what answers questions: the decoder, if both towers have one width, or one of its own (BLIP's and ALBEF's VQA)"""

    @model_validator(mode="before")
    @classmethod
    def _albef_has_no_decoder(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("family") == "albef":
            return {"decoder": "none", **values}
        return values

    @model_validator(mode="after")
    def _fits(self) -> FusionConfig:
        if self.family == "albef":
            if self.decoder != "none" or not self.encoder:
                raise ValueError("family albef has an encoder and no decoder: leave out `encoder` and `decoder`")
            if self.text.first_fusion_layer == 0:
                raise ValueError("family albef needs text.fusion_layers below text.layers (ALBEF: 6 of 12)")
        if self.family == "blip" or self.answer_decoder == "separate":
            for name in ("sep_token_id", "dec_token_id", "enc_token_id"):
                token, size = self.text.model_dump()[name], self.text.vocab_size
                if token >= size:
                    raise ValueError(f"text.{name} {token} is not in a vocabulary of {size} words (text.vocab_size)")
        if not self.encoder and (self.heads or self.decoder == "tied"):
            raise ValueError("encoder: false goes with heads: false and a decoder that is not tied")
        if self.decoder_vision and self.decoder != "separate":
            raise ValueError(f"decoder_vision: true goes with decoder: separate, not {self.decoder}")
        return self

    @property
    def answers(self) -> bool:
        """Whether there is an encoder to read questions and a decoder that can look at what it read."""
        tied = self.decoder != "none" and self.vision.width == self.text.width
        return self.encoder and (tied or self.answer_decoder == "separate")

    @property
    def answer_text(self) -> TextConfig:
        """An answer decoder of its own: every layer looks at the question; ALBEF's has as many as fuse."""
        layers = self.text.fusion_layers if self.family == "albef" else self.text.layers
        return self.text.model_copy(update={"layers": layers, "fusion_layers": None})


@dataclass(frozen=True)
class Memory:
    """What texts look at: keys and values of every picture, or of every question."""

    encoder: CrossHeads | None
    """for `fuse`; None where there is no encoder, or the memory is of questions"""
    decoder: CrossHeads | None
    """for `decode` and `generate`, or for `answer` and `generate`; the encoder's own where both are tied"""
    asks: bool = False
    """whether it is of questions"""


@dataclass(frozen=True, kw_only=True)
class ImageSignals(Signals):
    """What the image tower shows, and for a decoder with an image tower of its own what that one sees."""

    decoder_hidden: Tensor | None = None
    """[B, N, D]"""


class FusionVLM(nn.Module, ABC):
    """Image tower, text tower, fusion, and where there is one a decoder.

    Position 0 of every text is the class token: BLIP's `fuse` puts `[ENC]` there, `decode`, `answer` and `generate` put
    `[DEC]`.
    `rows[i]` is the row of the memory that text i looks at; None means row i. A pass that this model has no part for
    raises ValueError.
    """

    config: FusionConfig

    def __init__(self, config: FusionConfig):
        super().__init__()
        self.config = config
        vision, text = config.vision, config.text
        self.vision = VisionTransformer(vision)
        tied = config.decoder == "tied"
        self.text = None
        if config.encoder:
            head = tied or config.family == "albef"
            self.text = TextTransformer(text, vision.width, encoder=True, decoder=tied, head=head)
        self.decoder = None
        if config.decoder == "separate":
            self.decoder = TextTransformer(text, vision.width, encoder=False, decoder=True, head=True)
        self.decoder_vision = VisionTransformer(vision) if config.decoder_vision else None
        self.answer_decoder = None
        if config.answer_decoder == "separate":
            answer_text = config.answer_text
            self.answer_decoder = TextTransformer(answer_text, text.width, encoder=False, decoder=True, head=True)
        self.image_head = nn.Linear(vision.width, config.embedding) if config.heads else None
        self.text_head = nn.Linear(text.width, config.embedding) if config.heads else None
        self.match_head = nn.Linear(text.width, 2) if config.heads else None
        self.temperature = nn.Parameter(torch.tensor(0.07))

    @property
    @abstractmethod
    def text_layers(self) -> int:
        """How many layers read a text before it meets a picture."""

    def encode_image(self, pixel_values: Tensor, *, capture: bool = False) -> Signals:
        """Pixels [B, 3, R, R] -> unit embedding [B, E], hidden [B, N, D]."""
        hidden, state = self.vision(pixel_values, capture=capture)
        decoder_hidden = None if self.decoder_vision is None else self.decoder_vision(pixel_values)[0]
        output = _embed(self.image_head, hidden)
        return ImageSignals(output=output, hidden=hidden, self_attention=state, decoder_hidden=decoder_hidden)

    def encode_text(self, input_ids: Tensor, mask: Tensor | None, *, capture: bool = False) -> Signals:
        """Ids and mask [B, T] -> unit embedding [B, E], hidden [B, T, D] of the text alone."""
        trace = self._encoder("encode a text").encode(input_ids, mask, layers=self.text_layers, capture=capture)
        return _signals(_embed(self.text_head, trace.hidden), trace, mask)

    def image_memory(self, image: Tensor | Signals) -> Memory:
        """Keys and values of every cross-attention, for what `encode_image` gave or its hidden states [B, N, D] alone.

        Where the decoder has an image tower of its own, hidden states alone are not enough: ValueError.
        """
        hidden = image if isinstance(image, Tensor) else image.hidden
        encoder = None if self.text is None else self.text.memory(hidden)
        if self.decoder is None:
            return Memory(encoder, encoder if self.config.decoder == "tied" else None)
        if self.decoder_vision is not None:
            if not isinstance(image, ImageSignals) or image.decoder_hidden is None:
                raise ValueError("the decoder has an image tower of its own: give image_memory encode_image's signals")
            hidden = image.decoder_hidden
        return Memory(encoder, self.decoder.memory(hidden))

    def question_memory(self, hidden: Tensor, mask: Tensor | None) -> Memory:
        """Keys and values for the fused questions' hidden states [Q, T, D] and their mask [Q, T]."""
        return Memory(None, self.answerer().memory(hidden, mask), asks=True)

    def fuse(
        self,
        memory: Memory,
        input_ids: Tensor,
        mask: Tensor | None,
        *,
        rows: Tensor | None = None,
        capture: bool = False,
    ) -> Signals:
        """Texts [P, T] that look at their pictures -> match logits [P, 2], hidden [P, T, D]."""
        encoder = self._encoder("match texts with pictures")
        if memory.encoder is None:
            raise ValueError("`fuse` wants the memory of pictures (image_memory), not that of questions")
        trace = encoder.encode(self._fusion_ids(input_ids), mask, memory.encoder.gather(rows), capture=capture)
        first = trace.hidden[:, 0]
        output = first[:, :0] if self.match_head is None else self.match_head(first)
        return _signals(output, trace, mask)

    def decode(
        self,
        memory: Memory,
        input_ids: Tensor,
        mask: Tensor | None,
        *,
        rows: Tensor | None = None,
        capture: bool = False,
    ) -> Signals:
        """Captions [P, T] given their pictures, word after word -> token logits [P, T, V], hidden [P, T, D]."""
        return self._write(memory, False, input_ids, mask, rows, capture)

    def answer(
        self,
        memory: Memory,
        input_ids: Tensor,
        mask: Tensor | None,
        *,
        rows: Tensor | None = None,
        capture: bool = False,
    ) -> Signals:
        """Answers [P, T] given the memory of their questions, word after word -> token logits [P, T, V], hidden."""
        return self._write(memory, True, input_ids, mask, rows, capture)

    @torch.no_grad()
    def generate(
        self,
        memory: Memory,
        prompt_ids: Tensor,
        *,
        rows: Tensor | None = None,
        num_beams: int = 1,
        max_new_tokens: int,
        min_new_tokens: int = 0,
    ) -> Tensor:
        """Prompts [P, T] of one length, class token first, go on to the separator -> ids [P, T + new], padded behind.

        Greedy or by beam search, as transformers does both. The memory is that of pictures (captions) or of questions
        (answers). Put the model into `eval` first: dropout is not switched off here.
        """
        writer, heads = self._writer(memory)
        return generate(
            writer,
            heads.gather(rows),
            _with_first(prompt_ids, self.config.text.dec_token_id),
            num_beams=num_beams,
            max_new_tokens=max_new_tokens,
            min_new_tokens=min_new_tokens,
        )

    def answerer(self) -> TextTransformer:
        """What answers questions; ValueError where nothing does."""
        if self.answer_decoder is not None:
            return self.answer_decoder
        decoder = self.text if self.config.decoder == "tied" else self.decoder
        if decoder is None:
            raise ValueError(f"this {self.config.family} has nothing to answer with: set answer_decoder: separate")
        vision, text = self.config.vision.width, self.config.text.width
        if vision != text:
            raise ValueError(
                "answer_decoder: tied needs towers of one width, since one cross-attention looks at pictures and at "
                f"questions; vision.width is {vision}, text.width {text}: set answer_decoder: separate"
            )
        return decoder

    def save(self, folder: Path | str) -> None:
        """Write config.json and model.safetensors into `folder`, each whole or not at all."""
        write_model(self, f"limbeck_{self.config.family}", self.config, Path(folder))

    def _fusion_ids(self, input_ids: Tensor) -> Tensor:
        return _with_first(input_ids, self.config.text.enc_token_id)

    def _encoder(self, purpose: str) -> TextTransformer:
        if self.text is None:
            raise ValueError(f"this model has no text encoder to {purpose}: load it with a retrieval checkpoint")
        return self.text

    def _writer(self, memory: Memory) -> tuple[TextTransformer, CrossHeads]:
        """The decoder that a memory is for, and what it looks at."""
        writer = self.text if self.config.decoder == "tied" else self.decoder
        if memory.asks:
            writer = self.answerer()
        if writer is None or memory.decoder is None:
            raise ValueError(f"this {self.config.family} has no decoder: load it with a captioning checkpoint")
        return writer, memory.decoder

    def _write(
        self, memory: Memory, asks: bool, input_ids: Tensor, mask: Tensor | None, rows: Tensor | None, capture: bool
    ) -> Signals:
        if memory.asks != asks:
            wanted, found = ("questions", "pictures") if asks else ("pictures", "questions")
            raise ValueError(f"`{'answer' if asks else 'decode'}` wants the memory of {wanted}, not that of {found}")
        writer, heads = self._writer(memory)
        ids = _with_first(input_ids, self.config.text.dec_token_id)
        trace = writer.decode(ids, mask, heads.gather(rows), capture=capture)
        return _signals(writer.logits(trace.hidden), trace, mask)


def _with_first(input_ids: Tensor, token: int) -> Tensor:
    """The same ids [B, T] with another class token."""
    return torch.cat((torch.full_like(input_ids[:, :1], token), input_ids[:, 1:]), dim=1)


def _embed(head: nn.Linear | None, hidden: Tensor) -> Tensor:
    """The class token's state in [B, T, D] -> unit vector [B, E], fp32; [B, 0] without a head."""
    first = hidden[:, 0]
    return first[:, :0] if head is None else functional.normalize(head(first).float(), dim=-1)


def _signals(output: Tensor, trace: Trace, mask: Tensor | None) -> Signals:
    return Signals(
        output=output,
        hidden=trace.hidden,
        mask=mask,
        self_attention=trace.self_attention,
        cross_attention=trace.cross_attention,
    )
