"""CTVLM's tiny vision-language model: an eye, a connector, and any decoder-only language model of transformers.

    picture -> eye -> P1 --+--> keys and values of the cross-attention in every layer
                           v
    ids -> table -> project_in -> [prompt, picture, text] -> body -> F -> project_out -> table^T

F, the hidden states after the body's final norm, is what the large model reads. The token table and its projections
are ours, so that any body is used at its own width; for OPT the whole is its own `word_embed_proj_dim` construction.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModel, Cache, OPTModel, PreTrainedModel
from transformers.generation.utils import GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from limbeck.models.duet_base import DuetPreTrainedModel, make_connector
from limbeck.models.duet_config import TinyVLMConfig
from limbeck.models.duet_cross import CrossAttention, Picture, cross_attention
from limbeck.models.duet_eye import make_eye, see_patches
from limbeck.types import IGNORE


class TinyVLM(DuetPreTrainedModel, GenerationMixin):
    """The tiny model. `eye` and `body`, where given, are used in place of new ones, and changed: the body loses its
    token table."""

    config_class = TinyVLMConfig
    config: TinyVLMConfig

    def __init__(
        self, config: TinyVLMConfig, *, eye: PreTrainedModel | None = None, body: PreTrainedModel | None = None
    ):
        super().__init__(config)
        self.width = config.width
        self.eye = eye if eye is not None else make_eye(config.eye_part)
        self.connector = make_connector(config.connector, config.eye_part.hidden_size, self.width)
        assert config.table_width is not None
        self.table = nn.Embedding(config.text_part.vocab_size, config.table_width)
        projected = self.table_is_frozen
        self.project_in = nn.Linear(config.table_width, self.width, bias=False) if projected else None
        self.project_out = nn.Linear(self.width, config.table_width, bias=False) if projected else None
        dtype = torch.get_default_dtype()
        self.body = without_table(body if body is not None else AutoModel.from_config(config.text_part, dtype=dtype))
        self.cross = cross_attention(self.body, config.text_part) if config.crosses else None
        self.post_init()

    @property
    def table_is_frozen(self) -> bool:
        return self.config.embeddings == "large_frozen"

    def settle(self) -> None:
        self.table.requires_grad_(not self.table_is_frozen)

    def get_input_embeddings(self) -> nn.Module:
        return self.table

    def get_output_embeddings(self) -> None:
        """None: the head is the table itself."""

    @property
    def head_weight(self) -> Tensor:
        """[V, E]; with `head_input` it makes the logits, which need never be whole."""
        return self.table.weight

    def head_input(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., D] -> what meets the head [..., E]."""
        return hidden if self.project_out is None else self.project_out(hidden)

    def room(self, input_ids: Tensor) -> int:
        """How many tokens can follow ids [B, T], padding included, before there are no more positions; below 0: so
        many ids are too many."""
        length = input_ids.shape[1]
        if not self.config.in_sequence:
            length -= int((input_ids[0] == self.config.image_token_id).sum())
        return self.config.text_part.max_position_embeddings - length

    def patches(self, pixel_values: Tensor) -> Tensor:
        """Pixels [B, 3, R, R] -> the eye's patches [B, N, De]."""
        return see_patches(self.eye, self.config, pixel_values)

    def see(self, pixel_values: Tensor) -> Tensor:
        """Pixels [B, 3, R, R] -> picture tokens [B, N, D]."""
        return self.connector(self.patches(pixel_values))

    def look(self, image: Tensor) -> Picture:
        """Picture tokens [B, N, D] -> a picture with every layer's keys and values, for decoding step by step."""
        layers = [layer for layer in self.cross or () if isinstance(layer, CrossAttention)]
        return Picture(image, tuple(layer.keys_values(image) for layer in layers))

    def read(self, input_ids: Tensor, attention_mask: Tensor | None = None, image: Tensor | None = None) -> Tensor:
        """Ids and mask [B, T], picture tokens [B, N, D] -> F, hidden states after the final norm [B, T, D].

        Without `image` the text alone is read, without cross-attention; it must then hold no image token. Rows may be
        padded on either side. With fusion "cross" the body reads the text without its image tokens, and their places
        in the output repeat the state of the last token before the picture.
        """
        check_pictures(input_ids, image)
        picture = None if image is None else Picture(image)
        return self._run(input_ids, attention_mask, picture)[0]

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        picture: Picture | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: Literal[True] = True,
    ) -> CausalLMOutputWithPast:
        """Logits [B, T, V] and, given unshifted `labels`, their cross-entropy, as transformers' own models have them.

        A later step of decoding is given `past_key_values` and, in place of pixels, the `picture` that `look` made.
        With fusion "cross" such steps leave the image tokens out of `attention_mask`, as the cache does.
        """
        if picture is None and pixel_values is not None:
            picture = Picture(self.see(pixel_values))
        out = self._run(input_ids, attention_mask, picture, position_ids, past_key_values, use_cache)
        hidden = out[0]
        kept = hidden[:, -logits_to_keep:] if isinstance(logits_to_keep, int) else hidden[:, logits_to_keep]
        logits = functional.linear(self.head_input(kept), self.head_weight)
        loss = None
        if labels is not None:
            loss = functional.cross_entropy(
                logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=IGNORE
            )
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=out.past_key_values)

    @torch.no_grad()
    def generate(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image: Tensor | None = None,
        **options: Any,
    ) -> Any:
        """Answers after prompts padded on the left: ids [B, T] -> prompts and answers [B, T + U].

        `image`, picture tokens [B, N, D] that `see` has made, takes the place of pixels. `options` are those of
        transformers' `generate`. The eye runs once for each picture, whatever the beams.
        """
        given, mask = input_ids, torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if image is None and pixel_values is not None:
            image = self.see(pixel_values)
        check_pictures(input_ids, image)
        picture = None if image is None else self.look(image)
        is_image = self._image_positions(given, picture, None)
        if is_image is not None and not self.config.in_sequence:
            given, mask = (values[~is_image].view(len(input_ids), -1) for values in (given, mask))
        decode: Any = super().generate  # pyright: ignore[reportAttributeAccessIssue]
        output = decode(input_ids=given, attention_mask=mask, picture=picture, **options)
        return with_prompts(output, input_ids, given.shape[1])

    def _run(
        self,
        ids: Tensor,
        mask: Tensor | None,
        picture: Picture | None,
        positions: Tensor | None = None,
        past: Cache | None = None,
        use_cache: bool | None = False,
    ) -> BaseModelOutputWithPast:
        """The body over a sequence or, with a cache, over its new tokens; the output is as long as `ids`."""
        is_image = self._image_positions(ids, picture, past)
        if is_image is None or self.config.in_sequence:
            return self._run_body(self._embed(ids, is_image, picture), mask, picture, positions, past, use_cache)
        text = ~is_image
        mask = torch.ones_like(ids) if mask is None else mask
        if bool(((text & mask.bool()).cumsum(1) == 0)[is_image].any()):
            raise ValueError('fusion "cross": a sequence that begins with its picture has nothing to read it from')
        ids, mask = (values[text].view(len(ids), -1) for values in (ids, mask))
        out = self._run_body(self._embed(ids, None, None), mask, picture, None, past, use_cache)
        places = (text.cumsum(1) - 1)[..., None].expand(-1, -1, self.width)
        return BaseModelOutputWithPast(last_hidden_state=out[0].gather(1, places), past_key_values=out.past_key_values)

    def _run_body(
        self,
        embeddings: Tensor,
        mask: Tensor | None,
        picture: Picture | None,
        positions: Tensor | None,
        past: Cache | None,
        use_cache: bool | None,
    ) -> BaseModelOutputWithPast:
        seen = 0 if past is None else past.get_seq_length()
        length = seen + embeddings.shape[1]
        if length > self.config.text_part.max_position_embeddings:
            raise ValueError(
                f"a sequence of {length} tokens; the tiny language model has "
                f"{self.config.text_part.max_position_embeddings} positions"
            )
        if positions is None:
            positions = positions_of(mask, length, embeddings.device)[:, seen:]
        crossed = {} if picture is None or self.cross is None else {"picture": picture}
        out = self.body(
            inputs_embeds=embeddings,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=past,
            use_cache=use_cache,
            **crossed,
        )
        if picture is not None and self.cross is not None and not picture.reached:
            raise ValueError(f'{type(self.body).__name__} hands no picture to its layers: take fusion "prefix"')
        return out

    def _embed(self, ids: Tensor, is_image: Tensor | None, picture: Picture | None) -> Tensor:
        """Ids [B, T] -> embeddings [B, T, D], with the picture's tokens in their places."""
        if is_image is None or picture is None:
            return self._project(self.table(ids))
        words = self._project(self.table(ids[~is_image]))
        tokens = picture.tokens.repeat_interleave(len(ids) // len(picture.tokens), dim=0).to(words.dtype)
        empty = words.new_zeros(*ids.shape, self.width)
        return empty.masked_scatter(~is_image[..., None], words).masked_scatter(is_image[..., None], tokens)

    def _project(self, embeddings: Tensor) -> Tensor:
        return embeddings if self.project_in is None else self.project_in(embeddings)

    def _image_positions(self, ids: Tensor, picture: Picture | None, past: Cache | None) -> Tensor | None:
        """[B, T] where picture tokens belong, None where there are none. Raises ValueError where they do not fit."""
        is_image = ids == self.config.image_token_id
        counts = is_image.sum(1).tolist()
        if not any(counts):
            if picture is not None and past is None and self.config.in_sequence:
                raise ValueError(f"a picture, but no image token ({self.config.image_token_id}) in the text")
            return None
        if picture is None:
            raise ValueError(f"row {first_other(counts, 0)} has image tokens, but there is no picture")
        wanted = picture.tokens.shape[1]
        if set(counts) != {wanted}:
            row = first_other(counts, wanted)
            raise ValueError(f"row {row} has {counts[row]} image tokens; a picture of this eye has {wanted}")
        return is_image


def check_pictures(input_ids: Tensor, image: Tensor | None) -> None:
    """Raise ValueError where there is not one picture for each text."""
    if image is not None and len(image) != len(input_ids):
        raise ValueError(f"{len(input_ids)} texts and {len(image)} pictures; there must be one for each")


def without_table(body: PreTrainedModel) -> PreTrainedModel:
    """A decoder without token embeddings, nor OPT's own projections from and to them."""
    body.set_input_embeddings(None)  # pyright: ignore[reportArgumentType]
    if isinstance(body, OPTModel):
        body.decoder.project_in = body.decoder.project_out = None
    return body


def positions_of(mask: Tensor | None, length: int, device: torch.device) -> Tensor:
    """Mask [B, T], or None for all real -> each token's place among the real ones of its row, padding at 0."""
    if mask is None:
        return torch.arange(length, device=device)[None]
    return (mask.long().cumsum(1) - 1).clamp_min(0)


def with_prompts(output: Any, prompts: Tensor, skipped: int) -> Any:
    """What `generate` gives, with its first `skipped` ids replaced by the whole prompts, each repeated as needed."""
    ids = output if isinstance(output, Tensor) else output.sequences
    whole = torch.cat((prompts.repeat_interleave(len(ids) // len(prompts), dim=0), ids[:, skipped:]), dim=1)
    if isinstance(output, Tensor):
        return whole
    output.sequences = whole
    return output


def first_other(counts: list[int], wanted: int) -> int:
    """The first row whose count is another one."""
    return next(row for row, count in enumerate(counts) if count != wanted)
