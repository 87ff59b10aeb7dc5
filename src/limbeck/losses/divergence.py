"""How far a student's next-token distribution is from its teacher's (CTVLM, Eqs. 1 and 2), in nats.

From logits [..., V]: `forward_kl`, `reverse_kl` and `jsd`, [...] float32 each, for `masked_mean` to reduce. A word
whose logit is -inf on both sides counts for nothing.

From hidden states and heads, whose logits never exist as a whole: `linear_divergence`, `linear_cross_entropy`, and
`linear_distillation`, both in one sweep. They are sums over tokens by `weight`: 0 leaves a token out before anything is
multiplied; 1 / count gives the mean, also over micro-batches and processes (`limbeck.types.Counts`); a factor such as
lambda belongs there too. Memory beyond the gradients is two blocks of logits. Their gradient is computed together with
the value and cannot be differentiated again.

A gradient reaches the student alone. Both softmaxes are taken at `temperature`; no result is multiplied by its square.
"""

from math import log
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from limbeck.kernels.divergence import Hard, Head, Soft, vocabulary_loss
from limbeck.kernels.precision import at_least_float32
from limbeck.types import IGNORE

Kind = Literal["forward", "reverse", "jsd"]
"""Which divergence: `forward_kl`, `reverse_kl` or `jsd`"""


def forward_kl(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(teacher || student): the student must cover all that the teacher finds likely."""
    student, teacher = _log_probabilities(student_logits, teacher_logits, temperature)
    return (teacher.exp() * (teacher - student)).sum(-1)


def reverse_kl(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(student || teacher): the student must keep to what the teacher finds likely."""
    student, teacher = _log_probabilities(student_logits, teacher_logits, temperature)
    return (student.exp() * (student - teacher)).sum(-1)


def jsd(student_logits: Tensor, teacher_logits: Tensor, beta: float = 0.5, temperature: float = 1.0) -> Tensor:
    """Generalised Jensen-Shannon divergence: ``beta KL(teacher || m) + (1 - beta) KL(student || m)``.

    ``m = beta teacher + (1 - beta) student``, as Agarwal et al. (2024, GKD) and TRL's GKD trainer define it, for
    0 < beta < 1. Divided by beta it tends to `forward_kl` as beta tends to 0, divided by 1 - beta to `reverse_kl` as
    beta tends to 1; at both ends it is 0 by definition (TRL puts the two KLs there), so neither is accepted.
    """
    _check_beta("jsd", beta)
    student, teacher = _log_probabilities(student_logits, teacher_logits, temperature)
    mixture = torch.logaddexp(teacher + log(beta), student + log(1 - beta))
    return (beta * teacher.exp() * (teacher - mixture) + (1 - beta) * student.exp() * (student - mixture)).sum(-1)


class Distilled(NamedTuple):
    """What `linear_distillation` gives: scalars, of which `total` alone has a gradient."""

    total: Tensor
    """divergence + cross_entropy"""
    divergence: Tensor
    cross_entropy: Tensor


def linear_divergence(
    student_hidden: Tensor,
    student_head: Tensor,
    teacher_hidden: Tensor,
    teacher_head: Tensor,
    weight: Tensor,
    *,
    kind: Kind,
    beta: float = 0.5,
    temperature: float = 1.0,
    vocabulary: int | None = None,
    student_bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
) -> Tensor:
    """Sum over tokens of `weight` times the divergence between ``hidden @ head.T + bias`` of student and teacher.

    student_hidden [N, D], student_head [V, D], teacher_hidden [N, D'], teacher_head [V', D'], weight [N] -> scalar
    float32. Widths may differ. Padded heads may too: the first `vocabulary` rows, the tokenizer's size, are the words
    that both softmaxes are over; None means all rows of heads that are equally long. Exact for the student's hidden
    states, head and bias, each only where it requires a gradient; half precision, its own or autocast's, is
    multiplied as such and summed in float32. `beta` is that of `jsd`, and unused by the others.

    Raises ValueError where shapes, `kind`, `beta` or `temperature` do not fit.
    """
    student = Head(hidden=student_hidden, weight=student_head, bias=student_bias)
    teacher = Head(hidden=teacher_hidden, weight=teacher_head, bias=teacher_bias)
    soft = Soft(teacher=teacher, weight=weight, kind=kind, beta=beta, temperature=temperature)
    return vocabulary_loss(student, _words("linear_divergence", student, soft, vocabulary), soft, None)[0]


def linear_cross_entropy(
    hidden: Tensor,
    head: Tensor,
    labels: Tensor,
    weight: Tensor,
    *,
    vocabulary: int | None = None,
    bias: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Sum over tokens of `weight` times the cross-entropy of ``hidden @ head.T + bias``: a scalar, float32.

    hidden [N, D], head [V, D], labels [N] int64, already shifted, weight [N]; tokens labelled `IGNORE` are left out.
    Otherwise as `linear_divergence`; smoothing as in `token_cross_entropy`.
    """
    student = Head(hidden=hidden, weight=head, bias=bias)
    words = _words("linear_cross_entropy", student, None, vocabulary)
    hard = _hard("linear_cross_entropy", student, words, labels, weight, label_smoothing)
    return vocabulary_loss(student, words, None, hard)[0]


def linear_distillation(
    student_hidden: Tensor,
    student_head: Tensor,
    teacher_hidden: Tensor,
    teacher_head: Tensor,
    weight: Tensor,
    labels: Tensor,
    label_weight: Tensor,
    *,
    kind: Kind,
    beta: float = 0.5,
    temperature: float = 1.0,
    vocabulary: int | None = None,
    student_bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Distilled:
    """`linear_divergence` by `weight` and the student's `linear_cross_entropy` by `label_weight`, from one sweep.

    It spares three of the seven matrix products that the two calls make. The cross-entropy is at temperature 1.
    """
    student = Head(hidden=student_hidden, weight=student_head, bias=student_bias)
    teacher = Head(hidden=teacher_hidden, weight=teacher_head, bias=teacher_bias)
    soft = Soft(teacher=teacher, weight=weight, kind=kind, beta=beta, temperature=temperature)
    words = _words("linear_distillation", student, soft, vocabulary)
    hard = _hard("linear_distillation", student, words, labels, label_weight, label_smoothing)
    return Distilled(*vocabulary_loss(student, words, soft, hard))


def _log_probabilities(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Both sides' log-probabilities in full precision, all finite, so that 0 * log 0 is 0."""
    if student.shape != teacher.shape:
        raise ValueError(
            f"divergence: student logits {tuple(student.shape)} and teacher logits {tuple(teacher.shape)} differ in "
            "shape; cut padded vocabularies to the tokenizer's size"
        )
    _check_temperature("divergence", temperature)
    student, teacher = (
        (at_least_float32(logits) / temperature).log_softmax(-1) for logits in (student, teacher.detach())
    )
    return student.clamp(min=torch.finfo(student.dtype).min), teacher.clamp(min=torch.finfo(teacher.dtype).min)


def _words(caller: str, student: Head, soft: Soft | None, vocabulary: int | None) -> int:
    """The number of words; all that can be wrong with the student and the teacher's side is found here."""
    sides = {"student": student} if soft is None else {"student": student, "teacher": soft.teacher}
    tokens = len(student.hidden)
    for name, side in sides.items():
        if side.hidden.ndim != 2 or side.weight.ndim != 2 or side.hidden.shape[1] != side.weight.shape[1]:
            raise ValueError(
                f"{caller}: the {name}'s hidden states {tuple(side.hidden.shape)} and head {tuple(side.weight.shape)} "
                "do not fit; they must be [tokens, width] and [words, width]"
            )
        if side.bias is not None and side.bias.shape != side.weight.shape[:1]:
            raise ValueError(
                f"{caller}: the {name}'s bias {tuple(side.bias.shape)} must have its head's {len(side.weight)} words"
            )
        if len(side.hidden) != tokens:
            raise ValueError(f"{caller}: the student has {tokens} tokens, the teacher {len(side.hidden)}")
    if soft is not None:
        _check_weight(caller, "weight", soft.weight, tokens)
        _check_temperature(caller, soft.temperature)
        if soft.kind not in ("forward", "reverse", "jsd"):
            raise ValueError(f"{caller}: kind is {soft.kind!r}, it must be 'forward', 'reverse' or 'jsd'")
        if soft.kind == "jsd":
            _check_beta(caller, soft.beta)
    rows = {name: len(side.weight) for name, side in sides.items()}
    if vocabulary is None and len(set(rows.values())) > 1:
        raise ValueError(
            f"{caller}: the student's head has {rows['student']} rows, the teacher's {rows['teacher']}; where one is "
            "padded, vocabulary must give the tokenizer's size"
        )
    if vocabulary is not None and not 0 < vocabulary <= min(rows.values()):
        raise ValueError(f"{caller}: vocabulary is {vocabulary}, the heads have only {min(rows.values())} rows")
    return rows["student"] if vocabulary is None else vocabulary


def _hard(caller: str, student: Head, words: int, labels: Tensor, weight: Tensor, smoothing: float) -> Hard:
    """The labels' side, with tokens to ignore at weight 0."""
    _check_weight(caller, "labels", labels, len(student.hidden))
    _check_weight(caller, "the labels' weight", weight, len(student.hidden))
    foreign = labels[(labels >= words) | ((labels < 0) & (labels != IGNORE))]
    if len(foreign):
        raise ValueError(f"{caller}: label {int(foreign[0])} is neither IGNORE nor one of the {words} words")
    return Hard(labels=labels.clamp(min=0), weight=weight.masked_fill(labels == IGNORE, 0), smoothing=smoothing)


def _check_weight(caller: str, name: str, values: Tensor, tokens: int) -> None:
    if values.shape != (tokens,):
        raise ValueError(f"{caller}: {name} {tuple(values.shape)} must have one value for each of {tokens} tokens")


def _check_temperature(caller: str, temperature: float) -> None:
    if temperature <= 0:
        raise ValueError(f"{caller}: temperature is {temperature}, it must be above 0")


def _check_beta(caller: str, beta: float) -> None:
    if not 0 < beta < 1:
        raise ValueError(f"{caller}: beta is {beta}, it must lie between 0 and 1; the ends are forward and reverse KL")
