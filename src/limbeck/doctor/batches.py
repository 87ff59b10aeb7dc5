"""Small real batches of a training set, for trying a method out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from limbeck.training.trainer import count_batch
from limbeck.types import Counts

LOOKED_AT = 32
"""Items among which the longest is found."""


class TrainingSet(Protocol):
    """What `Pairs` and `Dialogues` have in common."""

    @property
    def collate(self) -> Callable[[Sequence[Any]], Any]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, key: int, /) -> Any: ...


def spread_items(dataset: TrainingSet, count: int) -> list[Any]:
    """About so many items, evenly spaced. Raises DataError where the data are broken through and through."""
    places = dict.fromkeys(int(number * len(dataset) / count) for number in range(count))
    return [dataset[place] for place in places]


def batch_of(dataset: TrainingSet, items: Sequence[Any], device: torch.device) -> Any:
    """A batch with its own counts, as the trainer makes it for a step of one micro-batch."""
    made: Mapping[str, Any] = dataset.collate(list(items))
    batch: dict[str, Any] = {
        name: value.to(device) if isinstance(value, Tensor) else value for name, value in made.items()
    }
    batch["counts"] = Counts(*count_batch(batch))  # pyright: ignore[reportArgumentType]
    return batch


def longest_item(dataset: TrainingSet) -> tuple[Any, int]:
    """The longest of a few dozen items, and its tokens."""
    items = spread_items(dataset, LOOKED_AT)
    lengths = [dataset.collate([item])["input_ids"].shape[1] for item in items]
    longest = max(range(len(items)), key=lengths.__getitem__)
    return items[longest], lengths[longest]
