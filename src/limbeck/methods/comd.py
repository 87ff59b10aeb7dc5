"""CoMD: a student tuned on a teacher's answers, in rounds between which both compete (Li et al., 2023).

    connect   L = - log p(answer | picture, question)        the connector alone         (section 3.2, pre-training)
    tune      the same                                       connector and language model, once for each pool

L is the mean over the tokens of all answers and of the stop tokens behind them, of the whole optimizer step, and no
other token's. The eye never trains. What a round does besides, asking, assessing and writing new instructions, happens
after a stage has trained: `between`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Literal

from torch import Tensor, nn
from transformers import PreTrainedModel

from limbeck.losses.divergence import linear_cross_entropy
from limbeck.method import Loss, Method, Stage
from limbeck.methods.recompute import recompute_frozen
from limbeck.models.lora import TRAINED, Lora, add_lora
from limbeck.models.vlm import check_head, hidden_states, parts_of
from limbeck.types import IGNORE

STUDENT = "student"
_NOT_INPUTS = ("labels", "image_id", "has_image", "counts")
"""Of a batch, what the student is not given."""


@dataclass(frozen=True, kw_only=True)
class StudentStage(Stage):
    """A stage of CoMD. An empty `trainable` means what its kind trains."""

    kind: Literal["connect", "tune"]


class CoMD(Method):
    """The student, and the loss on its answers.

    `student` is any image-text-to-text model of transformers whose parts are known (`limbeck.models.vlm.PARTS`), or one
    of another class where every stage names what it trains. With `lora` the language model's own weights stay as they
    are, and `tune` trains adapters in it. Raises ValueError where a stage's parts are not known.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        plan: Sequence[StudentStage],
        between: Callable[[Stage], None] | None = None,
        lora: Lora | None = None,
    ):
        super().__init__()
        check_head(student)
        if lora is not None:
            add_lora(student, [name for name in parts_of(student).language if name != "lm_head"], lora)
        self.student = student
        self.plan = tuple(
            replace(stage, trainable=stage.trainable or trained_by(stage.kind, student, lora is not None))
            for stage in plan
        )
        self.between = between
        self.stage = self.plan[0]
        self._keeps_activations = True

    def stages(self) -> Iterator[Stage]:
        for stage in self.plan:
            self.stage = stage
            yield stage
            if self.between is not None:
                self.between(stage)

    def teachers(self) -> tuple[str, ...]:
        """What no stage so far has changed; checkpoints leave it out."""
        plan = self.plan[: self.plan.index(self.stage) + 1]
        return self._untouched(glob for stage in plan for glob in stage.trainable)

    def followers(self) -> tuple[str, ...]:
        return ()

    def train(self, mode: bool = True) -> CoMD:
        """What the stage does not train stays without dropout."""
        super().train(mode)
        for name in self._untouched(self.stage.trainable):
            self.get_submodule(name).eval()
        if mode and not self._keeps_activations:
            recompute_frozen(self.student)
        return self

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict | None = None, every_n_layers: int = 1, offload: bool = False
    ) -> None:
        """What TrainingArguments' `gradient_checkpointing` asks of a model."""
        self._keeps_activations = False
        self.student.activation_checkpointing_enable(activation_checkpointing_kwargs, every_n_layers, offload)

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict | None = None, every_n_layers: int = 1, offload: bool = False
    ) -> None:
        """The same, as earlier versions of transformers ask it."""
        self._keeps_activations = False
        self.student.gradient_checkpointing_enable(
            gradient_checkpointing_kwargs, every_n_layers=every_n_layers, offload=offload
        )

    def begin_stage(self, stage: Stage, steps_per_epoch: int) -> None:
        assert isinstance(stage, StudentStage)
        self.stage = stage

    def begin_step(self, step: int) -> None:
        pass

    def forward(self, batch: Mapping[str, Any]) -> Loss:
        """A batch as `ProcessedDialogues` or, for LLaVA's classes, `Dialogues` collates it: labels [B, T] shifted."""
        answers = batch["labels"] != IGNORE
        hidden = hidden_states(self.student, _inputs(batch))[answers]
        head = self.student.get_output_embeddings()
        assert isinstance(head, nn.Linear)
        weight = (1 / batch["counts"].answer_tokens).expand(len(hidden))
        language = linear_cross_entropy(hidden, head.weight, batch["labels"][answers], weight, bias=head.bias)
        return Loss(terms={"language": language}, weights={"language": 1.0})

    def _untouched(self, trainable: Iterable[str]) -> tuple[str, ...]:
        """The largest modules in which the globs match nothing."""
        globs = tuple(trainable)
        touched = {
            id(parameter)
            for name, parameter in self.named_parameters()
            if any(fnmatchcase(name, glob) or name.startswith(f"{glob}.") for glob in globs)
        }
        return tuple(_without(self.student, STUDENT, touched))


def trained_by(kind: str, student: PreTrainedModel, lora: bool) -> tuple[str, ...]:
    """Globs of what a kind of stage trains. Raises ValueError for a class of unknown parts."""
    parts = parts_of(student)
    language = (f"{STUDENT}.{TRAINED}",) if lora else _under_student(parts.language)
    return _under_student(parts.connector) + (() if kind == "connect" else language)


def _under_student(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"{STUDENT}.{name}" for name in names)


def _without(module: nn.Module, name: str, touched: set[int]) -> Iterator[str]:
    """The names of the largest modules with parameters, none of which is touched."""
    parameters = [id(parameter) for parameter in module.parameters()]
    if parameters and not touched & set(parameters):
        yield name
    elif parameters:
        for child_name, child in module.named_children():
            yield from _without(child, f"{name}.{child_name}", touched)


def _inputs(batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """What the student is given: pictures of the rows that have one."""
    inputs = {name: value for name, value in batch.items() if name not in _NOT_INPUTS}
    if "has_image" in batch:
        shown = inputs.pop("pixel_values")[batch["has_image"]]
        if len(shown):
            inputs["pixel_values"] = shown
    return inputs
