"""Divergence over a vocabulary from hidden states and heads beside the usual ways: time and peak memory.

    python benchmarks/divergence.py [--smoke] [--json FILE] [--write-docs] [--device cuda] [--rounds N]

    naive           both models' logits formed, log-softmax, `kl_div`
    torchtune       its chunked-output losses, over logits that are formed (no JSD)
    Liger           `LigerFusedLinearJSDLoss`, chunks of 1,024 tokens
    TRL             `ChunkedDivergenceFunction` of its distillation trainer
    (compiled)      the same through torch.compile, where there is a C++ compiler: limbeck never needs one
    limbeck         `linear_divergence`
    products        the four matrix products that no way can do without, in limbeck's blocks
    (torch.mm)      both without oneDNN's float32 products, by those that everyone else uses
    two calls       `linear_divergence` and `linear_cross_entropy`
    one sweep       `linear_distillation`, which gives both

Time is value and gradient to the student's hidden states and head, in milliseconds; memory is MiB above what is passed
in. Before anything is timed, gradients must agree with float64. A peer that cannot be imported is named and left out:
`pip install --no-deps trl liger-kernel torchtune` and what their imports then ask for.
"""

from __future__ import annotations

import ctypes
import shutil
import sys
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from math import log
from unittest.mock import patch

import torch
from harness import Claim, Work, at_least, milliseconds, parse, peak_mebibytes, publish
from torch import Tensor
from torch.nn import functional as F

from limbeck.kernels import divergence as blocks
from limbeck.kernels import divergence_product as product
from limbeck.losses.divergence import Kind, linear_cross_entropy, linear_distillation, linear_divergence

Row = dict[str, str | float | int]
KINDS: tuple[Kind, ...] = ("forward", "reverse", "jsd")
BETA = 0.5
PEERS = {
    "torchtune": "torchtune.modules.loss.kd_losses",
    "Liger": "liger_kernel.chunked_loss",
    "TRL": "trl.kernels.chunked_divergence",
}
COMPILED = " (compiled)"
MM = " (torch.mm)"
TWO_CALLS, ONE_SWEEP = "limbeck, two calls", "limbeck, one sweep"


@dataclass(frozen=True)
class Shape:
    """A batch of tokens, the words, both models' widths, and which divergences are taken of it."""

    tokens: int
    words: int
    student: int = 512
    teacher: int = 768
    kinds: tuple[Kind, ...] = KINDS


SHAPES = [
    Shape(2048, 32_000),
    Shape(2048, 151_936, kinds=("forward", "reverse")),
    Shape(512, 151_936, kinds=("jsd",)),  # with 2,048 tokens the process grew past 22 GB
]
SMOKE = [Shape(256, 4_000, 64, 96, kinds=("forward", "jsd"))]
TINY = Shape(48, 300, 16, 24)


class Inputs:
    """Random hidden states and heads; the student's require a gradient."""

    def __init__(self, shape: Shape, kind: Kind, device: str, dtype: torch.dtype):
        generator = torch.Generator().manual_seed(0)

        def random(rows: int, width: int, scale: float = 1.0) -> Tensor:
            return (torch.randn(rows, width, generator=generator) * scale).to(device, dtype)

        self.kind: Kind = kind
        self.hidden, self.teacher_hidden = random(shape.tokens, shape.student), random(shape.tokens, shape.teacher)
        self.head = random(shape.words, shape.student, 1.5 * shape.student**-0.5)
        self.teacher_head = random(shape.words, shape.teacher, 1.5 * shape.teacher**-0.5)
        self.labels = torch.randint(shape.words, (shape.tokens,), generator=generator).to(device)
        self.weight = torch.full((shape.tokens,), 1 / shape.tokens, device=device)
        for given in (self.hidden, self.head):
            given.requires_grad_()

    def sides(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The student's hidden states and head, the teacher's."""
        return self.hidden, self.head, self.teacher_hidden, self.teacher_head


Loss = Callable[[Inputs], Tensor]


def naive(inputs: Inputs) -> Tensor:
    """What one writes first, in full precision."""
    student = _full(inputs.hidden @ inputs.head.T).log_softmax(-1)
    with torch.no_grad():
        teacher = _full(inputs.teacher_hidden @ inputs.teacher_head.T).log_softmax(-1)
    if inputs.kind == "forward":
        return F.kl_div(student, teacher, reduction="batchmean", log_target=True)
    if inputs.kind == "reverse":
        return F.kl_div(teacher, student, reduction="batchmean", log_target=True)
    mixture = torch.stack([student + log(1 - BETA), teacher + log(BETA)]).logsumexp(0)
    to_teacher, to_student = (
        F.kl_div(mixture, side, reduction="batchmean", log_target=True) for side in (teacher, student)
    )
    return BETA * to_teacher + (1 - BETA) * to_student


def _full(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def torchtune(inputs: Inputs) -> Tensor:
    """Its losses take the logits in eight chunks [B, tokens, words]."""
    losses = import_module(PEERS["torchtune"])
    make = {"forward": losses.ForwardKLWithChunkedOutputLoss, "reverse": losses.ReverseKLWithChunkedOutputLoss}
    loss = make[inputs.kind]()
    student = [chunk @ inputs.head.T for chunk in inputs.hidden[None].chunk(loss.num_output_chunks, 1)]
    with torch.no_grad():
        chunks = inputs.teacher_hidden[None].chunk(loss.num_output_chunks, 1)
        teacher = [chunk @ inputs.teacher_head.T for chunk in chunks]
    return loss(student, teacher, inputs.labels[None])


def liger(inputs: Inputs, compiled: bool = False) -> Tensor:
    """Its soft loss alone; beta 0 and 1 are its two KLs."""
    beta = {"forward": 0.0, "reverse": 1.0, "jsd": BETA}[inputs.kind]
    make = import_module(PEERS["Liger"]).LigerFusedLinearJSDLoss
    loss = make(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=beta, compiled=compiled)
    return loss(*inputs.sides(), inputs.labels)


def trl(inputs: Inputs) -> Tensor:
    """Beta as in Liger; it gives one value for each token."""
    beta = {"forward": 0.0, "reverse": 1.0, "jsd": BETA}[inputs.kind]
    apply = import_module(PEERS["TRL"]).ChunkedDivergenceFunction.apply
    values, _ = apply(inputs.hidden, inputs.head, None, inputs.teacher_hidden, inputs.teacher_head, None, beta)
    return values.mean()


def limbeck(inputs: Inputs) -> Tensor:
    return linear_divergence(*inputs.sides(), inputs.weight, kind=inputs.kind, beta=BETA)


def two_calls(inputs: Inputs) -> Tensor:
    return limbeck(inputs) + linear_cross_entropy(inputs.hidden, inputs.head, inputs.labels, inputs.weight)


def one_sweep(inputs: Inputs) -> Tensor:
    return linear_distillation(
        *inputs.sides(), inputs.weight, inputs.labels, inputs.weight, kind=inputs.kind, beta=BETA
    ).total


def products(inputs: Inputs) -> None:
    """Logits of both, the student's as if they were their gradient carried on, in limbeck's blocks."""
    with torch.no_grad():
        hidden, head, teacher_hidden, teacher_head = (given.detach() for given in inputs.sides())
        words = len(head)
        budget = blocks.BLOCK.get(hidden.device.type, blocks.LARGE_BLOCK)
        rows = min(max(budget // words, blocks.LEAST_ROWS), len(hidden))
        room = torch.empty((2, rows, words), dtype=product.logit_dtype(hidden), device=hidden.device)
        total = torch.zeros(head.shape, device=hidden.device)
        found = []
        for own, other in zip(hidden.split(rows), teacher_hidden.split(rows)):
            logits, target = room[:, : len(own)]
            product.project(own, head, logits)
            product.project(other, teacher_head, target)
            gradient = logits.to(own.dtype)
            found.append(product.to_hidden(gradient, head))
            product.add_to_head(total, gradient, own)


EAGER: dict[str, Loss] = {"naive": naive, "torchtune": torchtune, "Liger": liger, "TRL": trl, "limbeck": limbeck}
TOGETHER: dict[str, Loss] = {TWO_CALLS: two_calls, ONE_SWEEP: one_sweep}


@cache
def missing() -> dict[str, str]:
    """Peers that cannot be imported here, and why."""
    found = {}
    for name, module in PEERS.items():
        try:
            import_module(module)
        except ImportError as error:
            found[name] = "not installed" if not _installed(module) else str(error).strip().splitlines()[0]
    return found


def _installed(module: str) -> bool:
    return find_spec(module.partition(".")[0]) is not None


def variants(kind: Kind, compiled: bool) -> list[str]:
    """The ways to compare; `compiled` adds those through torch.compile."""
    eager = [name for name in EAGER if name not in missing() and not (name == "torchtune" and kind == "jsd")]
    by_compiler = [name + COMPILED for name in ("naive", "Liger") if name in eager] if compiled else []
    by_mm = ["limbeck" + MM] if product.ONEDNN else []
    return [*eager, *by_compiler, *by_mm, *(TOGETHER if kind == "forward" else ())]


@cache
def way(name: str) -> Loss:
    """The loss of that name, under torch.compile if the name says so."""
    if name == "naive" + COMPILED:
        return torch.compile(naive)
    if name == "Liger" + COMPILED:
        return partial(liger, compiled=True)
    return {**EAGER, **TOGETHER}[name.removesuffix(MM)]


def step(name: str, inputs: Inputs) -> tuple[Tensor, ...]:
    """Value and gradients."""
    with patch.object(product, "ONEDNN", False) if name.endswith(MM) else nullcontext():
        if name.startswith("products"):
            products(inputs)
            return ()
        return torch.autograd.grad(way(name)(inputs), (inputs.hidden, inputs.head))


def make_work(name: str, shape: Shape, kind: Kind, device: str, dtype: torch.dtype) -> Work:
    """One variant's step, warmed up by a small one, or by itself where it must be compiled for its shape."""
    inputs = Inputs(shape, kind, device, dtype)
    if name.endswith(COMPILED):
        step(name, inputs)
        if device == "cpu":
            ctypes.CDLL(None).malloc_trim(0)  # what the warm-up has freed is not there for the measured step
    else:
        step(name, Inputs(TINY, kind, device, dtype))
    return partial(step, name, inputs)


def error(name: str, kind: Kind, device: str, dtype: torch.dtype) -> float:
    """Largest relative error of the gradients, against formed logits in float64."""
    inputs, exact = (Inputs(TINY, kind, device, dtype) for _ in range(2))
    exact.hidden, exact.head = (given.detach().double().requires_grad_() for given in (exact.hidden, exact.head))
    exact.teacher_hidden, exact.teacher_head = exact.teacher_hidden.double(), exact.teacher_head.double()
    value = naive(exact)
    if name in TOGETHER:
        value = value + F.cross_entropy(exact.hidden @ exact.head.T, exact.labels)
    pairs = zip(step(name, inputs), torch.autograd.grad(value, (exact.hidden, exact.head)), strict=True)
    return max(float((found - wanted).abs().max() / wanted.abs().max()) for found, wanted in pairs)


def measure(shape: Shape, kind: Kind, device: str, rounds: int, compiled: bool) -> list[Row]:
    """One row for each variant; the matrix products alone come last."""
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    names = variants(kind, compiled)
    floors = ["products", *(["products" + MM] if product.ONEDNN else [])]
    works = {name: make_work(name, shape, kind, device, dtype) for name in (*names, *floors)}
    times = milliseconds(works, rounds, device)
    del works
    head: Row = {"tokens x words": f"{shape.tokens:,} x {shape.words:,}", "kind": kind}
    rows: list[Row] = [
        {
            **head,
            "variant": name,
            "ms": times[name],
            "times the products": times[name] / times["products"],
            "MiB": peak_mebibytes(device, make_work, name, shape, kind, device, dtype),
            "error": "" if name.endswith(COMPILED) else error(name, kind, device, dtype),
        }
        for name in names
    ]
    rows += [
        {**head, "variant": name, "ms": times[name], "times the products": times[name] / times["products"]}
        for name in floors
    ]
    return rows


def claims(groups: Iterable[list[Row]], device: str) -> list[Claim]:
    """What is wanted of the rows, grouped by shape and kind; each ratio is the worst of all groups that have it."""
    by_variant = [{str(row["variant"]): row for row in rows} for rows in groups]
    names = list(dict.fromkeys(name for rows in by_variant for name in rows))

    def worst(name: str, column: str, ours: str = "limbeck") -> float:
        both = (rows for rows in by_variant if name in rows and ours in rows)
        return min(float(rows[name][column]) / float(rows[ours][column]) for rows in both)

    made = [
        at_least("times faster than naive", 1.5, worst("naive", "ms")),
        at_least("times less memory than naive", 5, worst("naive", "MiB")),
    ]
    peers = [name for name in names if name.removesuffix(COMPILED) in PEERS or name == "naive" + COMPILED]
    for name in peers:
        made.append(at_least(f"times faster than {name}", 1, worst(name, "ms")))
        made.append(at_least(f"times less memory than {name}", 1, worst(name, "MiB")))
    made.append(at_least("share of its time that the matrix products alone take", 0.8, worst("products", "ms")))
    made.append(at_least("times faster in one sweep than in two calls", 1.3, worst(TWO_CALLS, "ms", ONE_SWEEP)))
    ours = [name for name in names if name.startswith("limbeck")]
    largest = max(float(rows[name]["error"]) for rows in by_variant for name in ours if name in rows)
    limit = 1e-4 if device == "cpu" else 2e-2
    return [*made, Claim("relative error of gradients", f"<= {limit:g}", f"{largest:.1e}", largest <= limit)]


def main() -> None:
    """Measure, print and write."""
    options = parse(__doc__)
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("divergence: --device cuda, but PyTorch sees no CUDA device here; choose --device cpu")
    shapes, rounds = (SMOKE, 3) if options.smoke else (SHAPES, options.rounds)
    compiler = shutil.which("g++") or shutil.which("clang++")
    compiled = bool(compiler) and not options.smoke
    groups = []
    for shape in shapes:
        for kind in shape.kinds:
            groups.append(measure(shape, kind, options.device, rounds, compiled))
            print(*groups[-1], sep="\n", flush=True)  # a long way to the tables: nothing measured is lost
    notes = [f"The student's width is {shapes[0].student}, the teacher's {shapes[0].teacher}."]
    notes += [f"{name}: {why}." for name, why in missing().items()]
    if not compiled:
        notes.append("torch.compile: " + ("not in a smoke run." if compiler else "no C++ compiler here."))
    rows = [row for group in groups for row in group]
    publish("divergence", rows, claims(groups, options.device), options, note=" ".join(notes))


if __name__ == "__main__":
    main()
