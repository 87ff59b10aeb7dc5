"""A CTVLM recipe's models, data and method as objects, each checked to fit the others."""

from __future__ import annotations

import torch
from transformers import PreTrainedTokenizerFast

from limbeck.assemble.writers import compare_tokenizer, eye, language_model, open_conversations
from limbeck.data.chat import Chat, ChatConfig
from limbeck.data.conversations import ConversationSource
from limbeck.data.decoder_tokenizer import DecoderIds
from limbeck.data.dialogue_set import Dialogues
from limbeck.data.transform import TransformConfig
from limbeck.methods.ctvlm import CTVLM, DuetStage
from limbeck.models.duet import Duet
from limbeck.models.duet_build import build_duet
from limbeck.recipe.ctvlm import CTVLMRecipe, CTVLMStageConfig
from limbeck.recipe.shared import RecipeError
from limbeck.training.freeze import freeze


def open_sources(recipe: CTVLMRecipe) -> dict[str, ConversationSource]:
    """Every stage's conversations by its name; stages on the same sources share them. Raises DataError."""
    opened, sources = {}, {}
    for stage in recipe.stages:
        key = repr(stage.data)
        if key not in opened:
            opened[key] = open_conversations(stage.data, recipe.data)
        sources[stage.name] = opened[key]
    return sources


def build_dialogues(
    recipe: CTVLMRecipe, sources: dict[str, ConversationSource], tokenizer: PreTrainedTokenizerFast, duet: Duet
) -> dict[str, Dialogues]:
    """Every stage's training set by its name; stages on the same conversations and template share it."""
    eye, built, datasets = duet.config.tiny_part.eye_part, {}, {}
    transform = TransformConfig(size=eye.image_size)
    for stage in recipe.stages:
        key = repr((stage.data, stage.chat))
        if key not in built:
            chat, tokens = Chat(tokenizer, stage.chat), duet.config.tiny_part.image_tokens
            built[key] = Dialogues(
                sources[stage.name], chat, transform, tokens, recipe.data.dialogues, seed=recipe.seed
            )
        datasets[stage.name] = built[key]
    return datasets


def build_models(recipe: CTVLMRecipe, tokenizer: PreTrainedTokenizerFast) -> Duet:
    """The duet with its first weights. Raises RecipeError where parts do not fit each other or the tokenizer."""
    choice, ids = recipe.duet, DecoderIds.of(tokenizer)
    torch.manual_seed(recipe.seed)
    for role, model in (("tiny", choice.tiny), ("large", choice.large)):
        if model.folder is not None:
            compare_tokenizer(f"duet.{role}", model.folder, tokenizer)
    try:
        return build_duet(
            eye(choice.eye),
            language_model(choice.tiny, tokenizer),
            language_model(choice.large, tokenizer),
            tokenizer_length=len(tokenizer),
            image_token_id=ids.image,
            pad_token_id=ids.pad,
            bos_token_id=ids.bos,
            eos_token_id=ids.eos,
            embeddings=choice.embeddings,
            fusion=choice.fusion,
            connector=choice.connector,
            features=choice.features,
            eye_layer=choice.eye_layer,
        )
    except ValueError as error:
        raise RecipeError(f"duet: {error}") from None


def build_method(recipe: CTVLMRecipe, duet: Duet, tokenizer: PreTrainedTokenizerFast) -> CTVLM:
    """The method over its duet. Raises RecipeError where a stage's globs match nothing."""
    stages = [_stage(stage, Chat(tokenizer, stage.chat)) for stage in recipe.stages]
    torch.manual_seed(recipe.seed)
    rows = min(len(tokenizer), duet.config.large_part.vocab_size)
    method = CTVLM(duet, rows, stages, recipe.duet.embedding)
    for index, stage in enumerate(method.plan):
        method.stage = stage
        try:
            freeze(method, stage.trainable, method.teachers())
        except ValueError as error:
            raise RecipeError(f"stages.{index}.{error}") from None
    return method


def last_chat(recipe: CTVLMRecipe) -> ChatConfig:
    """The template that the trained models are to be asked with."""
    return recipe.stages[-1].chat


def _stage(config: CTVLMStageConfig, chat: Chat) -> DuetStage:
    return DuetStage(
        name=config.name,
        trainable=config.trainable,
        weights={},
        training=config.training,
        kind=config.kind,
        kd=config.direction,
        kd_weight=config.lambda_,
        temperature=config.temperature,
        on_policy=config.on_policy,
        models=config.models,
        stop_token_id=chat.stop_id,
        pad_token_id=chat.ids.pad,
    )
