import math

import pytest
import torch

from limbeck.losses.language import token_cross_entropy
from limbeck.losses.reduce import masked_mean
from limbeck.types import IGNORE


def naive(logits, labels, smoothing):
    log_probabilities = logits.double() - logits.double().exp().sum(-1, keepdim=True).log()
    target = torch.full_like(log_probabilities, smoothing / logits.shape[-1])
    target.scatter_(-1, labels.clamp(min=0)[..., None], 1 - smoothing + smoothing / logits.shape[-1])
    return torch.where(labels == IGNORE, 0, -(target * log_probabilities).sum(-1))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_agrees_with_the_definition_in_float64(smoothing):
    logits, labels = torch.randn(3, 4, 7, dtype=torch.float64), torch.randint(7, (3, 4))
    labels[0, 2:] = IGNORE
    torch.testing.assert_close(token_cross_entropy(logits, labels, smoothing), naive(logits, labels, smoothing))


def test_hand_worked_value():
    """Two words with odds 3 to 1: -log 0.75; smoothing by 0.1 puts 0.05 of the target on the other word."""
    logits, labels = torch.tensor([[math.log(3.0), 0.0]]), torch.tensor([0])
    assert token_cross_entropy(logits, labels, 0.0).item() == pytest.approx(-math.log(0.75))
    expected = -0.95 * math.log(0.75) - 0.05 * math.log(0.25)
    assert token_cross_entropy(logits, labels, 0.1).item() == pytest.approx(expected)


def test_gradient_is_exact():
    logits = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([[1, 4, IGNORE], [0, IGNORE, IGNORE]])
    assert torch.autograd.gradcheck(lambda x: token_cross_entropy(x, labels), (logits,))


def test_padding_changes_neither_the_mean_nor_a_gradient():
    logits, labels = torch.randn(2, 3, 5), torch.randint(5, (2, 3))
    padded_logits = torch.cat([logits, 1e3 * torch.randn(2, 2, 5)], 1).requires_grad_()
    padded = torch.cat([labels, torch.full((2, 2), IGNORE)], 1)
    mean = masked_mean(token_cross_entropy(padded_logits, padded), padded != IGNORE)
    torch.testing.assert_close(mean, token_cross_entropy(logits, labels).mean())
    mean.backward()
    assert not padded_logits.grad[:, 3:].any()


def test_only_ignored_tokens_give_zero():
    logits, labels = torch.randn(1, 3, 5, requires_grad=True), torch.full((1, 3), IGNORE)
    mean = masked_mean(token_cross_entropy(logits, labels), labels != IGNORE)
    mean.backward()
    assert mean == 0
    assert torch.equal(logits.grad, torch.zeros(1, 3, 5))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_summed_in_float32(dtype):
    logits, labels = torch.randn(4, 300).to(dtype), torch.randint(300, (4,))
    losses = token_cross_entropy(logits, labels)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses.double(), naive(logits, labels, 0.1), rtol=1e-6, atol=1e-6)


def test_logits_that_do_not_fit_the_labels_are_an_error():
    with pytest.raises(ValueError, match=r"logits \(2, 4, 5\) do not fit labels \(2, 3\)"):
        token_cross_entropy(torch.zeros(2, 4, 5), torch.zeros(2, 3, dtype=torch.long))
