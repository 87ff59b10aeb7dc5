"""How likely a model finds given answers: which of several it would choose, without writing any."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional
from transformers import BatchFeature

from limbeck.evaluation.generative.model import GenerativeModel
from limbeck.evaluation.inputs import evaluating
from limbeck.models.duet import Duet
from limbeck.types import IGNORE


def spoken_tokens(model: GenerativeModel, begun: str, whole: str) -> int:
    """How many tokens of `whole`, a rendered text with its answer, follow on what it shares with `begun`, the text
    before the answer. A token that joins the end of the one with the first letters of the other counts."""
    encode = model.processor.tokenizer
    first, second = (encode(text, add_special_tokens=False)["input_ids"] for text in (begun, whole))
    shared = next((place for place, (a, b) in enumerate(zip(first, second)) if a != b), min(len(first), len(second)))
    return len(second) - shared


def log_likelihoods(model: GenerativeModel, inputs: BatchFeature, spoken: Sequence[int]) -> list[float]:
    """The natural log-probability of the last `spoken` tokens of each row, given all that stands before them, summed.

    `inputs` are prepared texts [B, T] padded on the right, as in training. Raises ValueError where the model's logits
    are not one for each token.
    """
    inputs = inputs.to(model.device, dtype=model.model.dtype)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    ends = mask.sum(dim=1, keepdim=True)
    places = torch.arange(ids.shape[1], device=ids.device)
    starts = ends - torch.tensor(spoken, device=ids.device)[:, None]
    labels = ids.masked_fill((places < starts) | (places >= ends), IGNORE)
    shifted = torch.cat((labels[:, 1:], torch.full_like(labels[:, :1], IGNORE)), dim=1)
    with evaluating(model.model, model.device, bf16=False):
        if isinstance(model.model, Duet):
            logits, targets = _of_duet(model.model, inputs, shifted)
        else:
            wanted = (shifted != IGNORE).any(dim=0).nonzero().flatten()
            logits, targets = _logits(model, inputs, wanted), shifted[:, wanted]
        losses = functional.cross_entropy(
            logits.float().transpose(1, 2), targets, ignore_index=IGNORE, reduction="none"
        )
    return (-losses.double().sum(dim=1)).tolist()


def _logits(model: GenerativeModel, inputs: BatchFeature, places: Tensor) -> Tensor:
    """Logits [B, P, V] at those places alone, where the model can leave out the others."""
    if "logits_to_keep" in inspect.signature(model.model.forward).parameters:
        return model.model(**inputs, use_cache=False, logits_to_keep=places).logits
    logits = model.model(**inputs, use_cache=False).logits
    if logits.shape[1] != inputs["input_ids"].shape[1]:
        raise ValueError(
            f"{type(model.model).__name__}: {logits.shape[1]} logits for {inputs['input_ids'].shape[1]} tokens, so "
            "there is no telling how likely it finds an answer; ask it for a letter"
        )
    return logits[:, places]


def _of_duet(duet: Duet, inputs: BatchFeature, shifted: Tensor) -> tuple[Tensor, Tensor]:
    """The large model's logits [B, P, V] and what they have to say [B, P]; its sequence is another than the inputs'."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    picture = duet.tiny.see(inputs["pixel_values"]) if "pixel_values" in inputs else None
    large = duet.large_inputs(ids, mask, duet.tiny.read(ids, mask, picture), shifted)
    hidden = duet.large_hidden(large.inputs_embeds, large.attention_mask)
    wanted = (large.labels != IGNORE).any(dim=0)
    return functional.linear(hidden[:, wanted], duet.large_head_weight), large.labels[:, wanted]
