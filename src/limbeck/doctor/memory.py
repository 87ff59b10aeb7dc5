"""How much memory training takes: weights, gradients, optimizer, and what autograd keeps of each row of a batch.

DeepSpeed in half precision holds weights and gradients in it and, for the optimizer, what trains in float32 once more;
its ZeRO stages divide them among the processes. What it offloads is counted as if it stayed.

What autograd keeps is measured: two forward passes, over one and over two of the longest rows, with every tensor
counted that it keeps for the backward pass, and what is alive besides at the fullest moment. What one more row takes
is their difference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from accelerate.utils.deepspeed import HfDeepSpeedConfig
from torch import Tensor, nn
from transformers import TrainingArguments

from limbeck.doctor.batches import TrainingSet, batch_of, longest_item
from limbeck.doctor.finding import Finding, bytes_of
from limbeck.evaluation.profile import LiveBytes
from limbeck.method import Method, Stage
from limbeck.training.freeze import freeze

RESERVE = 0.1
"""Share of a device's memory that is left for passing results, the driver and fragments."""
STATES = {"adafactor": 0, "sgd": 0, "rmsprop": 1, "adagrad": 1, "lion": 1, "ademamix": 3}
"""Optimizers by the beginning of their names -> values that they keep of each weight; of the others, AdamW's two."""


@dataclass(frozen=True)
class Layers:
    """A model's equal layers, of which fewer may be here than it is said to have."""

    here: Sequence[nn.Module]
    whole: int


@dataclass
class Kept:
    """What autograd keeps of one forward pass, in bytes."""

    other: int = 0
    layers: dict[int, int] = field(default_factory=dict)
    """by layer, each with a number of its own"""
    inputs: dict[int, int] = field(default_factory=dict)
    """hidden states that enter each layer, which is all that gradient checkpointing keeps of it"""
    passing: int = 0
    """alive at the fullest moment of the pass and gone after it"""


@dataclass(frozen=True)
class Need:
    """Bytes that a stage takes in a process that shares nothing."""

    weights: int
    gradients: int
    optimizer: int
    once: int
    """kept for a batch of any size"""
    row: int
    """kept for each row"""
    passing: int = 0
    """for each row, alive for a moment"""

    @property
    def fixed(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.once

    @property
    def one_more(self) -> int:
        """What a batch of one more row takes."""
        return self.row + self.passing

    def shared(self, zero: int, processes: int) -> Need:
        """What each process keeps where so many share by a stage of ZeRO: from 1 the optimizer's states, from 2 the
        gradients, from 3 the weights."""
        return replace(
            self,
            optimizer=self.optimizer // (processes if zero >= 1 else 1),
            gradients=self.gradients // (processes if zero >= 2 else 1),
            weights=self.weights // (processes if zero >= 3 else 1),
        )

    def largest(self, room: int) -> int:
        """Rows of the largest micro-batch that fits."""
        return max(0, int((room * (1 - RESERVE) - self.fixed) // max(1, self.one_more)))


def check_memory(
    needs: Mapping[str, Need],
    arguments: Mapping[str, TrainingArguments],
    tokens: Mapping[str, int],
    rooms: Mapping[str, int],
    here: str,
    measured: str,
    processes: int = 1,
) -> Finding:
    """By stage what each of the processes needs and, by device, how many rows fit; `here` is the device that training
    would take.

    `needs` are those of a process that shares nothing, `rooms` devices' bytes, `tokens` the length of the rows that
    were measured, `measured` says on what.
    """
    lines, figures, too_many = [], dict[str, Any](), []
    for stage, whole in needs.items():
        need = whole.shared(zero_stage(arguments[stage]), processes)
        wanted = arguments[stage].per_device_train_batch_size
        fits = {device: need.largest(room) for device, room in rooms.items()}
        figures[stage] = {
            "weights": need.weights,
            "gradients": need.gradients,
            "optimizer": need.optimizer,
            "activations": need.once,
            "activations_per_row": need.row,
            "passing_per_row": need.passing,
            "tokens_per_row": tokens[stage],
            "largest_micro_batch": fits,
            "micro_batch": wanted,
        }
        most = ", ".join(f"{count:,} on {device}" for device, count in fits.items())
        said = {"weights": need.weights, "gradients": need.gradients, "optimizer": need.optimizer}
        parts = [f"{bytes_of(size)} {name}" for name, size in {**said, "activations": need.once}.items()]
        lines.append(
            f"{stage}: {', '.join(parts)}, {bytes_of(need.one_more)} more for each row of {tokens[stage]} tokens; "
            f"rows that fit: {most} (recipe: {wanted})"
        )
        if wanted > fits[here]:
            too_many.append(f"{wanted} in {stage}")
    doubts = [f"micro-batches that do not fit on {here}: {', '.join(too_many)}"] * bool(too_many)
    if any(arguments[stage].fsdp for stage in needs):
        doubts.append("these are figures of one process that shares nothing, but fsdp shares")
    figures["devices"] = dict(rooms)
    figures["processes"] = processes
    figures["measured_on"] = measured
    lines += [*doubts, f"activations measured {measured}, the rest counted"]
    if any(zero_stage(arguments[stage]) for stage in needs):
        shared = f"what each of {processes} processes keeps, of what DeepSpeed's ZeRO divides among them"
        alone = "what one process keeps, with none to divide by DeepSpeed's ZeRO; --processes N tells of more"
        lines.append(shared if processes > 1 else alone)
    return Finding("memory", "warning" if doubts else "ok", "\n".join(lines), figures)


def need_of(
    method: Method,
    whole: Method,
    stage: Stage,
    dataset: TrainingSet,
    arguments: TrainingArguments,
    layers: Sequence[Layers],
    device: torch.device,
) -> tuple[Need, int]:
    """What `stage`, the present one of both, takes, and the tokens of the rows that were tried.

    `whole` is `method` itself or, where that has fewer layers, the whole of it on the meta device.
    """
    frozen = (*method.teachers(), *method.followers())
    names = set(freeze(whole, stage.trainable, frozen))
    trained = [parameter for name, parameter in whole.named_parameters() if name in names]
    freeze(method, stage.trainable, frozen)
    method.train()
    method.begin_stage(stage, 1)
    method.begin_step(0)
    item, tokens = longest_item(dataset)
    first, second = (_kept(method, batch_of(dataset, [item] * rows, device), layers, arguments) for rows in (1, 2))
    checkpointing = bool(arguments.gradient_checkpointing)
    one, two = (_extrapolated(kept, layers, checkpointing=checkpointing) for kept in (first, second))
    row = max(0, two - one)
    weights, gradients, optimizer = state_bytes(whole, trained, arguments)
    need = Need(
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        once=max(0, one - row),
        row=row,
        passing=max(0, second.passing - first.passing),
    )
    return need, tokens


def state_bytes(whole: nn.Module, trained: Sequence[Tensor], arguments: TrainingArguments) -> tuple[int, int, int]:
    """Weights, gradients and optimizer of a process that shares nothing; a method on the meta device will do."""
    everything = [*whole.parameters(), *whole.buffers()]
    optimizer = optimizer_bytes(str(arguments.optim.value), trained)  # pyright: ignore[reportAttributeAccessIssue]
    if not is_half(arguments):
        return _bytes(everything), _bytes(trained), optimizer
    copies = _bytes(trained)
    floating = [x for x in everything if x.is_floating_point()]
    return _bytes(everything) - _bytes(floating) // 2, copies // 2, copies + optimizer


def is_half(arguments: TrainingArguments) -> bool:
    """Whether DeepSpeed holds the weights themselves in half precision."""
    if not arguments.deepspeed:
        return False
    wanted = {"bf16.enabled": arguments.bf16, "fp16.enabled": arguments.fp16}
    config = HfDeepSpeedConfig(arguments.deepspeed)
    found = {key: config.get_value(key, False) for key in wanted}
    return any(wanted[key] if value == "auto" else value for key, value in found.items())


def zero_stage(arguments: TrainingArguments) -> int:
    """DeepSpeed's ZeRO stage, 0 without it."""
    if not arguments.deepspeed:
        return 0
    return int(HfDeepSpeedConfig(arguments.deepspeed).get_value("zero_optimization.stage") or 0)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(x.numel() * x.element_size() for x in tensors)


def optimizer_bytes(name: str, trained: Sequence[Tensor]) -> int:
    """What an optimizer of TrainingArguments keeps of weights; states are as precise as they, or of 8 or 4 bits."""
    plain = name.removeprefix("paged_")
    states = next((count for start, count in STATES.items() if plain.startswith(start)), 2)
    bits = 8 if "8bit" in plain else 4 if "4bit" in plain else None
    return sum(states * x.numel() * (x.element_size() * 8 if bits is None else bits) // 8 for x in trained)


def _kept(method: Method, batch: Any, layers: Sequence[Layers], arguments: TrainingArguments) -> Kept:
    """One forward pass, every tensor that autograd keeps counted once; weights are not."""
    kept, seen = Kept(), {x.untyped_storage().data_ptr() for x in (*method.parameters(), *method.buffers())}
    inside: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            if inside:
                kept.layers[inside[-1]] += storage.nbytes()
            else:
                kept.other += storage.nbytes()
        return tensor.detach()

    def enter(number: int) -> Callable[..., None]:
        def hook(_layer: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            inside.append(number)
            states = next(x for x in (*given, *named.values()) if isinstance(x, Tensor) and x.is_floating_point())
            kept.layers.setdefault(number, 0)
            kept.inputs[number] = kept.inputs.get(number, 0) + states.numel() * states.element_size()

        return hook

    def leave(_layer: nn.Module, _given: Any, _output: Any) -> None:
        inside.pop()

    every = [layer for group in layers for layer in group.here]
    handles = [layer.register_forward_pre_hook(enter(number), with_kwargs=True) for number, layer in enumerate(every)]
    handles += [layer.register_forward_hook(leave) for layer in every]
    dtype = torch.bfloat16 if arguments.bf16 else torch.float16
    half = torch.autocast(batch["input_ids"].device.type, dtype=dtype, enabled=arguments.bf16 or arguments.fp16)
    try:
        hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x)
        with torch.random.fork_rng(devices=[]), LiveBytes(method) as live, hooks, half:
            loss = method(batch)
            kept.passing = live.peak - live.live
        del loss
    finally:
        for handle in handles:
            handle.remove()
    return kept


def _extrapolated(kept: Kept, layers: Sequence[Layers], *, checkpointing: bool) -> int:
    """Bytes of the whole model: layers that are not here are like the last one that is."""
    total, first, largest = kept.other, 0, 0
    for group in layers:
        numbers = range(first, first + len(group.here))
        first += len(group.here)
        sizes = [kept.layers.get(number, 0) for number in numbers]
        largest = max(largest, *sizes)
        if checkpointing:
            sizes = [kept.inputs.get(number, 0) if size else 0 for number, size in zip(numbers, sizes, strict=True)]
        total += sum(sizes) + (group.whole - len(sizes)) * sizes[-1]
    return total + (largest if checkpointing else 0)
