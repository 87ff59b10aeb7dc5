"""What every method's recipe has: where it runs to, its seed, its stages' names and TrainingArguments."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, ClassVar, Literal, get_args, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from transformers import TrainingArguments

from limbeck.config import Section
from limbeck.data.order import ORDERS
from limbeck.errors import WrongInput
from limbeck.explain import nearest


class RecipeError(WrongInput):
    """A recipe that cannot run; the message names the file, the key, what was found and what would be right."""


class StageSettings(Section):
    """What a stage of any method has."""

    name: str = Field(default="pretrain", pattern=r"^[a-z0-9_-]+$")
    trainable: tuple[str, ...] = ()
    """globs over parameter names; empty: what the method trains in such a stage"""
    training: dict[str, Any] = Field(default_factory=dict)
    """TrainingArguments that this stage overrides"""


class ScheduleConfig(Section):
    """The papers' learning rate: linear warm-up by steps, then one value per epoch."""

    kind: Literal["epoch_exponential", "epoch_cosine"]
    """max(minimum, rate^epoch), as DLIP pre-trains; or a cosine by epoch to the minimum, as BLIP fine-tunes"""
    rate: float = Field(default=0.85, gt=0, le=1)
    warmup_steps: int = Field(default=0, ge=0)
    warmup_from: float = Field(default=1e-6, ge=0)
    """absolute learning rate at step 0"""
    minimum: float = Field(default=1e-6, ge=0)
    """absolute learning rate that it never falls below"""


CHANGEABLE_TRAINING = (
    "dataloader_num_workers",
    "dataloader_pin_memory",
    "dataloader_prefetch_factor",
    "disable_tqdm",
    "logging_steps",
    "report_to",
    "save_steps",
    "save_total_limit",
)
"""TrainingArguments that change no result"""


class RunSettings(Section):
    """What a recipe of any method has."""

    output: str
    """the run folder"""
    seed: int = 42
    training: dict[str, Any] = Field(default_factory=dict)
    """TrainingArguments by their own names"""
    schedule: ScheduleConfig | None = None
    """None: TrainingArguments' lr_scheduler_type"""
    changeable: ClassVar[tuple[str, ...]] = (
        "output",  # the folder was moved, or is called by another path
        "export",
        "data.max_skipped",
        *(f"evaluation.*{name}" for name in ("max_skipped", "batch_size", "pair_batch", "workers")),
        *(f"training.{name}" for name in CHANGEABLE_TRAINING),
    )
    """globs over keys that change no result: a run folder goes on where they differ"""
    gradient_share_steps: int = Field(default=200, ge=0)
    """how often each term's share of the gradient is measured, in steps; it costs a backward pass per term; 0 never"""


def check_stages(recipe: RunSettings, stages: Sequence[StageSettings]) -> None:
    """Raise ValueError where stages share a name, or a setting is none of TrainingArguments' or not to be had there."""
    check_training("training", recipe.training)
    for index, stage in enumerate(stages):
        check_training(f"stages.{index}.training", stage.training)
    names = [stage.name for stage in stages]
    if len(set(names)) < len(names):
        raise ValueError(f"stages: two stages of one name in {names}; a name is a checkpoint folder")
    shared = [stage.name for stage in stages if {**recipe.training, **stage.training}.get("deepspeed")]
    if shared and recipe.gradient_share_steps:
        raise ValueError(
            f"gradient_share_steps {recipe.gradient_share_steps}: under training.deepspeed ({', '.join(shared)}) no "
            "single term's gradient can be measured, as ZeRO takes every gradient for the step's; set it 0"
        )


LIMBECKS_OWN = {
    "output_dir": "limbeck sets it from the recipe's `output`",
    "seed": "limbeck sets it from the recipe's `seed`",
}
"""TrainingArguments that other keys of a recipe set."""
NOT_TO_BE_HAD = {
    "label_smoothing_factor": "the losses are the method's own; DLIP's captions have `dlip.vlp.label_smoothing`",
    "neftune_noise_alpha": "limbeck's models have no noise in their embeddings",
    "push_to_hub": "a run uploads nothing; `hf upload` does, once it is done",
    "eval_strategy": "models are tried when they are done, as the recipe's `evaluation` says",
    "save_only_model": "a run could not go on from such a checkpoint",
    "ignore_data_skip": "a run that goes on would see other data than one that never stopped",
    "resume_from_checkpoint": "the same command goes on by itself from the run folder's last checkpoint",
    "dataloader_persistent_workers": "a run that goes on would see other data than one that never stopped",
}
"""TrainingArguments that stay at their default, and why."""
LEAST = {"learning_rate": 0, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 1}
"""TrainingArguments that TrainingArguments itself takes at any number."""
_ANY_TYPE = ConfigDict(strict=True, arbitrary_types_allowed=True)


def check_training(where: str, settings: Mapping[str, Any]) -> None:
    """Raise ValueError where a setting is no field of TrainingArguments, of a wrong type or size, or not to be had."""
    known = {field.name: field.default for field in dataclasses.fields(TrainingArguments) if field.init}
    types = get_type_hints(TrainingArguments)
    for name, value in settings.items():
        if name in LIMBECKS_OWN:
            raise ValueError(f"{where}.{name}: {LIMBECKS_OWN[name]}")
        if name not in known:
            raise ValueError(f"{where}.{name}: TrainingArguments has no such setting{nearest(name, known)}")
        try:
            TypeAdapter(types[name], config=_ANY_TYPE).validate_python(value)
        except ValidationError as error:
            raise ValueError(f"{where}.{name}: {error.errors()[0]['msg']} (found {value!r})") from None
        choices = ORDERS if name == "train_sampling_strategy" else _enum_values(types[name])
        if choices and value not in choices:
            raise ValueError(f"{where}.{name}: {value!r} is none of {', '.join(choices)}{nearest(value, choices)}")
        if name in NOT_TO_BE_HAD and value != known[name]:
            raise ValueError(f"{where}.{name}: {NOT_TO_BE_HAD[name]}; leave it out (found {value!r})")
        if name in LEAST and not LEAST[name] <= value < math.inf:
            raise ValueError(f"{where}.{name}: wanted {LEAST[name]} or more (found {value!r})")


def _enum_values(annotation: Any) -> list[str]:
    """What an enum within an annotation has to choose from."""
    kinds = [kind for kind in get_args(annotation) if isinstance(kind, type) and issubclass(kind, Enum)]
    return [member.value for kind in kinds for member in kind]
