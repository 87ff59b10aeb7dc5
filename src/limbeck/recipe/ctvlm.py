"""The recipe of CTVLM: an eye, a tiny and a large language model, and the stages in which they learn together."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from limbeck.config import Section
from limbeck.data.chat import TEMPLATES, ChatConfig
from limbeck.data.conversation_sources import ConversationSourceConfig
from limbeck.data.decoder_tokenizer import DecoderTokenizerConfig
from limbeck.data.encoded_conversations import DialoguesConfig
from limbeck.evaluation.generative.benchmarks import BenchmarkConfig, asks, check_benchmarks
from limbeck.evaluation.generative.model import AnsweringConfig
from limbeck.recipe.shared import RunSettings, StageSettings, check_stages
from limbeck.recipe.writers import ConversationsConfig, LanguageModelChoice


class DuetChoice(Section):
    """The models (the paper's section 3.1) and how they are joined."""

    eye: str
    """a CLIP, SigLIP or ViT folder or hub name, a model of limbeck's, or limbeck:NAME; it never trains"""
    eye_layer: int = -2
    """whose hidden states are the picture; the last but one as in LLaVA"""
    tiny: LanguageModelChoice
    large: LanguageModelChoice
    embeddings: Literal["large_frozen", "resized"] = "large_frozen"
    """the tiny model's token table: the large model's own, frozen, or one of the tiny model's width, trained"""
    fusion: Literal["prefix+cross", "prefix", "cross"] = "prefix+cross"
    """how the tiny model sees: picture tokens in its sequence, cross-attention in every layer, or both"""
    connector: Literal["mlp", "linear"] = "mlp"
    """both maps between widths: LLaVA-1.5's mlp2x_gelu, or one layer"""
    features: Literal["I", "I+T", "P+I+T"] = "I+T"
    """what the large model reads of the tiny one: hidden states of picture, instruction, prompt (Table 5)"""
    embedding: int = Field(default=256, gt=0)
    """width of the space in which stage I-a compares pictures and texts"""


class CTVLMDataConfig(ConversationsConfig):
    """What every stage's data share."""

    dialogues: DialoguesConfig = DialoguesConfig(needs_image=True)

    @model_validator(mode="after")
    def _pictures(self) -> CTVLMDataConfig:
        if not self.dialogues.needs_image:
            raise ValueError("dialogues.needs_image: CTVLM's stages want a picture in every conversation; set it true")
        return self


class CTVLMStageConfig(StageSettings):
    """A stage (the paper's section 3.3)."""

    kind: Literal["language", "align_tiny", "align_large", "tune"]
    """I-a `align_tiny`, I-b `align_large`, II `tune`; `language` first, for models without pretrained weights"""
    data: tuple[ConversationSourceConfig, ...] = Field(min_length=1)
    """sources, joined in this order"""
    chat: ChatConfig = ChatConfig(template="plain")
    """the template that makes a text of a conversation; the last stage's is saved with the models"""
    kd: Literal["none", "forward", "reverse"] | None = None
    """KL(teacher || student), KL(student || teacher) or none; null: forward in I-b, reverse in II"""
    lambda_: float = Field(default=0.3, ge=0, lt=1, alias="lambda")
    """the divergence's share of the loss (Eqs. 3 and 4)"""
    temperature: float = Field(default=1.0, gt=0)
    """softens both models' distributions in the divergence"""
    on_policy: bool = False
    """take the divergence on answers that the student samples (Eq. 2), not on the data's"""
    negatives: Literal["rank", "all"] = "rank"
    """where stage I-a's matching draws its wrong pairs: this process's micro-batch, or every process's"""
    models: Literal["both", "tiny"] = "both"
    """`tiny` trains stage II without the large model (Table 4's "only TinyLMs")"""

    @model_validator(mode="after")
    def _fits_its_kind(self) -> CTVLMStageConfig:
        if self.kind in ("language", "align_tiny") and (self.kd or self.on_policy):
            raise ValueError(f"kd, on_policy: there is no divergence in a stage of kind {self.kind}")
        if self.kind != "align_tiny" and self.negatives != "rank":
            raise ValueError(f"negatives: there is no matching in a stage of kind {self.kind}")
        if self.kind == "align_tiny" and self.chat.template != "plain":
            raise ValueError("chat.template: stage I-a compares pictures with bare captions; its template is plain")
        if self.chat.picture != "first":
            raise ValueError(
                "chat.picture: the duet's features lie between picture and answer; the picture stands first"
            )
        if self.models == "tiny" and self.kind != "tune":
            raise ValueError(f"models: tiny goes with kind: tune, not {self.kind}")
        if self.models == "tiny" and (self.kd not in (None, "none") or self.on_policy):
            raise ValueError("kd, on_policy: with models: tiny there is no other model to learn from")
        return self

    @property
    def direction(self) -> Literal["none", "forward", "reverse"]:
        """`kd`, or what the paper does in such a stage."""
        if self.kd is not None:
            return self.kd
        if self.kind == "align_large":
            return "forward"
        return "reverse" if self.kind == "tune" and self.models == "both" else "none"


class CTVLMEvaluationConfig(Section):
    """What both models are tried on."""

    benchmarks: tuple[BenchmarkConfig, ...] = ()
    answering: AnsweringConfig = AnsweringConfig()
    models: tuple[Literal["tiny", "large"], ...] = ("tiny", "large")


class CTVLMRecipe(RunSettings):
    """Everything that a CTVLM run does."""

    changeable: ClassVar[tuple[str, ...]] = (
        *RunSettings.changeable,
        "evaluation.*",  # both models are kept: they can be asked other things
    )
    method: Literal["ctvlm"]
    duet: DuetChoice
    tokenizer: DecoderTokenizerConfig
    """the large model's, refused where it has another; the tiny one takes over its tokens"""
    data: CTVLMDataConfig = CTVLMDataConfig()
    stages: tuple[CTVLMStageConfig, ...] = Field(min_length=1)
    evaluation: CTVLMEvaluationConfig = CTVLMEvaluationConfig()
    profile_batch_size: int = Field(default=1, ge=1)
    """answers at a time when latency is measured"""
    profile_words: int = Field(default=16, ge=1)
    """words of the question that is asked then"""

    @model_validator(mode="after")
    def _consistent(self) -> CTVLMRecipe:
        check_stages(self, self.stages)
        check_benchmarks(self.evaluation.benchmarks, judge=False)
        self._check_last_template()
        for index, stage in enumerate(self.stages):
            rows = {**self.training, **stage.training}.get("per_device_train_batch_size")
            if stage.kind == "align_tiny" and rows == 1:
                raise ValueError(
                    f"stages.{index}, per_device_train_batch_size: stage I-a finds its wrong pairs among the rows of a "
                    "micro-batch, and one row has none; take 2 or more"
                )
            is_read = stage.kind == "align_large" or (stage.kind == "tune" and stage.models == "both")
            blind = self.duet.fusion == "cross" and self.duet.features == "I+T"
            if is_read and blind and stage.chat.template == "plain":
                raise ValueError(
                    f"duet.fusion cross, duet.features I+T, stages.{index}.chat.template plain: there are no features "
                    "of the picture, and no text between it and the caption, so the large model would see nothing; "
                    "take duet.features P+I+T, a fusion with prefix, or another template"
                )
        return self

    def _check_last_template(self) -> None:
        """Raise ValueError where models that are shown bare pictures are to answer questions."""
        template, evaluation = self.stages[-1].chat.template, self.evaluation
        asking = [each.name or each.benchmark for each in evaluation.benchmarks if asks(each)]
        if TEMPLATES[template].caption_only and evaluation.models and asking:
            raise ValueError(
                f"evaluation.benchmarks, stages.{len(self.stages) - 1}.chat.template {template}: the saved models have "
                f"the last stage's template, which leaves out what is asked, and these ask: {', '.join(asking)}; take "
                'captioning benchmarks with the prompt "", or another template'
            )
