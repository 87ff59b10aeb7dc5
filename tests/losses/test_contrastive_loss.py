import math

import pytest
import torch
from torch.nn import functional as F

from limbeck.losses.contrastive import (
    FeatureQueue,
    contrastive,
    group_targets,
    hard_negatives,
    matching,
    soft_targets,
)


def unit(*shape):
    return F.normalize(torch.randn(*shape, dtype=torch.float64), dim=-1)


def naive(image, text, image_bank, text_bank, temperature, image_targets, text_targets):
    def cross_entropy(query, bank, targets):
        return -(targets * (query @ torch.cat(list(bank)).T / temperature).log_softmax(1)).sum(1)

    return (cross_entropy(image, text_bank, image_targets) + cross_entropy(text, image_bank, text_targets)) / 2


@pytest.fixture
def batch():
    """Embeddings of 3 pairs, banks of 3 + 5, a temperature, soft targets."""
    temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    return {
        "image": unit(3, 4).requires_grad_(),
        "text": unit(3, 4).requires_grad_(),
        "image_bank": (unit(3, 4), unit(5, 4)),
        "text_bank": (unit(3, 4), unit(5, 4)),
        "temperature": temperature,
        "image_targets": torch.randn(3, 8, dtype=torch.float64).softmax(1),
        "text_targets": torch.randn(3, 8, dtype=torch.float64).softmax(1),
    }


def test_loss_and_gradients_agree_with_the_definition_in_float64(batch):
    inputs = [batch[name] for name in ("image", "text", "temperature")]
    weights = torch.tensor([1.0, 0.5, -2.0], dtype=torch.float64)
    losses = [function(**batch) for function in (contrastive, naive)]
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*(torch.autograd.grad(loss @ weights, inputs) for loss in losses))


def test_gradient_is_exact_with_soft_and_hard_targets(batch):
    for targets in (batch["image_targets"], torch.tensor([2, 0, 7])):
        batch["image_targets"] = batch["text_targets"] = targets

        def loss(image, text, temperature):
            return contrastive(**{**batch, "image": image, "text": text, "temperature": temperature})

        assert torch.autograd.gradcheck(loss, (batch["image"], batch["text"], batch["temperature"]))


def test_clip_is_the_same_function_with_the_batch_as_bank():
    image, text = unit(4, 6).requires_grad_(), unit(4, 6).requires_grad_()
    temperature = torch.tensor(0.07, dtype=torch.float64, requires_grad=True)
    targets = torch.arange(4)
    losses = contrastive(image, text, image, text, temperature, targets, targets).mean()
    logits = image @ text.T / temperature
    expected = (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2
    torch.testing.assert_close(losses, expected)
    inputs = (image, text, temperature)
    torch.testing.assert_close(torch.autograd.grad(losses, inputs), torch.autograd.grad(expected, inputs))


def test_one_perfect_pair_among_orthogonal_ones():
    """Logits 1/temperature against n - 1 zeros: loss log(1 + (n - 1) exp(-1/temperature))."""
    axes, targets = torch.eye(5), torch.arange(5)
    losses = contrastive(axes, axes, axes, axes, torch.tensor(0.5), targets, targets)
    torch.testing.assert_close(losses, torch.full((5,), math.log(1 + 4 * math.exp(-2))))


def test_queue_may_be_overwritten_between_loss_and_backward():
    gradients = []
    start, image, text, fresh = unit(6, 4).float(), unit(2, 4).float(), unit(2, 4).float(), unit(6, 4).float()
    for overwrite in (False, True):
        queue = FeatureQueue(4, 6)
        queue.features.copy_(start)
        query = image.clone().requires_grad_()
        bank, targets = (text, queue.features), torch.tensor([0, 1])
        loss = contrastive(query, text, bank, bank, torch.tensor(0.1), targets, targets).sum()
        if overwrite:
            queue.enqueue(fresh)
        loss.backward()
        gradients.append(query.grad)
    assert torch.equal(*gradients)


def test_banks_without_a_graph_and_targets_receive_no_gradient(batch):
    targets = batch["image_targets"].requires_grad_()
    contrastive(**batch).sum().backward()
    assert targets.grad is None
    assert all(part.grad is None for part in (*batch["image_bank"], *batch["text_bank"]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_embeddings_are_compared_in_float32(dtype):
    image, text = unit(4, 64).to(dtype).requires_grad_(), unit(4, 64).to(dtype)
    temperature, targets = torch.tensor(0.05), torch.arange(4)
    losses = contrastive(image, text, image.detach(), text, temperature, targets, targets)
    assert losses.dtype == torch.float32
    exact = contrastive(*(x.detach().double() for x in (image, text, image, text, temperature)), targets, targets)
    torch.testing.assert_close(losses.double(), exact, rtol=1e-5, atol=1e-5)
    losses.sum().backward()
    assert image.grad.dtype == dtype


def test_autocast_does_not_lower_the_precision():
    image, text, targets = unit(4, 64).float(), unit(4, 64).float(), torch.arange(4)
    arguments = (image, text, image, text, torch.tensor(0.05), targets, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = contrastive(*arguments)
    assert torch.equal(inside, contrastive(*arguments))


def test_soft_targets_mix_the_momentum_encoders_opinion_with_the_truth():
    momentum, bank = unit(2, 4), (unit(2, 4), unit(3, 4))
    opinion = (momentum @ torch.cat(bank).T / 0.2).softmax(1)
    truth = F.one_hot(torch.tensor([1, 4]), 5)
    temperature = torch.tensor(0.2, dtype=torch.float64)
    expected = 0.4 * opinion + 0.6 * truth
    torch.testing.assert_close(soft_targets(momentum, bank, temperature, 0.4, torch.tensor([1, 4])), expected)
    torch.testing.assert_close(soft_targets(momentum, bank, temperature, 0.4, truth.double()), expected)
    assert torch.equal(soft_targets(momentum, bank, temperature, 0.0, torch.tensor([1, 4])), truth.double())


def test_group_targets_share_the_mass_among_entries_of_the_same_picture():
    targets = group_targets(torch.tensor([7, 8]), torch.tensor([7, 8, 7, 9]))
    assert torch.equal(targets, torch.tensor([[0.5, 0, 0.5, 0], [0, 1, 0, 0]]))


def test_hard_negatives_are_never_the_same_picture_and_follow_the_similarity():
    similarity = torch.tensor([[5.0, 1.0, 3.0, 0.0]]).repeat(20000, 1)
    same = torch.tensor([[True, False, False, False]]).expand_as(similarity)
    for smoothing in (1e-4, 0.0):
        generator = torch.Generator().manual_seed(0)
        drawn = hard_negatives(similarity, same, smoothing=smoothing, generator=generator).bincount(minlength=4) / 20000
        weights = similarity[0].softmax(0) + smoothing
        weights[0] = 0
        torch.testing.assert_close(drawn, weights / weights.sum(), rtol=0, atol=0.015)


def test_hard_negatives_repeat_with_the_generator():
    similarity, same = torch.randn(6, 6), torch.eye(6, dtype=torch.bool)
    first, second = (hard_negatives(similarity, same, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("smoothing", [1e-4, 0.0])
def test_hard_negatives_stay_possible_where_the_right_pair_towers_above_all(smoothing):
    """At temperature 0.001 every other probability underflows."""
    similarity, same = torch.eye(3) * 1000, torch.eye(3, dtype=torch.bool)
    drawn = torch.stack([hard_negatives(similarity, same, smoothing=smoothing) for _ in range(50)])
    assert not (drawn == torch.arange(3)).any()
    assert (drawn[:, 0].bincount(minlength=3)[1:] > 5).all()


@pytest.mark.parametrize("smoothing", [1e-4, 0.0])
def test_a_row_without_a_possible_negative_draws_any_other_row(smoothing):
    drawn = hard_negatives(torch.zeros(3, 3), torch.ones(3, 3, dtype=torch.bool), smoothing=smoothing)
    assert not (drawn == torch.arange(3)).any()
    alone = hard_negatives(torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool), smoothing=smoothing)
    assert alone.tolist() == [0]


def test_matching_is_cross_entropy_of_two_classes():
    logits = torch.tensor([[0.0, math.log(3.0)], [0.0, math.log(3.0)]])
    expected = torch.tensor([math.log(4 / 3), math.log(4.0)])
    torch.testing.assert_close(matching(logits, torch.tensor([1, 0])), expected)
    assert matching(logits.bfloat16(), torch.tensor([1, 0])).dtype == torch.float32


def test_queue_starts_as_unit_vectors():
    torch.testing.assert_close(FeatureQueue(8, 5).features.norm(dim=1), torch.ones(5))


@pytest.mark.parametrize("sizes", [(2, 2, 2), (3, 4), (12,), (4, 4, 11, 1), (0, 5)])
def test_queue_holds_the_newest_features_however_they_came(sizes):
    queue, numbers = FeatureQueue(1, 5), torch.arange(float(sum(sizes)))[:, None]
    untouched = queue.features[sum(sizes) :].clone()
    for features in numbers.split(sizes):
        queue.enqueue(features)
    newest = numbers[-5:].flatten().sort().values
    held = (
        queue.features.flatten()[: len(newest)].sort().values if sum(sizes) < 5 else queue.features.flatten().sort()[0]
    )
    assert torch.equal(held, newest)
    assert torch.equal(queue.features[sum(sizes) :], untouched)
    assert queue.position == sum(sizes) % 5


def test_queue_overwrites_in_place_and_is_part_of_the_state():
    queue = FeatureQueue(2, 3)
    address = queue.features.data_ptr()
    queue.enqueue(torch.ones(2, 2, dtype=torch.bfloat16))
    assert queue.features.data_ptr() == address
    assert set(queue.state_dict()) == {"features", "position"}
