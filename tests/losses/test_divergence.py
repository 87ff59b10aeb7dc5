import math

import pytest
import torch
from torch.nn import functional as F

from limbeck.losses.divergence import (
    forward_kl,
    jsd,
    linear_cross_entropy,
    linear_distillation,
    linear_divergence,
    reverse_kl,
)
from limbeck.losses.reduce import masked_mean
from limbeck.types import IGNORE

DIVERGENCES = [forward_kl, reverse_kl, jsd]
LN2, LN3 = math.log(2), math.log(3)


def odds(*weights):
    """Logits of a distribution in proportion to `weights`."""
    return torch.tensor(weights, dtype=torch.float64).log()


def test_numbers_worked_by_hand():
    """Teacher (1/2, 1/2), student (3/4, 1/4); their mean is (5/8, 3/8)."""
    teacher, student = odds(1, 1), odds(3, 1)
    assert forward_kl(student, teacher).item() == pytest.approx(0.5 * math.log(2 / 3) + 0.5 * LN2)
    assert reverse_kl(student, teacher).item() == pytest.approx(0.75 * math.log(3 / 2) + 0.25 * math.log(1 / 2))
    to_teacher = 0.5 * math.log(4 / 5) + 0.5 * math.log(4 / 3)
    to_student = 0.75 * math.log(6 / 5) + 0.25 * math.log(2 / 3)
    assert jsd(student, teacher).item() == pytest.approx((to_teacher + to_student) / 2)


def test_beta_is_the_teachers_share_of_the_mixture_and_of_the_sum():
    """Teacher all but (1, 0), student (1/2, 1/2), beta 1/4: the mixture is (5/8, 3/8)."""
    teacher, student = odds(1, 1e-30), odds(1, 1)
    to_teacher = math.log(8 / 5)
    to_student = 0.5 * math.log(4 / 5) + 0.5 * math.log(4 / 3)
    assert jsd(student, teacher, beta=0.25).item() == pytest.approx(0.25 * to_teacher + 0.75 * to_student)


def test_forward_and_reverse_punish_different_mistakes():
    """A student on one of two modes: log 2 from its teacher's view ever more, from its own never above log 2."""
    teacher, student = odds(1, 1), odds(1, 1e-9)
    assert reverse_kl(student, teacher).item() == pytest.approx(LN2, abs=1e-6)
    assert forward_kl(student, teacher).item() == pytest.approx(0.5 * math.log(1e9 / 4), rel=1e-6)
    assert reverse_kl(teacher, student).item() == forward_kl(student, teacher).item()


def test_temperature_divides_both_sides_and_the_result_keeps_its_size():
    student, teacher = torch.randn(4, 9), torch.randn(4, 9)
    for divergence in DIVERGENCES:
        torch.testing.assert_close(divergence(student, teacher, temperature=2.0), divergence(student / 2, teacher / 2))


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_equal_distributions_are_at_zero_with_no_gradient(divergence):
    student = torch.randn(3, 50, requires_grad=True)
    value = divergence(student, student.detach() + 5)
    torch.testing.assert_close(value, torch.zeros(3), rtol=0, atol=1e-6)
    value.sum().backward()
    torch.testing.assert_close(student.grad, torch.zeros(3, 50), rtol=0, atol=1e-6)


@pytest.mark.parametrize("divergence", [forward_kl, reverse_kl])
def test_a_model_compared_with_itself_gives_exactly_zero(divergence):
    logits = 20 * torch.randn(5, 100)
    assert not divergence(logits, logits).any()


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_gradient_is_exact_and_the_teacher_gets_none(divergence):
    student, teacher = (torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda x: divergence(x, teacher.detach()), (student,))
    divergence(student, teacher).sum().backward()
    assert teacher.grad is None
    assert student.grad is not None


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_half_precision_is_computed_in_float32(divergence):
    student, teacher = torch.randn(4, 300).bfloat16(), torch.randn(4, 300).bfloat16()
    value = divergence(student, teacher)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), divergence(student.double(), teacher.double()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_words_that_both_sides_exclude_count_for_nothing(divergence):
    student, teacher = torch.randn(3, 8), torch.randn(3, 8)
    hidden = [torch.cat([logits, torch.full((3, 2), -torch.inf)], 1) for logits in (student, teacher)]
    hidden[0].requires_grad_()
    value = divergence(*hidden)
    torch.testing.assert_close(value, divergence(student, teacher))
    value.sum().backward()
    assert hidden[0].grad.isfinite().all()
    assert not hidden[0].grad[:, 8:].any()


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_extreme_logits_stay_finite(divergence):
    student = (1e4 * torch.randn(6, 40)).requires_grad_()
    value = divergence(student, 1e4 * torch.randn(6, 40))
    value.sum().backward()
    assert value.isfinite().all()
    assert student.grad.isfinite().all()


def test_padding_leaves_mean_and_gradient_alone():
    student, teacher = torch.randn(2, 5, 7, requires_grad=True), torch.randn(2, 5, 7)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0]], dtype=torch.bool)
    mean = masked_mean(forward_kl(student, teacher), mask)
    torch.testing.assert_close(mean, forward_kl(student[mask], teacher[mask]).mean())
    mean.backward()
    assert not student.grad[~mask].any()


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match=r"student logits \(2, 5\) and teacher logits \(2, 6\)"):
        forward_kl(torch.zeros(2, 5), torch.zeros(2, 6))
    with pytest.raises(ValueError, match=r"beta is 1.0, it must lie between 0 and 1"):
        jsd(torch.zeros(2, 5), torch.zeros(2, 5), beta=1.0)
    with pytest.raises(ValueError, match=r"temperature is 0, it must be above 0"):
        reverse_kl(torch.zeros(2, 5), torch.zeros(2, 5), temperature=0)


class TestLinear:
    """The sums from hidden states and heads; their numbers are checked in tests/kernels/test_linear_divergence.py."""

    student_hidden, student_head = torch.randn(6, 4), torch.randn(11, 4)
    teacher_hidden, teacher_head = torch.randn(6, 3), torch.randn(11, 3)
    weight = torch.rand(6)
    labels = torch.tensor([0, 10, IGNORE, 4, IGNORE, 4])

    def sides(self):
        return self.student_hidden, self.student_head, self.teacher_hidden, self.teacher_head

    def test_each_kind_is_the_divergence_of_its_name(self):
        logits = self.student_hidden @ self.student_head.T, self.teacher_hidden @ self.teacher_head.T
        for kind, expected in (
            ("forward", forward_kl(*logits, 2.0)),
            ("reverse", reverse_kl(*logits, 2.0)),
            ("jsd", jsd(*logits, 0.3, 2.0)),
        ):
            found = linear_divergence(*self.sides(), self.weight, kind=kind, beta=0.3, temperature=2.0)
            torch.testing.assert_close(found, self.weight @ expected)

    def test_cross_entropy_is_pytorchs(self):
        logits = self.student_hidden @ self.student_head.T
        expected = self.weight @ F.cross_entropy(logits, self.labels, reduction="none", label_smoothing=0.2)
        found = linear_cross_entropy(
            self.student_hidden, self.student_head, self.labels, self.weight, label_smoothing=0.2
        )
        torch.testing.assert_close(found, expected)

    def test_distillation_is_their_sum_and_shows_the_parts(self):
        found = linear_distillation(*self.sides(), self.weight, self.labels, 2 * self.weight, kind="reverse")
        divergence = linear_divergence(*self.sides(), self.weight, kind="reverse")
        language = linear_cross_entropy(self.student_hidden, self.student_head, self.labels, 2 * self.weight)
        torch.testing.assert_close(found, (divergence + language, divergence, language))

    def test_the_mean_over_a_step_does_not_depend_on_its_micro_batches(self):
        mask = torch.tensor([1, 0, 1, 1, 0, 1], dtype=torch.bool)
        weight = mask / mask.sum()
        whole = linear_divergence(*self.sides(), weight, kind="forward")
        logits = self.student_hidden @ self.student_head.T, self.teacher_hidden @ self.teacher_head.T
        torch.testing.assert_close(whole, masked_mean(forward_kl(*logits), mask))
        parts = [
            linear_divergence(
                self.student_hidden[rows],
                self.student_head,
                self.teacher_hidden[rows],
                self.teacher_head,
                weight[rows],
                kind="forward",
            )
            for rows in (slice(0, 1), slice(1, 2), slice(2, 6))
        ]
        torch.testing.assert_close(sum(parts), whole)

    def test_what_does_not_fit_is_named(self):
        divergence, sides = linear_divergence, list(self.sides())
        with pytest.raises(ValueError, match=r"student's head has 11 rows, the teacher's 13; .* vocabulary must give"):
            divergence(*sides[:3], torch.randn(13, 3), self.weight, kind="forward")
        with pytest.raises(ValueError, match="vocabulary is 12, the heads have only 11 rows"):
            divergence(*sides, self.weight, kind="forward", vocabulary=12)
        with pytest.raises(ValueError, match=r"teacher's hidden states \(6, 3\) and head \(11, 4\) do not fit"):
            divergence(*sides[:3], sides[1], self.weight, kind="forward")
        with pytest.raises(ValueError, match="the student has 6 tokens, the teacher 5"):
            divergence(*sides[:2], sides[2][:5], sides[3], self.weight, kind="forward")
        with pytest.raises(ValueError, match=r"student's bias \(5,\) must have its head's 11 words"):
            divergence(*sides, self.weight, kind="forward", student_bias=torch.zeros(5))
        with pytest.raises(ValueError, match=r"weight \(6, 1\) must have one value for each of 6 tokens"):
            divergence(*sides, self.weight[:, None], kind="forward")
        with pytest.raises(ValueError, match="kind is 'mse', it must be 'forward', 'reverse' or 'jsd'"):
            divergence(*sides, self.weight, kind="mse")
        with pytest.raises(ValueError, match="beta is 0, it must lie between 0 and 1"):
            divergence(*sides, self.weight, kind="jsd", beta=0)
        with pytest.raises(ValueError, match="temperature is -1, it must be above 0"):
            divergence(*sides, self.weight, kind="forward", temperature=-1)
        for label in (11, -1):
            with pytest.raises(ValueError, match=f"label {label} is neither IGNORE nor one of the 11 words"):
                linear_cross_entropy(*sides[:2], torch.full((6,), label), self.weight)
