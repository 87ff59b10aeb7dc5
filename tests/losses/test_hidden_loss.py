import pytest
import torch

from limbeck.losses.hidden import cosine_distance, effective_rank
from limbeck.losses.reduce import masked_mean


def test_agrees_with_the_definition_in_float64():
    student, teacher = torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(2, 3, 4, dtype=torch.float64)
    expected = 1 - (student * teacher).sum(-1) / (student.square().sum(-1) * teacher.square().sum(-1)).sqrt()
    torch.testing.assert_close(cosine_distance(student, teacher), expected)


def test_hand_worked_values():
    student = torch.tensor([[3.0, 4.0], [1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    teacher = torch.tensor([[6.0, 8.0], [0.0, 2.0], [-5.0, 0.0], [1.0, 1.0]])
    torch.testing.assert_close(cosine_distance(student, teacher), torch.tensor([0.0, 1.0, 2.0, 1.0]))


def test_student_that_is_the_teacher_is_at_no_distance():
    hidden = torch.randn(4, 5, 16)
    torch.testing.assert_close(cosine_distance(hidden, hidden), torch.zeros(4, 5), rtol=0, atol=1e-6)


def test_gradient_is_exact():
    student, teacher = (
        torch.randn(3, 4, dtype=torch.float64, requires_grad=True),
        torch.randn(3, 4, dtype=torch.float64),
    )
    assert torch.autograd.gradcheck(lambda x: cosine_distance(x, teacher), (student,))


def test_a_learnt_map_on_the_teachers_side_has_a_gradient_and_the_teacher_none():
    teacher = torch.randn(3, 6, requires_grad=True)
    learnt = torch.randn(6, 4, requires_grad=True)
    cosine_distance(torch.randn(3, 4), teacher.detach() @ learnt).sum().backward()
    assert teacher.grad is None
    assert learnt.grad.abs().sum() > 0


def test_padding_changes_nothing():
    student, teacher, mask = torch.randn(1, 4, 8), torch.randn(1, 4, 8), torch.tensor([[True, True, False, False]])
    mean = masked_mean(cosine_distance(student, teacher), mask)
    torch.testing.assert_close(mean, cosine_distance(student[:, :2], teacher[:, :2]).mean())
    student[:, 2:] = 1e4
    assert masked_mean(cosine_distance(student, teacher), mask) == mean


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_compared_in_float32(dtype):
    student, teacher = torch.randn(5, 768).to(dtype), torch.randn(5, 768).to(dtype)
    distance = cosine_distance(student, teacher)
    assert distance.dtype == torch.float32
    torch.testing.assert_close(distance.double(), cosine_distance(student.double(), teacher.double()))


def test_unequal_widths_are_an_error():
    with pytest.raises(ValueError, match=r"student \(2, 3\) and teacher \(2, 4\) differ in shape"):
        cosine_distance(torch.zeros(2, 3), torch.zeros(2, 4))


def test_effective_rank_of_equal_directions_is_their_number():
    axes = torch.eye(5)
    assert effective_rank(torch.cat([axes, -axes])).item() == pytest.approx(5, abs=1e-4)


def test_effective_rank_sees_a_common_mean_direction_as_no_information():
    mean, line = torch.randn(32), torch.randn(100, 1) * torch.randn(32)
    assert effective_rank(mean + line).item() == pytest.approx(1, abs=0.01)
    assert effective_rank(mean.expand(10, 32)).item() == pytest.approx(1, abs=0.01)
    assert effective_rank(mean + torch.randn(100, 32)).item() > 20
