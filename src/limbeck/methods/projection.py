"""The maps between a student's and a teacher's width (W_s and W_t of DLIP's Eq. 3)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from limbeck.kernels.precision import at_least_float32

HRMap = Literal["student", "paper_frozen", "paper"]


class HiddenMap(nn.Module):
    """Brings a teacher's and a student's hidden states to one width; thrown away after training.

    - `student`: the teacher's states stay, a learned bias-free map widens the student's (as MiniLM and TinyBERT do);
    - `paper_frozen`: a fixed orthonormal map narrows the teacher's to the student's width, the student's is learned;
    - `paper`: both maps are learned, the literal Eq. 3. They can agree on one direction that says nothing.
    """

    fixed: Tensor | None

    def __init__(self, student_width: int, teacher_width: int, kind: HRMap):
        super().__init__()
        width = teacher_width if kind == "student" else student_width
        self.student = nn.Linear(student_width, width, bias=False)
        nn.init.normal_(self.student.weight, std=student_width**-0.5)
        self.teacher = nn.Linear(teacher_width, width, bias=False) if kind == "paper" else None
        fixed = nn.init.orthogonal_(torch.empty(width, teacher_width)) if kind == "paper_frozen" else None
        self.register_buffer("fixed", fixed)

    def forward(self, teacher: Tensor, student: Tensor) -> tuple[Tensor, Tensor]:
        """teacher [B, T, D_t], student [B, T, D_s] -> both [B, T, D], at least float32, under autocast too."""
        to_common = self.fixed if self.teacher is None else self.teacher.weight
        with torch.autocast(student.device.type, enabled=False):
            return _mapped(teacher, to_common), _mapped(student, self.student.weight)


def _mapped(hidden: Tensor, weight: Tensor | None) -> Tensor:
    """hidden [B, T, D] by weight [D', D] -> [B, T, D'], at least float32; None leaves it as wide as it is."""
    hidden = at_least_float32(hidden)
    return hidden if weight is None else functional.linear(hidden, weight.to(hidden.dtype))
