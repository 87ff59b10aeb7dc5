from dataclasses import replace
from math import gcd

import pytest
import torch

from limbeck.kernels import attention_torch
from limbeck.losses.attention import attention_kl
from limbeck.types import AttentionState


def state(heads, queries=6, keys=6, width=4, mask=None, batch=2, dtype=torch.float64):
    """Random queries and keys in the layout of models: heads are cut out of [B, T, H * d]."""
    query, key = (torch.randn(batch, length, heads, width, dtype=dtype).transpose(1, 2) for length in (queries, keys))
    return AttentionState(query=query.requires_grad_(), key=key.requires_grad_(), mask=mask, scale=width**-0.5)


def naive_map(layer, mask):
    logits = layer.scale * layer.query.double() @ layer.key.double().mT
    allowed = torch.ones_like(logits, dtype=torch.bool) if mask is None else mask.expand_as(logits)
    weights = torch.where(allowed, (logits - logits.amax(-1, keepdim=True)).exp(), 0)
    return weights / weights.sum(-1, keepdim=True).clamp(min=1e-300)


def naive(student, teacher, row_mask=None, groups=None):
    """Eq. 5 over formed maps, heads averaged inside groups, in float64."""
    groups = groups or gcd(student.query.shape[1], teacher.query.shape[1])
    mask = student.mask
    ours, theirs = (naive_map(layer, mask).unflatten(1, (groups, -1)).mean(2) for layer in (student, teacher))
    theirs = theirs.detach()
    terms = torch.where(theirs > 0, theirs * (theirs.clamp(min=1e-300).log() - ours.clamp(min=1e-300).log()), 0)
    rows = terms.sum(-1).mean(1)
    return rows.mean() if row_mask is None else rows[row_mask].mean()


def gradients(loss, layer):
    return torch.autograd.grad(loss, (layer.query, layer.key))


def padding(lengths, keys):
    return (torch.arange(keys) < torch.tensor(lengths)[:, None])[:, None, None]


MASKS = {
    "none": lambda: None,
    "padding": lambda: padding([6, 3], 6),
    "causal": lambda: torch.ones(6, 6, dtype=torch.bool).tril()[None, None],
    "both": lambda: torch.ones(6, 6, dtype=torch.bool).tril() & padding([6, 3], 6),
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("heads", [(4, 4), (2, 4), (4, 2), (3, 4), (6, 4)])
def test_value_and_gradients_agree_with_formed_maps(heads, mask):
    mask = MASKS[mask]()
    student, teacher = state(heads[0], mask=mask), state(heads[1], width=3, mask=mask)
    losses = attention_kl(student, teacher), naive(student, teacher)
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*(gradients(loss, student) for loss in losses))


@pytest.mark.parametrize("heads", [(4, 4), (6, 4)])
def test_cross_attention_has_other_keys_than_queries(heads):
    student, teacher = state(heads[0], 3, 11), state(heads[1], 3, 11, 5)
    losses = attention_kl(student, teacher), naive(student, teacher)
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*(gradients(loss, student) for loss in losses))


@pytest.mark.parametrize("heads", [(2, 2), (1, 2), (4, 6)])
def test_gradient_is_exact(heads):
    mask, row_mask = padding([3, 2], 3), torch.tensor([[True, True, True], [True, True, False]])
    student, teacher = state(heads[0], 3, 3, mask=mask), state(heads[1], 3, 3, mask=mask)

    def loss(query, key):
        return attention_kl(replace(student, query=query, key=key), teacher, row_mask=row_mask)

    assert torch.autograd.gradcheck(loss, (student.query, student.key))


@pytest.mark.parametrize("heads", [(4, 4), (6, 4)])
@pytest.mark.parametrize("block", [1, 7, 40, 100, 300])
def test_blocks_of_any_size_give_the_same(monkeypatch, block, heads):
    mask = MASKS["both"]()
    student, teacher = state(heads[0], mask=mask), state(heads[1], mask=mask)
    whole = attention_kl(student, teacher)
    monkeypatch.setitem(attention_torch.BLOCK, "cpu", block)
    pieces = attention_kl(student, teacher)
    torch.testing.assert_close(pieces, whole)
    torch.testing.assert_close(gradients(pieces, student), gradients(whole, student))


def test_hand_worked_value():
    """Two keys, the teacher 3 to 1 for the first, the student even: 0.75 log 1.5 + 0.25 log 0.5."""
    key = torch.tensor([[[[1.0], [0.0]]]])
    teacher = AttentionState(query=torch.full((1, 1, 1, 1), 3.0).log(), key=key, mask=None, scale=1.0)
    student = AttentionState(query=torch.zeros(1, 1, 1, 1), key=key, mask=None, scale=1.0)
    expected = 0.75 * torch.tensor(1.5).log() + 0.25 * torch.tensor(0.5).log()
    torch.testing.assert_close(attention_kl(student, teacher), expected)


@pytest.mark.parametrize("head_map", ["group_mean", "relation", "mean", "skip_vision"])
def test_student_that_is_the_teacher_has_no_loss_and_no_gradient(head_map):
    student = state(4, mask=padding([6, 3], 6))
    loss = attention_kl(student, student, head_map=head_map)
    torch.testing.assert_close(loss, torch.zeros((), dtype=torch.float64), rtol=0, atol=1e-14)
    for gradient in gradients(loss, student):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-14)


@pytest.mark.parametrize("heads", [(4, 4), (6, 4)])
def test_padding_changes_neither_value_nor_gradient(heads):
    student, teacher = state(heads[0], 4, 4), state(heads[1], 4, 4)
    loss = attention_kl(student, teacher)

    def padded(layer, fill):
        tail = torch.full((2, layer.query.shape[1], 3, 4), fill, dtype=torch.float64)
        query, key = (torch.cat([part.detach(), tail], 2).requires_grad_() for part in (layer.query, layer.key))
        return AttentionState(query=query, key=key, mask=padding([4, 4], 7), scale=layer.scale)

    longer = padded(student, 50.0)
    row_mask = padding([4, 4], 7)[:, 0, 0]
    padded_loss = attention_kl(longer, padded(teacher, -30.0), row_mask=row_mask)
    torch.testing.assert_close(padded_loss, loss)
    for gradient, expected in zip(gradients(padded_loss, longer), gradients(loss, student), strict=True):
        torch.testing.assert_close(gradient[:, :, :4], expected)
        assert not gradient[:, :, 4:].any()


def test_divisor_is_the_number_of_real_queries_or_the_given_count():
    mask = padding([6, 2], 6)
    student, teacher = state(4, mask=mask), state(4, mask=mask)
    row_mask = mask[:, 0, 0]
    loss = attention_kl(student, teacher, row_mask=row_mask)
    torch.testing.assert_close(loss, naive(student, teacher, row_mask))
    parts = []
    for i in range(2):
        picture = [
            replace(layer, query=layer.query[i : i + 1], key=layer.key[i : i + 1], mask=mask[i : i + 1])
            for layer in (student, teacher)
        ]
        parts.append(attention_kl(*picture, row_mask=row_mask[i : i + 1], count=row_mask.sum()))
    torch.testing.assert_close(parts[0] + parts[1], loss)


@pytest.mark.parametrize("heads", [(4, 4), (6, 4), (2, 4)])
def test_queries_that_may_see_no_key_add_nothing(heads):
    mask = padding([6, 0], 6)
    student, teacher = state(heads[0], mask=mask), state(heads[1], mask=mask)
    loss = attention_kl(student, teacher)
    torch.testing.assert_close(loss, naive(student, teacher))
    for gradient in gradients(loss, student):
        assert not gradient[1].any()
        assert gradient.isfinite().all()


def test_no_real_query_at_all_gives_zero():
    student, teacher = state(4), state(4)
    loss = attention_kl(student, teacher, row_mask=torch.zeros(2, 6, dtype=torch.bool))
    assert loss == 0
    assert not any(gradient.any() for gradient in gradients(loss, student))


def test_a_key_that_one_of_both_masks_forbids_is_left_out_of_both_maps():
    first, second = padding([6, 4], 6), padding([5, 6], 6)
    student, teacher = state(4, mask=first), state(4, mask=second)
    both = first & second
    expected = attention_kl(replace(student, mask=both), replace(teacher, mask=both))
    torch.testing.assert_close(attention_kl(student, teacher), expected)
    assert attention_kl(replace(student, mask=None), replace(teacher, mask=both)) == expected


def test_gradient_never_reaches_the_teacher():
    student, teacher = state(4), state(4)
    attention_kl(student, teacher).backward()
    assert teacher.query.grad is None
    assert teacher.key.grad is None
    assert student.query.grad.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("heads", [(4, 4), (6, 4)])
def test_half_precision_is_computed_in_float32(heads, dtype):
    student, teacher = state(heads[0], width=32, dtype=dtype), state(heads[1], width=32, dtype=dtype)
    loss, exact = attention_kl(student, teacher), naive(student, teacher)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=1e-6)
    found, expected = gradients(loss, student), gradients(exact, student)
    assert found[0].dtype == dtype
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=1e-6)


def test_autocast_does_not_lower_the_precision():
    student, teacher = state(4, dtype=torch.float32), state(4, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = attention_kl(student, teacher)
    assert torch.equal(inside, attention_kl(student, teacher))


@pytest.mark.parametrize("heads", [(2, 2), (2, 1)])
def test_a_key_that_the_student_all_but_excludes_keeps_its_gradient(heads):
    """In float32 the student's probability, exp(-300), is 0; the loss, about 300, and its gradient are not."""
    key = torch.tensor([1.0, -1.0]).view(1, 1, 2, 1).expand(1, heads[0], 2, 1)
    student = AttentionState(
        query=torch.full((1, heads[0], 1, 1), 150.0, requires_grad=True), key=key, mask=None, scale=1.0
    )
    teacher = AttentionState(
        query=torch.full((1, heads[1], 1, 1), -150.0), key=key[:, : heads[1]], mask=None, scale=1.0
    )
    loss = attention_kl(student, teacher)
    loss.backward()
    assert loss.item() == pytest.approx(300, rel=1e-5)
    torch.testing.assert_close(student.query.grad, torch.full((1, heads[0], 1, 1), 2.0 / heads[0]))


def test_mean_compares_the_average_of_all_heads():
    student, teacher = state(4), state(4)
    loss = attention_kl(student, teacher, head_map="mean")
    torch.testing.assert_close(loss, naive(student, teacher, groups=1))
    assert loss < attention_kl(student, teacher)


def test_relation_cuts_the_students_width_into_the_teachers_heads():
    student, teacher = state(2, width=6), state(4, width=8)
    wide_query, wide_key = (x.transpose(1, 2).flatten(2) for x in (student.query, student.key))
    cut = replace(
        student,
        query=wide_query.unflatten(2, (4, 3)).transpose(1, 2),
        key=wide_key.unflatten(2, (4, 3)).transpose(1, 2),
        scale=3**-0.5,
    )
    losses = attention_kl(student, teacher, head_map="relation"), naive(cut, teacher)
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*(gradients(loss, student) for loss in losses))


@pytest.mark.parametrize("head_map", ["relation", "skip_vision"])
def test_equal_heads_are_eq_5_itself(head_map):
    student, teacher = state(4), state(4)
    torch.testing.assert_close(attention_kl(student, teacher, head_map=head_map), naive(student, teacher))


def test_heads_that_do_not_meet_are_an_error():
    with pytest.raises(ValueError, match=r"'skip_vision' needs equal numbers of heads, found 2 .* and 4"):
        attention_kl(state(2), state(4), head_map="skip_vision")
    with pytest.raises(ValueError, match="cannot cut the student's width 6 into the teacher's 4 heads"):
        attention_kl(state(2, width=3), state(4), head_map="relation")


def test_maps_of_unequal_size_are_an_error():
    with pytest.raises(ValueError, match=r"student .* \(2, 6, 6\) and teacher \(2, 6, 5\) differ"):
        attention_kl(state(4), state(4, keys=5))
    with pytest.raises(ValueError, match=r"row_mask has shape \(2, 5\), the queries need \(2, 6\)"):
        attention_kl(state(4), state(4), row_mask=torch.ones(2, 5, dtype=torch.bool))
