"""The papers' learning rates: a linear warm-up by steps, then one value per epoch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

Schedule = Callable[[int, int, int, float], float]
"""(step, steps per epoch, all steps, peak learning rate) -> learning rate"""


def epoch_schedule(
    kind: Literal["epoch_exponential", "epoch_cosine"],
    *,
    rate: float,
    warmup_steps: int,
    warmup_from: float,
    minimum: float,
) -> Schedule:
    """BLIP's schedules.

    `epoch_exponential`: max(minimum, peak * rate^epoch), DLIP's pre-training with rate 0.85.
    `epoch_cosine`: from peak to minimum along half a cosine, one value per epoch, BLIP's fine-tuning.
    During the first `warmup_steps` steps of the first epoch it rises linearly from `warmup_from` to the peak.
    """

    def learning_rate(step: int, steps_per_epoch: int, steps: int, peak: float) -> float:
        epoch = step // steps_per_epoch
        if step < warmup_steps and epoch == 0:
            return warmup_from + (peak - warmup_from) * step / warmup_steps
        if kind == "epoch_exponential":
            return max(minimum, peak * rate**epoch)
        epochs = max(1, math.ceil(steps / steps_per_epoch))
        return minimum + (peak - minimum) * 0.5 * (1 + math.cos(math.pi * epoch / epochs))

    return learning_rate
