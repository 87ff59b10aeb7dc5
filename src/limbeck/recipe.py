"""A recipe: strict YAML that says everything a run does. Reading one finds every mistake before anything trains.

A recipe can start from another one (`base: other.yaml`, a path beside it) and say only what differs. Dotted overrides
(`training.learning_rate=1e-4`) come last.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from enum import Enum
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from transformers import TrainingArguments

from limbeck.config import Section
from limbeck.data.dataset import PairsConfig
from limbeck.data.sources import SourceConfig
from limbeck.data.tokenizer import BertTokenizer, TokenizerConfig
from limbeck.data.transform import TransformConfig
from limbeck.evaluation.evaluate import EvaluationConfig
from limbeck.explain import explain, nearest
from limbeck.methods.dlip import DLIPConfig

SHIPPED = Path(str(files("limbeck"))) / "recipes"


class RecipeError(Exception):
    """A recipe that cannot run; the message names the file, the key, what was found and what would be right."""


class VisionChoice(Section):
    """An image tower: one of DLIP's Table 1 by `scale`, with single values changed, or all of them given."""

    scale: Literal["base", "middle", "small", "tiny"] | None = None
    width: int | None = None
    layers: int | None = None
    heads: int | None = None
    patch_size: int = 16
    image_size: int = 224
    drop_path: float = 0.0


class TextChoice(Section):
    """A text tower: one of DLIP's Table 1 by `scale`, with single values changed, or all of them given."""

    scale: Literal["base", "middle", "small", "tiny"] | None = None
    width: int | None = None
    layers: int | None = None
    heads: int | None = None
    fusion_layers: int | None = None
    """only the last so many layers look at the picture; null: all of them"""
    dropout: float = 0.1
    max_positions: int = 512


class StudentConfig(Section):
    """The model that is trained: built by family and scale, or taken from a folder."""

    folder: str | None = None
    """a model to go on training, for fine-tuning: a folder or hub name; of the other fields only `answer_decoder`,
    `image_size` and `drop_path` go with it"""
    family: Literal["blip", "albef", "clip"] = "blip"
    vision: VisionChoice | None = None
    text: TextChoice | None = None
    embedding: int = Field(default=256, gt=0)
    """width of the space in which pictures and texts are compared"""
    answer_decoder: Literal["tied", "separate"] = "tied"
    """whether the decoder that answers questions is the caption decoder, or one of its own as in BLIP's VQA; with
    `folder`, `separate` starts it as a copy of the caption decoder and `tied` leaves the model as it is"""
    image_size: int | None = Field(default=None, gt=0)
    """with `folder`: the picture size to go on with, positions interpolated"""
    drop_path: float | None = Field(default=None, ge=0, lt=1)
    """with `folder`: the image tower's drop path to go on with (BLIP's VQA: 0.1)"""
    initial_vision: str = "random"
    """`random`, `teacher` (slices of it), or a folder or hub name with a pretrained vision transformer"""
    initial_text: str = "random"
    """`random`, `teacher` (slices of it), or a folder or hub name with a pretrained BERT"""

    @model_validator(mode="after")
    def _one_origin(self) -> StudentConfig:
        if self.folder is None and (self.vision is None or self.text is None):
            raise ValueError("give both `vision` and `text`, or the `folder` of a trained model")
        if self.folder is not None and (self.vision is not None or self.text is not None):
            raise ValueError("give `folder`, or `vision` and `text`, not both")
        if self.folder is None and (self.image_size is not None or self.drop_path is not None):
            raise ValueError("`image_size` and `drop_path` here go with `folder`; a new model has them in `vision`")
        if self.folder is not None and (self.initial_vision != "random" or self.initial_text != "random"):
            raise ValueError("`initial_vision` and `initial_text` are for a new model; `folder` brings its own weights")
        return self


class TeacherConfig(Section):
    """The model that is compressed."""

    folders: tuple[str, ...] = Field(min_length=1)
    """model folders, files or hub names; several are merged, since no published one holds all of BLIP's parts"""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """what the teacher computes in; bfloat16 is about twice as fast"""
    image_size: int | None = Field(default=None, gt=0)
    """picture size to use it at, positions interpolated; it must be the student's. None: its own"""


class DataConfig(Section):
    """What is trained on."""

    train: tuple[SourceConfig, ...] = Field(min_length=1)
    """sources, joined in this order"""
    root: str = "."
    """folder that the relative paths of these sources and of `evaluation` start from"""
    transform: TransformConfig = TransformConfig()
    pairs: PairsConfig = PairsConfig()
    max_skipped: float = Field(default=0.01, ge=0, le=1)
    """share of broken records and pictures past which the run stops"""


class StageConfig(Section):
    """One stage of training."""

    name: str = Field(default="pretrain", pattern=r"^[a-z0-9_-]+$")
    trainable: tuple[str, ...] = ()
    """globs over parameter names; empty: everything but the teacher and the momentum encoders"""
    weights: dict[str, float] = Field(default_factory=dict)
    """weight by loss term (`hidden/image`) or group of them (`hidden`); empty: 1 for all that the models allow"""
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


class Recipe(Section):
    """Everything a run does."""

    method: Literal["dlip"] = "dlip"
    output: str
    """the run folder"""
    seed: int = 42
    student: StudentConfig
    teacher: TeacherConfig | None = None
    """None trains without distillation"""
    tokenizer: TokenizerConfig = BertTokenizer(tokenizer="bert")
    data: DataConfig
    dlip: DLIPConfig = DLIPConfig()
    stages: tuple[StageConfig, ...] = (StageConfig(),)
    training: dict[str, Any] = Field(default_factory=dict)
    """TrainingArguments by their own names"""
    schedule: ScheduleConfig | None = None
    """None: TrainingArguments' lr_scheduler_type"""
    gradient_share_steps: int = Field(default=200, ge=0)
    """how often each term's share of the gradient is measured, in steps; it costs a backward pass per term; 0 never"""
    evaluation: EvaluationConfig = EvaluationConfig()
    profile_batch_size: int = Field(default=1, ge=1)
    """pairs at a time when latency is measured"""
    export: tuple[Literal["captioning", "retrieval", "vqa", "clip"], ...] = ()
    """transformers folders to write beside the student"""

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        for where, settings in [("training", self.training)] + [
            (f"stages.{index}.training", stage.training) for index, stage in enumerate(self.stages)
        ]:
            _check_training(where, settings)
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f"stages: two stages of one name in {names}; a name is a checkpoint folder")
        return self


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe by path or by shipped name, apply overrides, check everything. Raises RecipeError."""
    path = find_recipe(name)
    values = _read(path, ())
    for override in overrides:
        _override(values, override)
    try:
        return Recipe.model_validate_json(json.dumps(values))
    except ValidationError as error:
        raise RecipeError(f"{path}:\n" + "\n".join(f"  {line}" for line in explain(error, Recipe))) from None


def find_recipe(name: str) -> Path:
    """The file of a recipe: a path, or a shipped name such as `dlip/quickstart` or `recipes/dlip/quickstart.yaml`."""
    path = Path(name)
    if path.is_file():
        return path
    short = name.removeprefix("recipes/").removesuffix(".yaml")
    if (SHIPPED / f"{short}.yaml").is_file():
        return SHIPPED / f"{short}.yaml"
    hint = nearest(short, shipped_recipes()) or "; `limbeck recipe list` shows those that ship"
    raise RecipeError(f"{name}: no such file and no shipped recipe{hint}")


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with limbeck."""
    return sorted(str(path.relative_to(SHIPPED).with_suffix("")) for path in SHIPPED.rglob("*.yaml"))


class _StrictLoader(yaml.SafeLoader):
    """YAML's safe loader, to which a key given twice is an error, 5e-4 a number, and `no` a word (YAML 1.2)."""


def _mapping(loader: _StrictLoader, node: yaml.MappingNode) -> dict:
    seen = set()
    for key, _ in node.value:
        if key.value in seen:
            raise yaml.constructor.ConstructorError(None, None, f"the key {key.value!r} is given twice", key.start_mark)
        seen.add(key.value)
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
_BOOL = "tag:yaml.org,2002:bool"
_StrictLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _BOOL]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_StrictLoader.add_implicit_resolver(_BOOL, re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in seen:
        raise RecipeError(f"{path}: `base` leads back to itself")
    if not path.is_file():
        raise RecipeError(f"{seen[-1]}: base: there is no file {path}")
    try:
        with path.open(encoding="utf-8") as file:
            values = yaml.load(file, Loader=_StrictLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of keys to values, found {type(values).__name__}")
    base = values.pop("base", None)
    if base is None:
        return values
    return _merge(_read(path.parent / str(base), (*seen, path.resolve())), values)


def _merge(base: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` over `base`, mappings key by key, everything else whole; so is a `tokenizer` of another kind."""
    merged = dict(base)
    for key, value in values.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict) and old.get(key) == value.get(key, old.get(key)):
            value = _merge(old, value)
        merged[key] = value
    return merged


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RecipeError(f"override {override!r}: write key.path=value, for example training.learning_rate=1e-4")
    try:
        value = yaml.load(text, Loader=_StrictLoader)
    except yaml.YAMLError as error:
        raise RecipeError(f"override {override!r}: {text!r} is not valid YAML: {error}") from None
    *parents, last = key.split(".")
    node: Any = values
    for depth, part in enumerate(parents):
        if isinstance(node, list):
            node = _item(node, part, override)
            continue
        child = node.setdefault(part, {})
        if not isinstance(child, dict | list):
            raise RecipeError(f"override {override!r}: {'.'.join(parents[: depth + 1])} is no section, it is {child!r}")
        node = child
    if isinstance(node, list):
        _item(node, last, override)
        node[int(last)] = value
    else:
        node[last] = value


def _item(items: list, part: str, override: str) -> Any:
    if not part.isdigit() or int(part) >= len(items):
        raise RecipeError(f"override {override!r}: {part!r} is no index of a list of {len(items)}")
    return items[int(part)]


_ANY_TYPE = ConfigDict(strict=True, arbitrary_types_allowed=True)


def _check_training(where: str, settings: Mapping[str, Any]) -> None:
    """Raise ValueError where a setting is no field of TrainingArguments, of a wrong type, or limbeck's own to set."""
    known = {field.name for field in dataclasses.fields(TrainingArguments) if field.init}
    types = get_type_hints(TrainingArguments)
    for name, value in settings.items():
        if name in ("output_dir", "seed"):
            raise ValueError(f"{where}.{name}: limbeck sets it from the recipe's `{name.partition('_')[0]}`")
        if name not in known:
            raise ValueError(f"{where}.{name}: TrainingArguments has no such setting{nearest(name, known)}")
        try:
            TypeAdapter(types[name], config=_ANY_TYPE).validate_python(value)
        except ValidationError as error:
            raise ValueError(f"{where}.{name}: {error.errors()[0]['msg']} (found {value!r})") from None
        choices = [member.value for kind in _enums(types[name]) for member in kind]
        if choices and value not in choices:
            raise ValueError(f"{where}.{name}: {value!r} is none of {', '.join(choices)}{nearest(value, choices)}")


def _enums(annotation: Any) -> list[type[Enum]]:
    return [kind for kind in get_args(annotation) if isinstance(kind, type) and issubclass(kind, Enum)]
