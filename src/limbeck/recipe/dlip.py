"""The recipe of DLIP: a student, its teacher, the data, the losses' weights by stage."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from limbeck.config import Section
from limbeck.data.dataset import PairsConfig
from limbeck.data.order import BY_LENGTH
from limbeck.data.sources import SourceConfig
from limbeck.data.tokenizer import BertTokenizer, TokenizerConfig
from limbeck.data.transform import TransformConfig
from limbeck.evaluation.evaluate import EvaluationConfig
from limbeck.methods.dlip import DLIPConfig
from limbeck.recipe.shared import RunSettings, StageSettings, check_stages


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
    """whether the decoder that answers questions is the caption decoder, or one of its own as in the VQA of BLIP and
    ALBEF; with `folder`, `separate` starts it as a copy of the caption decoder (ALBEF: of the fusion layers) and `tied`
    leaves the model as it is"""
    image_size: int | None = Field(default=None, gt=0)
    """with `folder`: the picture size to go on with, positions interpolated"""
    drop_path: float | None = Field(default=None, ge=0, lt=1)
    """with `folder`: the image tower's drop path to go on with (BLIP's VQA: 0.1)"""
    initial_vision: str = "random"
    """`random`, `teacher` (slices of it), or a folder or hub name with a pretrained vision transformer (a CLIP for a
    clip)"""
    initial_text: str = "random"
    """`random`, `teacher` (slices of it), or a folder or hub name with a pretrained BERT (a CLIP for a clip)"""

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


class StageConfig(StageSettings):
    """One stage of training. With no `trainable` everything trains but the teacher and the momentum encoders."""

    weights: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(default_factory=dict)
    """weight by loss term (`hidden/image`) or group of them (`hidden`); empty: 1 for all that the models allow"""


class DLIPRecipe(RunSettings):
    """Everything that a DLIP run does."""

    method: Literal["dlip"] = "dlip"
    student: StudentConfig
    teacher: TeacherConfig | None = None
    """None trains without distillation"""
    tokenizer: TokenizerConfig = BertTokenizer(tokenizer="bert")
    data: DataConfig
    dlip: DLIPConfig = DLIPConfig()
    stages: tuple[StageConfig, ...] = (StageConfig(),)
    evaluation: EvaluationConfig = EvaluationConfig()
    profile_batch_size: int = Field(default=1, ge=1)
    """pairs at a time when latency is measured"""
    export: tuple[Literal["captioning", "retrieval", "vqa", "clip"], ...] = ()
    """transformers folders to write beside the student"""

    @model_validator(mode="after")
    def _consistent(self) -> DLIPRecipe:
        check_stages(self, self.stages)
        for stage in self.stages:
            training = {**self.training, **stage.training}
            if training.get("train_sampling_strategy") == BY_LENGTH:
                raise ValueError(f"training.train_sampling_strategy: {BY_LENGTH!r} is of conversations; leave it out")
            for key in ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs"):  # the old name
                for name in ("use_reentrant", "offload"):
                    if (training.get(key) or {}).get(name):
                        raise ValueError(f"training.{key}.{name}: DLIP cannot do so; leave it out")
        return self
