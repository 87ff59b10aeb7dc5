"""Another item in the place of one that cannot be used, the same one in every process and in a resumed run."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TypeVar

from limbeck.data.examples import DataError, Skipped

TRIES = 100
"""Other items that are tried before the data count as broken through and through."""

_Item = TypeVar("_Item")


def whole_item(
    item_at: Callable[[int], _Item | Skipped], index: int, length: int, chance: str
) -> tuple[_Item, tuple[Skipped, ...]]:
    """The item at `index`, or where it is broken another of 0 <= i < length; and what was broken on the way.

    Others are drawn from `chance` alone, not taken in order: damage often comes in a row, as in a cut shard. Raises
    DataError where none of many can be used.
    """
    item = item_at(index)
    if not isinstance(item, Skipped):
        return item, ()
    rng, skipped = random.Random(f"{chance}/instead"), {item: None}
    for _ in range(TRIES):
        item = item_at(int(rng.random() * length))
        if not isinstance(item, Skipped):
            return item, tuple(skipped)
        skipped[item] = None
    first = "\n".join(f"  {entry}" for entry in list(skipped)[:10])
    raise DataError(f"not one of {len(skipped)} examples that were tried can be used:\n{first}")
