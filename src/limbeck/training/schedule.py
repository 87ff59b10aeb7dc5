"""The papers' learning rates: a linear warm-up by steps, then one value per epoch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

Schedule = Callable[[int, int, int], float]
"""(step, steps per epoch, all steps) -> factor on the peak learning rate"""


def epoch_schedule(
    kind: Literal["epoch_exponential", "epoch_cosine"],
    *,
    peak: float,
    rate: float,
    warmup_steps: int,
    warmup_from: float,
    minimum: float,
) -> Schedule:
    """BLIP's schedules; learning rates are absolute.

    `epoch_exponential`: max(minimum, peak * rate^epoch), DLIP's pre-training with rate 0.85.
    `epoch_cosine`: from peak to minimum along half a cosine, one value per epoch, BLIP's fine-tuning.
    During the first `warmup_steps` steps of the first epoch it rises linearly from `warmup_from` to the peak.
    """

    def factor(step: int, steps_per_epoch: int, steps: int) -> float:
        epoch = step // steps_per_epoch
        if step < warmup_steps and epoch == 0:
            return (warmup_from + (peak - warmup_from) * step / warmup_steps) / peak
        if kind == "epoch_exponential":
            return max(minimum, peak * rate**epoch) / peak
        epochs = max(1, math.ceil(steps / steps_per_epoch))
        return (minimum + (peak - minimum) * 0.5 * (1 + math.cos(math.pi * epoch / epochs))) / peak

    return factor
