"""Language modelling: cross-entropy of tokens."""

from torch import Tensor
from torch.nn import functional as F

from limbeck.kernels.precision import at_least_float32
from limbeck.types import IGNORE


def token_cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float = 0.1) -> Tensor:
    """Cross-entropy of each token in nats, 0 where the label is `IGNORE`.

    logits [..., V], labels [...] int64 -> [...] float32. The caller shifts: position t's logits stand beside the label
    of the token at t + 1. Label smoothing spreads that share of the target evenly over the vocabulary (0.1 in BLIP's
    language loss). Raises ValueError when the leading shapes differ.
    """
    if logits.shape[:-1] != labels.shape:
        raise ValueError(
            f"token_cross_entropy: logits {tuple(logits.shape)} do not fit labels {tuple(labels.shape)}; "
            "the labels' shape must be that of the logits without the vocabulary"
        )
    rows = at_least_float32(logits).flatten(0, -2)
    losses = F.cross_entropy(
        rows, labels.flatten(), ignore_index=IGNORE, label_smoothing=label_smoothing, reduction="none"
    )
    return losses.view_as(labels)
