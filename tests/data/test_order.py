"""The order of training: a permutation, shared by processes, by length where that is asked for."""

import pytest
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler

from limbeck.data.order import EpochSampler


def test_the_order_is_a_permutation_that_processes_share_out():
    order = list(EpochSampler(20, seed=1, epoch=4))
    assert sorted(order) == [(index, 4) for index in range(20)]
    assert order == list(EpochSampler(20, seed=1, epoch=4))
    assert [index for index, _ in order] != [index for index, _ in EpochSampler(20, seed=1, epoch=5)]
    batches = [
        list(BatchSamplerShard(BatchSampler(EpochSampler(20, 1, 4), 5, drop_last=False), 2, rank)) for rank in (0, 1)
    ]
    assert sorted(key for part in batches for batch in part for key in batch) == sorted(order)


def test_the_order_of_seed_0_is_what_it_was():
    assert [index for index, _ in EpochSampler(8, seed=0)] == [3, 0, 1, 2, 7, 4, 5, 6]


def lengths(epoch):
    """Of 103 items, none like its neighbours."""
    return [(number * 37 + epoch) % 101 for number in range(103)]


def grouped(epoch=0, seed=0, count=103):
    return list(EpochSampler(count, seed, epoch, lengths=lambda epoch: lengths(epoch)[:count], batch_size=4))


def padded(order):
    """Tokens of all batches with what they are padded by."""
    batches = [[lengths(epoch)[index] for index, epoch in order[start : start + 4]] for start in range(0, 100, 4)]
    return sum(max(batch) * 4 for batch in batches)


def test_by_length_every_item_comes_once_in_an_order_of_its_own():
    assert sorted(grouped(2)) == [(index, 2) for index in range(103)]
    assert grouped(2) == grouped(2) != grouped(2, seed=1)
    assert [index for index, _ in grouped(0)] != [index for index, _ in grouped(1)]


def test_by_length_a_batch_pads_little():
    every = sum(lengths(0))
    assert padded(grouped()) < 1.15 * every
    assert padded(list(EpochSampler(103))) > 1.4 * every


def test_by_length_batches_come_in_any_order():
    longest = [max(lengths(0)[index] for index, _ in grouped()[start : start + 4]) for start in range(0, 24, 4)]
    assert longest != sorted(longest, reverse=True)


@pytest.mark.parametrize("count", [1, 3, 4, 9])
def test_by_length_few_items_are_no_trouble(count):
    assert sorted(index for index, _ in grouped(count=count)) == list(range(count))
