"""Image-text contrast and matching, as ALBEF and BLIP train them (and CLIP, with hard targets and no queue).

A *bank* is what a batch is compared with: features [N, E], or their parts in order, such as (momentum features of this
batch, queue). Parts are never joined into one tensor. *Targets* over a bank are positions [B] int64, the one right
entry of each row, or probabilities [B, N].
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from limbeck.kernels.precision import at_least_float32

Bank: TypeAlias = Tensor | Sequence[Tensor]


def contrastive(
    image: Tensor,
    text: Tensor,
    image_bank: Bank,
    text_bank: Bank,
    temperature: Tensor,
    image_targets: Tensor,
    text_targets: Tensor,
) -> Tensor:
    """Image-text contrastive loss of each pair: the mean of picture-to-text and text-to-picture cross-entropy.

    image, text [B, E] unit embeddings, banks [N, E], temperature scalar; `image_targets` says which texts are right for
    a picture (over `text_bank`), `text_targets` the reverse -> [B] float32. A gradient reaches the embeddings, the
    temperature and those parts of a bank that require one; it is computed here and now, so that a queue may
    be overwritten before the backward pass.

    BLIP and ALBEF: bank (momentum features, queue), targets from `soft_targets`. CLIP's symmetric InfoNCE: the other
    tower's embeddings as bank, targets ``torch.arange(B)``. With gathered banks rank r's targets start at r * B.
    """
    image_to_text = _bank_cross_entropy(image, text_bank, temperature, image_targets)
    text_to_image = _bank_cross_entropy(text, image_bank, temperature, text_targets)
    return (image_to_text + text_to_image) / 2


@torch.no_grad()
def soft_targets(momentum: Tensor, bank: Bank, temperature: Tensor, alpha: float, targets: Tensor) -> Tensor:
    """A momentum encoder's opinion mixed with what is: ``alpha * softmax(m @ bank.T / temperature) + (1 - alpha) y``.

    momentum [B, E], bank [N, E], targets positions [B] or probabilities [B, N] -> probabilities [B, N] (ALBEF, Eq. 6).
    """
    parts = _parts(bank)
    probabilities = similarity(momentum, parts).div_(temperature).softmax(1).mul_(alpha)
    if targets.ndim == 1:
        hard = torch.full_like(targets, 1 - alpha, dtype=probabilities.dtype)
        return probabilities.scatter_add_(1, targets[:, None], hard[:, None])
    return probabilities.add_(targets, alpha=1 - alpha)


def similarity(query: Tensor, bank: Bank) -> Tensor:
    """Dot products of query [B, E] and bank [N, E] -> [B, N], at least float32, under autocast too.

    Unit embeddings have cosines there; bfloat16 would round them to steps of 0.004, which a temperature of 0.07 makes
    steps of 0.06 in the logits.
    """
    with torch.autocast(query.device.type, enabled=False):
        query = at_least_float32(query)
        return torch.cat([query @ part.to(query.dtype).T for part in _parts(bank)], dim=1)


def group_targets(ids: Tensor, bank_ids: Tensor) -> Tensor:
    """Targets where every entry of the same picture is right: ``[id == bank id] / count``.

    ids [B], bank_ids [N] int64 -> [B, N]. Each id must stand in the bank; retrieval fine-tuning uses this.
    """
    same = (ids[:, None] == bank_ids).float()
    return same / same.sum(1, keepdim=True)


def hard_negatives(
    similarity: Tensor, same: Tensor, *, smoothing: float = 1e-4, generator: torch.Generator | None = None
) -> Tensor:
    """One wrong but similar column for each row, drawn with probability ``softmax(similarity) + smoothing``.

    similarity [B, N] in logits (divided by the temperature), same [B, N] boolean, True where row and column show the
    same picture -> [B] int64. All rows are drawn in one call that never waits for the device. BLIP's pre-training
    smooths by 1e-4, its retrieval fine-tuning by 0.

    A row whose columns are all the same picture has no negative: it draws any column but that of its own number
    (column 0 if there is only one). ``(~same).any(1)`` tells such rows apart.
    """
    rows, columns = similarity.shape
    other = ~torch.eye(rows, columns, dtype=torch.bool, device=similarity.device) if columns > 1 else ~same | True
    possible = ~same | (same.all(1, keepdim=True) & other)
    logits = at_least_float32(similarity.detach())
    if smoothing:
        weights = (logits.softmax(1) + smoothing) * possible
    else:
        weights = logits.masked_fill(~possible, -torch.inf).softmax(1)
    return torch.multinomial(weights, 1, generator=generator)[:, 0]


def matching(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of "does this text belong to this picture?": logits [P, 2], labels [P] (1: yes) -> [P] float32."""
    return F.cross_entropy(at_least_float32(logits), labels, reduction="none")


class FeatureQueue(nn.Module):
    """The last `size` features, a ring that starts as random unit vectors. `features` [size, width] is its bank."""

    features: Tensor
    position: Tensor

    def __init__(self, width: int, size: int):
        super().__init__()
        self.register_buffer("features", F.normalize(torch.randn(size, width), dim=1))
        self.register_buffer("position", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def enqueue(self, features: Tensor) -> None:
        """Overwrite the oldest entries by `features` [B, width], in place; of more than `size` rows the last stay."""
        size = len(self.features)
        skipped = max(len(features) - size, 0)
        kept = features[skipped:].to(self.features.dtype)
        slots = (self.position + skipped + torch.arange(len(kept), device=kept.device)) % size
        self.features.index_copy_(0, slots, kept)
        self.position.copy_((self.position + len(features)) % size)


def _parts(bank: Bank) -> tuple[Tensor, ...]:
    return (bank,) if isinstance(bank, Tensor) else tuple(bank)


def _bank_cross_entropy(query: Tensor, bank: Bank, temperature: Tensor, targets: Tensor) -> Tensor:
    return _BankCrossEntropy.apply(query, temperature, targets, *_parts(bank))


class _BankCrossEntropy(torch.autograd.Function):
    """Cross-entropy of each row of ``query @ bank.T / temperature``, its gradient computed together with it.

    With p = softmax(logits): d loss / d logits = p - targets. Rows do not mix, so query and temperature have their
    gradients kept by row, and weighted in the backward pass. The bank itself is not kept; only for a part that requires
    a gradient (CLIP's, no larger than the global batch) is the [B, N] gradient of its logits kept.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, temperature: Tensor, targets: Tensor, *parts: Tensor) -> Tensor:
        logits = similarity(query, parts).div_(temperature)
        log_normaliser = logits.logsumexp(1)
        if targets.ndim == 1:
            right = logits.gather(1, targets[:, None])[:, 0]
        else:
            targets = targets.to(logits.dtype)
            right = torch.linalg.vecdot(targets, logits)
        if not any(ctx.needs_input_grad):
            return log_normaliser - right

        gradient = (logits - log_normaliser[:, None]).exp_()
        if targets.ndim == 1:
            gradient.scatter_add_(1, targets[:, None], gradient.new_full((len(targets), 1), -1))
        else:
            gradient.sub_(targets)
        to_temperature = -torch.linalg.vecdot(gradient, logits) / temperature
        columns = gradient.div_(temperature).split([len(part) for part in parts], dim=1)
        to_query = logits.new_zeros(query.shape)
        with torch.autocast(query.device.type, enabled=False):
            for part, to_logits in zip(parts, columns):
                to_query.addmm_(to_logits, part.to(logits.dtype))
        kept = [to_logits for needed, to_logits in zip(ctx.needs_input_grad[3:], columns) if needed]
        ctx.save_for_backward(query, to_query, to_temperature, *kept)
        ctx.dtypes = [part.dtype for part in parts]
        return log_normaliser - right

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *upstream: Tensor
    ) -> tuple[Tensor | None, ...]:
        (loss,) = upstream
        query, to_query, to_temperature, *kept = ctx.saved_tensors
        to_query = (to_query * loss[:, None]).to(query.dtype)
        to_temperature = (to_temperature * loss).sum()
        remaining = iter(kept)
        to_parts = [
            ((next(remaining) * loss[:, None]).T @ query.to(loss.dtype)).to(dtype) if needed else None
            for needed, dtype in zip(ctx.needs_input_grad[3:], ctx.dtypes)
        ]
        return to_query, to_temperature, None, *to_parts
