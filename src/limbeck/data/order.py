"""The order in which training goes through a dataset."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices

from limbeck.data.examples import number_of

BY_LENGTH = "group_by_length"
ORDERS = ("random", BY_LENGTH)
"""`train_sampling_strategy` that there are"""


class EpochSampler(Sampler[tuple[int, int]]):
    """(index, epoch) in an order that seed and epoch alone decide; `set_epoch` before each epoch.

    `lengths` gives every item's tokens in an epoch. With it items of about one length make up a batch of `batch_size`,
    which then pads little, and the batches come in any order.
    """

    def __init__(
        self,
        length: int,
        seed: int = 0,
        epoch: int = 0,
        *,
        lengths: Callable[[int], Sequence[int]] | None = None,
        batch_size: int = 1,
    ) -> None:
        self.length = length
        self.seed = seed
        self.epoch = epoch
        self.lengths = lengths
        self.batch_size = batch_size

    def __len__(self) -> int:
        return self.length

    def set_epoch(self, epoch: int) -> None:
        """The epoch that the next iteration gives."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        generator = torch.Generator().manual_seed(number_of(f"{self.seed}/{self.epoch}"))
        for index in self._order(generator):
            yield index, self.epoch

    def _order(self, generator: torch.Generator) -> list[int]:
        if self.lengths is None:
            return torch.randperm(self.length, generator=generator).tolist()
        grouped = get_length_grouped_indices(self.lengths(self.epoch), self.batch_size, generator=generator)
        whole = self.length // self.batch_size
        starts = (torch.randperm(whole, generator=generator) * self.batch_size).tolist()
        batches = [grouped[start : start + self.batch_size] for start in starts]
        return [index for batch in [*batches, grouped[whole * self.batch_size :]] for index in batch]
