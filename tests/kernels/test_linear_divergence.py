"""Sums from hidden states and heads, against formed logits in float64: values, every gradient, blocks and padding."""

import pytest
import torch
from torch.nn import functional as F

from limbeck.kernels import divergence as blocks
from limbeck.kernels import divergence_product
from limbeck.losses.divergence import (
    forward_kl,
    jsd,
    linear_cross_entropy,
    linear_distillation,
    linear_divergence,
    reverse_kl,
)
from limbeck.types import IGNORE

KINDS = [("forward", 0.5), ("reverse", 0.5), ("jsd", 0.1), ("jsd", 0.5), ("jsd", 0.9)]
WORDS = 23


class Case:
    """Student and teacher of different widths; `padding` = rows of either head beyond the words."""

    def __init__(self, tokens=9, padding=(0, 0), dtype=torch.float64, bias=True):
        def random(*shape, grad=False):
            return torch.randn(*shape, dtype=torch.float64).to(dtype).requires_grad_(grad)

        rows = [WORDS + more for more in padding]
        self.student = [random(tokens, 5, grad=True), random(rows[0], 5, grad=True)]
        self.teacher = [random(tokens, 8, grad=True), random(rows[1], 8, grad=True)]
        self.student_bias = random(rows[0], grad=True) if bias else None
        self.teacher_bias = random(rows[1], grad=True) if bias else None
        self.weight, self.label_weight = torch.rand(2, tokens, dtype=torch.float64) + 0.1
        self.weight[1::3] = 0
        self.labels = torch.randint(WORDS, (tokens,))
        self.labels[::4] = IGNORE

    def wanted(self):
        """The student's tensors, all of which get a gradient."""
        return [*self.student, *([] if self.student_bias is None else [self.student_bias])]

    def biases(self):
        return {"student_bias": self.student_bias, "teacher_bias": self.teacher_bias}

    def divergence(self, kind, beta, temperature, vocabulary=None):
        return linear_divergence(
            *self.student,
            *self.teacher,
            self.weight,
            kind=kind,
            beta=beta,
            temperature=temperature,
            vocabulary=vocabulary,
            **self.biases(),
        )

    def cross_entropy(self, smoothing, vocabulary=None):
        return linear_cross_entropy(
            *self.student,
            self.labels,
            self.label_weight,
            vocabulary=vocabulary,
            bias=self.student_bias,
            label_smoothing=smoothing,
        )

    def both(self, kind, beta, temperature, vocabulary=None):
        return linear_distillation(
            *self.student,
            *self.teacher,
            self.weight,
            self.labels,
            self.label_weight,
            kind=kind,
            beta=beta,
            temperature=temperature,
            vocabulary=vocabulary,
            **self.biases(),
        ).total

    def logits(self):
        """Formed, in float64, cut to the words."""
        sides = (*self.student, self.student_bias), (*self.teacher, self.teacher_bias)
        return [F.linear(*(None if given is None else given.double() for given in side))[:, :WORDS] for side in sides]

    def naive_divergence(self, kind, beta, temperature):
        student, teacher = self.logits()
        values = {
            "forward": lambda: forward_kl(student, teacher, temperature),
            "reverse": lambda: reverse_kl(student, teacher, temperature),
            "jsd": lambda: jsd(student, teacher, beta, temperature),
        }[kind]()
        return self.weight @ values

    def naive_cross_entropy(self, smoothing):
        losses = F.cross_entropy(self.logits()[0], self.labels, reduction="none", label_smoothing=smoothing)
        return self.label_weight @ losses

    def compare(self, found, expected, rtol=1e-9):
        """Values, and gradients under an upstream gradient of 3, by their largest error."""
        torch.testing.assert_close(found.double(), expected, rtol=rtol, atol=rtol)
        gradients, right = (torch.autograd.grad(3 * value, self.wanted()) for value in (found, expected))
        for given, gradient, expected_gradient in zip(self.wanted(), gradients, right, strict=True):
            assert gradient.dtype == given.dtype
            error = (gradient.double() - expected_gradient).abs().max() / expected_gradient.abs().max()
            assert error <= rtol, error


@pytest.fixture(params=[1, 4, 100], ids=lambda rows: f"blocks of {rows}")
def small_blocks(request, monkeypatch):
    """Blocks of so many tokens, and slices of one row for each thread."""
    monkeypatch.setitem(blocks.BLOCK, "cpu", request.param * WORDS)
    monkeypatch.setattr(blocks, "LEAST_ROWS", 1)
    monkeypatch.setitem(blocks.SLICE, "cpu", WORDS)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("padding", [(0, 0), (3, 0), (0, 4)], ids=str)
class TestAgainstFormedLogits:
    @pytest.mark.parametrize("temperature", [1.0, 2.0])
    @pytest.mark.parametrize(("kind", "beta"), KINDS)
    def test_divergence(self, kind, beta, temperature, padding):
        case = Case(padding=padding)
        found = case.divergence(kind, beta, temperature, WORDS)
        case.compare(found, case.naive_divergence(kind, beta, temperature))

    @pytest.mark.parametrize("smoothing", [0.0, 0.1])
    def test_cross_entropy(self, smoothing, padding):
        case = Case(padding=padding)
        case.compare(case.cross_entropy(smoothing, WORDS), case.naive_cross_entropy(smoothing))

    @pytest.mark.parametrize("temperature", [1.0, 2.0])
    @pytest.mark.parametrize(("kind", "beta"), KINDS)
    def test_both_in_one_sweep(self, kind, beta, temperature, padding):
        case = Case(padding=padding)
        expected = case.naive_divergence(kind, beta, temperature) + case.naive_cross_entropy(0.0)
        case.compare(case.both(kind, beta, temperature, WORDS), expected)


@pytest.mark.parametrize(("kind", "beta"), KINDS)
def test_gradcheck(kind, beta):
    case = Case(tokens=4)

    def total(*given):
        hidden, head, bias = given
        return linear_divergence(
            hidden, head, *case.teacher, case.weight, kind=kind, beta=beta, student_bias=bias, temperature=1.5
        )

    assert torch.autograd.gradcheck(total, case.wanted())


def test_gradcheck_of_cross_entropy():
    case = Case(tokens=5, bias=False)
    assert torch.autograd.gradcheck(
        lambda hidden, head: linear_cross_entropy(hidden, head, case.labels, case.label_weight, label_smoothing=0.1),
        case.student,
    )


@pytest.mark.parametrize("onednn", [False, True])
@pytest.mark.parametrize(("kind", "beta"), KINDS)
def test_float32_by_either_library(kind, beta, onednn, monkeypatch):
    if onednn and not divergence_product.ONEDNN:
        pytest.skip("this CPU or this PyTorch has no float32 product by oneDNN")
    monkeypatch.setattr(divergence_product, "ONEDNN", onednn)
    monkeypatch.setattr(divergence_product, "LOGIT_WORDS", 7)
    monkeypatch.setattr(divergence_product, "HEAD_WORDS", 5)
    case = Case(dtype=torch.float32)
    case.compare(case.both(kind, beta, 2.0), case.naive_divergence(kind, beta, 2.0) + case.naive_cross_entropy(0), 1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("kind", "beta"), KINDS)
def test_half_precision_is_near(kind, beta, dtype):
    case = Case(dtype=dtype)
    case.compare(case.both(kind, beta, 1.0), case.naive_divergence(kind, beta, 1.0) + case.naive_cross_entropy(0), 3e-2)


def test_statistics_of_half_precision_are_summed_in_float32():
    """3,000 equally likely words: in bfloat16 their sum would stop growing at 256."""
    hidden, head = torch.zeros(2, 4, dtype=torch.bfloat16), torch.zeros(3000, 4, dtype=torch.bfloat16)
    loss = linear_cross_entropy(hidden, head, torch.tensor([5, 7]), torch.full((2,), 0.5))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, torch.tensor(3000.0).log())


@pytest.mark.parametrize("weight", [1.0, 1e-7])
def test_a_small_weight_does_not_vanish_in_float16(weight):
    """The mean over a step of ten million tokens; the backward pass scales the loss up, as a GradScaler does."""
    case = Case(tokens=3, dtype=torch.float16)
    case.weight, case.label_weight = (torch.full((3,), weight, dtype=torch.float64) for _ in range(2))
    found = torch.autograd.grad(case.both("forward", 0.5, 1.0) / weight, case.wanted())
    expected = case.naive_divergence("forward", 0.5, 1.0) + case.naive_cross_entropy(0)
    for gradient, right in zip(found, torch.autograd.grad(expected / weight, case.wanted()), strict=True):
        assert (gradient - right).abs().max() <= 1e-2 * right.abs().max()


def test_autocast_multiplies_in_its_precision_and_hands_gradients_back_in_float32():
    case = Case(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = case.divergence("reverse", 0.5, 1.0)
    assert found.dtype == torch.float32
    case.compare(found, case.naive_divergence("reverse", 0.5, 1.0), 3e-2)
    exact = case.divergence("reverse", 0.5, 1.0)
    assert (found - exact).abs() > 1e-6, "autocast had no effect"


@pytest.mark.parametrize("kind", ["forward", "reverse", "jsd"])
@pytest.mark.parametrize("size", [1e2, 1e4])
def test_extreme_logits_give_no_nan(kind, size):
    case = Case(dtype=torch.float32)
    with torch.no_grad():
        case.student[0] *= size
        case.teacher[0] *= size
    total = case.both(kind, 0.5, 1.0)
    assert total.isfinite()
    for gradient in torch.autograd.grad(total, case.wanted()):
        assert gradient.isfinite().all()


def test_only_what_requires_a_gradient_is_computed(monkeypatch):
    """A frozen head costs no product; a frozen student costs neither."""
    calls = []
    case = Case()
    hidden, head = case.student
    result = torch.zeros(int((case.weight != 0).sum()), 5, dtype=torch.float64)
    for name in ("to_hidden", "add_to_head"):
        monkeypatch.setattr(divergence_product, name, lambda *_, name=name: calls.append(name) or result)
    linear_divergence(hidden, head.detach(), *case.teacher, case.weight, kind="forward")
    assert calls == ["to_hidden"]
    value = linear_divergence(hidden.detach(), head.detach(), *case.teacher, case.weight, kind="forward")
    assert calls == ["to_hidden"]
    assert not value.requires_grad
    linear_divergence(hidden.detach(), head, *case.teacher, case.weight, kind="forward").backward()
    assert calls == ["to_hidden", "add_to_head"]
    assert hidden.grad is None


def test_the_teacher_gets_no_gradient():
    case = Case()
    case.both("jsd", 0.5, 1.0).backward()
    assert all(given.grad is None for given in (*case.teacher, case.teacher_bias))
    assert all(given.grad.any() for given in case.wanted())


def test_tokens_of_weight_zero_are_never_multiplied():
    case = Case(dtype=torch.float32, bias=False)
    case.labels[case.weight == 0] = IGNORE
    expected = case.both("forward", 0.5, 1.0)
    with torch.no_grad():
        case.student[0][case.weight == 0] = torch.nan
        case.teacher[0][case.weight == 0] = torch.inf
    found = case.both("forward", 0.5, 1.0)
    torch.testing.assert_close(found, expected)
    to_hidden, to_head = torch.autograd.grad(found, case.student)
    assert not to_hidden[case.weight == 0].any()
    assert to_head.isfinite().all()


@pytest.mark.parametrize("tokens", [0, 3])
def test_nothing_to_count_is_zero_with_zero_gradients(tokens):
    case = Case(tokens=tokens)
    case.weight, case.label_weight = torch.zeros(2, tokens)
    total = case.both("jsd", 0.5, 1.0)
    assert total == 0
    for given, gradient in zip(case.wanted(), torch.autograd.grad(total, case.wanted()), strict=True):
        assert torch.equal(gradient, torch.zeros_like(given))


def test_the_backward_pass_can_run_twice_and_gradients_add_up():
    case = Case()
    total = case.divergence("forward", 0.5, 1.0)
    total.backward(retain_graph=True)
    once = [given.grad.clone() for given in case.wanted()]
    (2 * total).backward()
    for given, gradient in zip(case.wanted(), once, strict=True):
        torch.testing.assert_close(given.grad, 3 * gradient)


def test_largest_tensor_made_is_a_block_or_a_gradient(monkeypatch):
    """Logits of 512 tokens and 1,000 words would be 512,000 elements."""
    monkeypatch.setitem(blocks.BLOCK, "cpu", 64_000)
    monkeypatch.setattr(blocks, "LEAST_ROWS", 1)
    monkeypatch.setitem(blocks.SLICE, "cpu", 2_000)
    hidden, head = torch.randn(512, 16, requires_grad=True), torch.randn(1000, 16, requires_grad=True)
    teacher_hidden, teacher_head = torch.randn(512, 24), torch.randn(1000, 24)

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                self.elements = max(self.elements, result.untyped_storage().nbytes() // result.element_size())
            return result

    with Largest() as largest:
        linear_divergence(hidden, head, teacher_hidden, teacher_head, torch.ones(512), kind="jsd").backward()
    assert largest.elements == 64_000


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("kind", "beta"), KINDS)
def test_cuda_gives_what_formed_logits_give(kind, beta, dtype):
    case = Case(dtype=dtype)
    expected = case.naive_divergence(kind, beta, 2.0) + case.naive_cross_entropy(0)
    right = torch.autograd.grad(expected, case.wanted())
    moved = {
        name: value.detach().cuda() if isinstance(value, torch.Tensor) else [part.detach().cuda() for part in value]
        for name, value in vars(case).items()
    }
    vars(case).update(moved)
    for given in case.wanted():
        given.requires_grad_()
    tolerance = 1e-4 if dtype == torch.float32 else 3e-2
    found = case.both(kind, beta, 2.0)
    torch.testing.assert_close(found.cpu().double(), expected, rtol=tolerance, atol=tolerance)
    for gradient, expected_gradient in zip(torch.autograd.grad(found, case.wanted()), right, strict=True):
        assert (gradient.cpu() - expected_gradient).abs().max() <= tolerance * expected_gradient.abs().max()
