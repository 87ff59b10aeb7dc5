"""A CoMD recipe's student, roles, data and method as objects, each checked to fit the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoProcessor, PreTrainedModel, PreTrainedTokenizerFast, ProcessorMixin

from limbeck.assemble.writers import (
    accepted,
    compare_tokenizer,
    eye,
    eye_normalization,
    language_model,
    open_conversations,
    open_tokenizer,
)
from limbeck.competition.asking import Asker
from limbeck.competition.compete import Roles
from limbeck.competition.endpoints import Endpoints
from limbeck.competition.instruction_file import InstructionFileConfig, load_instruction_file
from limbeck.competition.pool_conversations import Fits
from limbeck.data.answer_spans import Unfit
from limbeck.data.chat import Chat, ChatConfig
from limbeck.data.conversation_sources import load_conversation_source
from limbeck.data.conversations import Conversation, ConversationSource, join
from limbeck.data.decoder_tokenizer import DecoderIds
from limbeck.data.examples import DataError
from limbeck.data.model_chat import ModelChat
from limbeck.data.processed import ProcessedDialogues, picture_tokens
from limbeck.distributed import device_here
from limbeck.evaluation.generative.asker import LocalAsker
from limbeck.evaluation.generative.model import GenerativeModel
from limbeck.methods.comd import CoMD, StudentStage
from limbeck.models.hub import local_model
from limbeck.models.llava import build_llava, make_llava_processor
from limbeck.models.lora import Lora
from limbeck.models.vlm import load_vlm
from limbeck.recipe.comd import CoMDRecipe, LocalRole, RoleConfig, tuning_name
from limbeck.recipe.shared import RecipeError
from limbeck.training.freeze import freeze

AnyChat = Chat | ModelChat


@dataclass(frozen=True)
class Student:
    """A model that is to be tuned, and how pictures and texts reach it."""

    model: PreTrainedModel
    processor: ProcessorMixin
    is_new: bool
    """put together by the recipe, so that it has no chat template of its own"""

    def chat(self, config: ChatConfig | None) -> AnyChat:
        """A stage's template; None is the student's own, of a new one LLaVA's."""
        if config is None and not self.is_new:
            return ModelChat(self.processor)
        return Chat(cast(PreTrainedTokenizerFast, cast(Any, self.processor).tokenizer), config)


def open_stage_sources(recipe: CoMDRecipe) -> dict[str, ConversationSource]:
    """The conversations of the stages before the competition, by stage. Raises DataError."""
    return {
        stage.name: open_conversations(stage.data, recipe.data, f"stages.{index}.data")
        for index, stage in enumerate(recipe.stages)
    }


def open_instructions(recipe: CoMDRecipe) -> ConversationSource:
    """The pictures and instructions that the competition starts from. Raises DataError."""
    assert recipe.competition is not None
    base = Path(recipe.data.root)
    sources = [
        load_instruction_file(each, base)
        if isinstance(each, InstructionFileConfig)
        else load_conversation_source(each, base)
        for each in recipe.competition.data
    ]
    _check_names(sources)
    return accepted(join(sources), recipe.data)


def _check_names(sources: Sequence[ConversationSource]) -> None:
    """Raise DataError where two sources call an instruction by one name, which the pool would take for one."""
    if len(sources) == 1:
        return
    owners: dict[str, int] = {}
    for number, source in enumerate(sources):
        for conversation in source.conversations:
            other = owners.setdefault(conversation.id, number)
            if other != number:
                raise DataError(
                    f"competition.data: {other} ({sources[other].name}) and {number} ({source.name}) both have an "
                    f"instruction named {conversation.id!r}; files are told apart by their names without folders: "
                    "call one of them otherwise"
                )


def build_student(recipe: CoMDRecipe, sources: Mapping[str, ConversationSource]) -> Student:
    """The student with its first weights, asked with the last stage's template.

    A `bpe` tokenizer is trained on what is said in `sources`.

    Raises RecipeError where parts do not fit each other or the tokenizer, or a folder has no such model.
    """
    torch.manual_seed(recipe.seed)
    folder, config = recipe.student.folder, last_chat(recipe)
    student = _new_student(recipe, sources) if folder is None else _student_of(local_model(folder))
    if student.is_new or config is not None:
        chat = cast(Chat, student.chat(config))
        student.processor.chat_template = chat.jinja
        settings = student.model.generation_config
        assert settings is not None
        settings.eos_token_id = chat.stop_id
    return student


def _student_of(folder: Path) -> Student:
    try:
        return Student(load_vlm(folder), AutoProcessor.from_pretrained(folder), is_new=False)
    except (ValueError, OSError) as error:
        raise RecipeError(f"student.folder: {error}") from None


def _new_student(recipe: CoMDRecipe, sources: Mapping[str, ConversationSource]) -> Student:
    choice = recipe.student
    assert choice.eye is not None
    assert choice.language is not None
    assert recipe.tokenizer is not None
    tokenizer = open_tokenizer(recipe.tokenizer, Path(recipe.data.root), sources.values())
    ids = DecoderIds.of(tokenizer)
    if choice.language.folder is not None:
        compare_tokenizer("student.language", choice.language.folder, tokenizer)
    try:
        model = build_llava(
            eye(choice.eye),
            language_model(choice.language, tokenizer),
            tokenizer_length=len(tokenizer),
            image_token_id=ids.image,
            pad_token_id=ids.pad,
            bos_token_id=ids.bos,
            eos_token_id=ids.eos,
            connector=choice.connector,
            eye_layer=choice.eye_layer,
        )
    except ValueError as error:
        raise RecipeError(f"student: {error}") from None
    seen = eye_normalization(choice.eye)
    square = recipe.data.dialogues.pad_to_square
    processor = make_llava_processor(model, tokenizer, pad_to_square=square, image_mean=seen.mean, image_std=seen.std)
    return Student(model, processor, is_new=True)


def last_chat(recipe: CoMDRecipe) -> ChatConfig | None:
    """The template that the trained student is to be asked with; None is its own."""
    if recipe.competition is not None:
        return recipe.competition.tuning.chat
    return recipe.stages[-1].chat


def build_dialogues(
    recipe: CoMDRecipe, source: ConversationSource, student: Student, chat: ChatConfig | None
) -> ProcessedDialogues:
    """A stage's training set. Raises DataError."""
    return ProcessedDialogues(source, student.chat(chat), student.processor, recipe.data.dialogues, seed=recipe.seed)


def build_method(recipe: CoMDRecipe, student: Student) -> CoMD:
    """The method over its student, with all its stages. Raises RecipeError where a stage's globs match nothing."""
    plan = [
        StudentStage(name=each.name, trainable=each.trainable, weights={}, training=each.training, kind=each.kind)
        for each in recipe.stages
    ]
    if recipe.competition is not None:
        tuning = recipe.competition.tuning
        plan += [
            StudentStage(
                name=tuning_name(number),
                trainable=tuning.trainable,
                weights={},
                training={"dataloader_drop_last": False, **tuning.training},  # a round's pool may be small
                kind="tune",
                part=(number - 1, recipe.tunings) if tuning.schedule == "whole" else None,
            )
            for number in range(1, recipe.tunings + 1)
        ]
    lora = Lora(**recipe.lora.model_dump()) if recipe.lora is not None else None
    torch.manual_seed(recipe.seed)
    try:
        method = CoMD(student.model, plan, lora=lora)
    except ValueError as error:
        raise RecipeError(f"student: {error}") from None
    for stage in method.plan:
        method.stage = stage
        try:
            freeze(method, stage.trainable, method.teachers())
        except ValueError as error:
            raise RecipeError(f"stage {stage.name}: {error}") from None
    method.stage = method.plan[0]
    return method


def fits(recipe: CoMDRecipe, student: Student) -> Fits:
    """Whether a conversation of several turns, as tunings write it, has at most `max_length` tokens, its picture as
    large as may be; none fits where turns are to stand by themselves."""
    assert recipe.competition is not None
    if recipe.competition.tuning.turns == "single":
        return lambda conversation: False
    chat = student.chat(recipe.competition.tuning.chat)
    _, most = picture_tokens(student.processor, chat.ids.image)

    def fit(conversation: Conversation) -> bool:
        [encoded] = chat.encode([conversation])
        if isinstance(encoded, Unfit):
            return True  # it is left out for that reason
        extra = most - 1 if conversation.image is not None else 0
        return len(encoded.ids) + extra <= recipe.data.dialogues.max_length

    return fit


class RoleModels:
    """The models that fill roles, each opened once however many roles it fills."""

    def __init__(self) -> None:
        self._writers: dict[tuple[str, str], GenerativeModel] = {}
        self._servers: dict[str, Endpoints] = {}

    def roles(self, recipe: CoMDRecipe) -> Roles:
        """Who teaches, assesses and augments. Raises RecipeError, AskingError."""
        assert recipe.teacher is not None
        return Roles(
            teacher=self.asker(recipe.teacher),
            assessor=self.asker(recipe.assessor or recipe.teacher),
            augmentor=self.asker(recipe.augmentor or recipe.teacher),
        )

    def asker(self, role: RoleConfig) -> Asker:
        """A model of this process, or a server. Raises RecipeError, AskingError."""
        if isinstance(role, LocalRole):
            return LocalAsker(self.writer(role), role.folder, role.batch_size)
        key = repr(role)
        if key not in self._servers:
            opened = Endpoints(role)
            _ = opened.fingerprint  # asks every server, so that one that is gone is told before anything trains
            self._servers[key] = opened
        return self._servers[key]

    def writer(self, role: LocalRole) -> GenerativeModel:
        """The model of a role of this process. Raises RecipeError."""
        key = role.folder, role.dtype
        if key not in self._writers:
            dtype = role.dtype if role.dtype == "auto" else getattr(torch, role.dtype)
            try:
                model = GenerativeModel.from_folder(role.folder, device=device_here(), dtype=dtype)
            except (ValueError, OSError) as error:
                raise RecipeError(f"a role's model: {error}") from None
            self._writers[key] = model
        return self._writers[key]
