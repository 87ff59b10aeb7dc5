"""The recipe of CoMD: a student, those who teach and judge it, and the competition in which it is tuned in rounds."""

from __future__ import annotations

from itertools import product
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from limbeck.competition.endpoints import EndpointsConfig
from limbeck.competition.instruction_file import InstructionFileConfig
from limbeck.competition.rules import Rules
from limbeck.config import Section
from limbeck.data.chat import ChatConfig
from limbeck.data.conversation_sources import AnyConversations, ConversationSourceConfig
from limbeck.data.decoder_tokenizer import BpeTokenizer, DecoderTokenizerConfig
from limbeck.evaluation.generative.benchmarks import BenchmarkConfig, check_benchmarks
from limbeck.evaluation.generative.model import AnsweringConfig
from limbeck.recipe.shared import RunSettings, StageSettings, check_stages, check_training
from limbeck.recipe.writers import ConversationsConfig, LanguageModelChoice

ROLES = ("teacher", "assessor", "augmentor", "judge")
UNPLANNED_RATES = ("reduce_lr_on_plateau", "greedy")
"""TrainingArguments' schedules that depend on more than the step"""
HOW_SERVERS_ARE_ASKED = ("endpoint", "key_env", "concurrency", "timeout", "retries", "patience", "length_field")
"""Fields of a role that change no answer: a run goes on with the same model elsewhere."""


class StudentChoice(Section):
    """Any image-text-to-text model of transformers by `folder`, or a LLaVA made of an eye and a language model."""

    folder: str | None = None
    """a folder or hub name with its processor, or limbeck:NAME"""
    eye: str | None = None
    """a CLIP, SigLIP or ViT folder or hub name, a model of limbeck's, or limbeck:NAME; it never trains"""
    language: LanguageModelChoice | None = None
    connector: Literal["linear", "mlp"] = "linear"
    """from the eye's width to the language model's: one layer, as in the paper, or LLaVA-1.5's mlp2x_gelu"""
    eye_layer: int = -2
    """whose hidden states are the picture"""

    @model_validator(mode="after")
    def _one_origin(self) -> StudentChoice:
        if (self.folder is None) == (self.eye is None) or (self.eye is None) != (self.language is None):
            raise ValueError("give `folder`, or `eye` and `language` of a new model")
        return self


class LocalRole(Section):
    """A role filled by a model in this process."""

    folder: str
    """of an image-text-to-text model with its processor, a hub name, or limbeck:NAME"""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto: the one its weights were saved in"""
    batch_size: int = Field(default=16, ge=1)
    """requests at once"""


def _where(value: Any) -> str:
    """Which kind of role a section is: a model's folder, unless it names a server."""
    keys = value if isinstance(value, dict) else getattr(type(value), "model_fields", ())
    return EndpointsConfig.__name__ if "endpoint" in keys else LocalRole.__name__


RoleConfig = Annotated[
    Annotated[LocalRole, Tag(LocalRole.__name__)] | Annotated[EndpointsConfig, Tag(EndpointsConfig.__name__)],
    Discriminator(_where),
]


class LoraConfig(Section):
    """Low-rank adapters on the language model's linear layers, merged into it when the student is saved."""

    rank: int = Field(default=16, ge=1)
    alpha: float = Field(default=32, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)


class CoMDStageConfig(StageSettings):
    """A stage before the competition (section 3.2 of the paper: pre-training)."""

    kind: Literal["connect", "tune"]
    """`connect` trains the connector alone, `tune` the language model too"""
    data: tuple[ConversationSourceConfig, ...] = Field(min_length=1)
    """sources, joined in this order"""
    chat: ChatConfig | None = None
    """the template that makes a text of a conversation; null: the student's own"""


class TuningConfig(Section):
    """How the student is tuned on each round's answers."""

    pool: Literal["tuning", "cache"] = "tuning"
    """what a tuning learns: D_T, the last round's new instructions, as in the paper; or D_C, all so far"""
    turns: Literal["multi", "single"] = "multi"
    """all about a picture as one conversation, as in the paper; or every instruction by itself. In a conversation a new
    instruction may only say an earlier one again: a small student learns to copy its answer there, not to look"""
    schedule: Literal["each", "whole"] = "each"
    """the learning rate of `training` rises and falls in each tuning; or it falls over all of them together, each with
    a warm-up of its own"""
    chat: ChatConfig | None = None
    """null: the student's own template"""
    trainable: tuple[str, ...] = ()
    """globs over parameter names; empty: connector and language model"""
    training: dict[str, Any] = Field(default_factory=dict)
    """TrainingArguments of each tuning"""


InstructionSourceConfig = Annotated[AnyConversations | InstructionFileConfig, Field(discriminator="source")]


class CompetitionConfig(Rules):
    """The loop (the paper's section 3.3), by its rules."""

    data: tuple[InstructionSourceConfig, ...] = Field(min_length=1)
    """pictures and instructions of the first pool; what is answered in them is dropped"""
    tunings: int = Field(default=4, ge=1)
    """after each but the last, both are assessed and the pool is augmented"""
    tuning: TuningConfig = TuningConfig()


class CoMDEvaluationConfig(Section):
    """What the student is tried on after every tuning, and the teacher once."""

    benchmarks: tuple[BenchmarkConfig, ...] = ()
    answering: AnsweringConfig = AnsweringConfig()
    teacher: bool = True
    """try the teacher too, where it is a model in this process"""


class CoMDRecipe(RunSettings):
    """Everything that a CoMD run does."""

    changeable: ClassVar[tuple[str, ...]] = (
        *RunSettings.changeable,
        "data.dialogues.max_left_out",
        "judge",  # named later, or no more
        "competition.attempts",
        "competition.prompts.assessor",  # the pool keeps which prompt an assessment answers, and closed rounds stay
        *(f"{role}.{name}" for role, name in product(ROLES, HOW_SERVERS_ARE_ASKED)),
    )
    method: Literal["comd"]
    student: StudentChoice
    tokenizer: DecoderTokenizerConfig | None = None
    """of a new student"""
    teacher: RoleConfig | None = None
    """who answers; null where there is no competition"""
    assessor: RoleConfig | None = None
    """null: the teacher"""
    augmentor: RoleConfig | None = None
    """null: the teacher"""
    judge: RoleConfig | None = None
    """of benchmarks that want one; null: none"""
    data: ConversationsConfig = ConversationsConfig()
    lora: LoraConfig | None = None
    stages: tuple[CoMDStageConfig, ...] = ()
    """before the competition"""
    competition: CompetitionConfig | None = None
    evaluation: CoMDEvaluationConfig = CoMDEvaluationConfig()
    profile_batch_size: int = Field(default=1, ge=1)
    """answers at a time when latency is measured"""
    profile_words: int = Field(default=16, ge=1)
    """words of the question that is asked then"""

    @model_validator(mode="after")
    def _consistent(self) -> CoMDRecipe:
        if not self.all_stages:
            raise ValueError("stages, competition: there is nothing to train; give one of them")
        if self.tunings and self.teacher is None:
            raise ValueError("teacher: missing; the competition needs one that answers")
        if (self.student.folder is None) == (self.tokenizer is None):
            raise ValueError("tokenizer: a new student (student.eye) needs one, and a folder brings its own")
        if isinstance(self.tokenizer, BpeTokenizer) and not self.stages:
            raise ValueError("tokenizer: bpe is trained on what the stages say, and there are none; give a folder's")
        clash = {stage.name for stage in self.stages} & {tuning_name(number) for number in range(1, self.tunings + 1)}
        if clash:
            raise ValueError(f"stages: {', '.join(sorted(clash))} is the name of a tuning; choose another")
        check_stages(self, self.stages)
        check_benchmarks(self.evaluation.benchmarks, judge=self.judge is not None)
        if self.competition is not None:
            check_training("competition.tuning.training", self.competition.tuning.training)
            self._check_schedule(self.competition.tuning)
        return self

    def _check_schedule(self, tuning: TuningConfig) -> None:
        """Raise ValueError where one schedule is wanted over tunings whose length or rate is not known beforehand."""
        if tuning.schedule == "each":
            return
        training = self.training | tuning.training
        kind = training.get("lr_scheduler_type", "linear")
        if training.get("max_steps", -1) <= 0:
            raise ValueError(
                "competition.tuning.schedule: whole needs training.max_steps, as how many instructions later tunings "
                "will have is not known"
            )
        if self.schedule is not None or kind in UNPLANNED_RATES:
            own = "the recipe's `schedule`" if self.schedule is not None else f"training.lr_scheduler_type {kind}"
            raise ValueError(f"competition.tuning.schedule: {own} cannot go on over several tunings; wanted each")

    @property
    def all_stages(self) -> tuple[StageSettings, ...]:
        """Those before the competition and its tunings."""
        names = [tuning_name(number) for number in range(1, self.tunings + 1)]
        tuning = self.competition.tuning if self.competition else TuningConfig()
        tunings = (StageSettings(name=name, trainable=tuning.trainable, training=tuning.training) for name in names)
        return (*self.stages, *tunings)

    @property
    def tunings(self) -> int:
        """Tunings of the competition, 0 without one."""
        return self.competition.tunings if self.competition else 0


def tuning_name(number: int) -> str:
    """The stage of a tuning, counted from 1."""
    return f"tune-{number}"
