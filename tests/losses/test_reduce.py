import pytest
import torch

from limbeck.losses.reduce import masked_mean


def test_mean_counts_only_what_the_mask_allows():
    values, mask = torch.tensor([1.0, 2.0, 30.0]), torch.tensor([True, True, False])
    assert masked_mean(values, mask) == 1.5
    assert masked_mean(values) == 11


def test_micro_batches_with_a_shared_count_add_up_to_the_mean_over_the_step():
    values, mask = torch.randn(6, 5, dtype=torch.float64), torch.rand(6, 5) > 0.4
    parts = [masked_mean(values[rows], mask[rows], mask.sum()) for rows in (slice(0, 1), slice(1, 6))]
    torch.testing.assert_close(parts[0] + parts[1], values[mask].mean())


@pytest.mark.parametrize("count", [None, torch.tensor(0), torch.tensor(0.0)])
def test_nothing_counted_gives_zero_and_a_zero_gradient_even_for_infinite_values(count):
    values = torch.tensor([1.0, torch.inf], requires_grad=True)
    mean = masked_mean(values, torch.zeros(2, dtype=torch.bool), count)
    mean.backward()
    assert mean == 0
    assert torch.equal(values.grad, torch.zeros(2))


def test_a_count_below_one_is_a_divisor_like_any_other():
    assert masked_mean(torch.tensor([3.0]), count=torch.tensor(0.5)) == 6


def test_no_values_at_all_give_zero():
    assert masked_mean(torch.zeros(0, 4)) == 0


def test_a_mask_of_another_shape_is_an_error():
    with pytest.raises(ValueError, match=r"mask has shape \(2,\), the values \(2, 3\)"):
        masked_mean(torch.ones(2, 3), torch.ones(2, dtype=torch.bool))
