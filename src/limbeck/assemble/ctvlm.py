"""A CTVLM recipe's models, data and method as objects, each checked to fit the others."""

from __future__ import annotations

from fnmatch import fnmatchcase

import torch
from transformers import PreTrainedTokenizerFast

from limbeck.assemble.writers import compare_tokenizer, eye, eye_normalization, language_model, open_conversations
from limbeck.data.answer_spans import Encoded
from limbeck.data.chat import Chat, ChatConfig
from limbeck.data.conversations import ConversationSource
from limbeck.data.decoder_tokenizer import DecoderIds
from limbeck.data.dialogue_set import Dialogues
from limbeck.data.encoded_conversations import Limit
from limbeck.data.transform import TransformConfig
from limbeck.methods.ctvlm import CTVLM, DuetStage
from limbeck.models.duet import Duet
from limbeck.models.duet_build import build_duet
from limbeck.models.duet_config import DuetConfig
from limbeck.models.duet_layout import IMAGE, PROMPT, TEXT, large_length
from limbeck.recipe.ctvlm import CTVLMRecipe, CTVLMStageConfig
from limbeck.recipe.shared import RecipeError
from limbeck.training.freeze import freeze


def open_sources(recipe: CTVLMRecipe) -> dict[str, ConversationSource]:
    """Every stage's conversations by its name; stages on the same sources share them. Raises DataError."""
    opened, sources = {}, {}
    for index, stage in enumerate(recipe.stages):
        key = repr(stage.data)
        if key not in opened:
            opened[key] = open_conversations(stage.data, recipe.data, f"stages.{index}.data")
        sources[stage.name] = opened[key]
    return sources


def build_dialogues(
    recipe: CTVLMRecipe, sources: dict[str, ConversationSource], tokenizer: PreTrainedTokenizerFast, duet: Duet
) -> dict[str, Dialogues]:
    """Every stage's training set by its name; stages on the same conversations and template share it.

    What has more tokens than one of the models has positions is left out. Raises DataError where that is too much.
    """
    eye, built, datasets = duet.config.tiny_part.eye_part, {}, {}
    transform, limits = TransformConfig(size=eye.image_size), limits_of(duet.config)
    for stage in recipe.stages:
        pictures = stage.kind != "language"
        key = repr((stage.data, stage.chat, pictures))
        if key not in built:
            chat, tokens = Chat(tokenizer, stage.chat), duet.config.tiny_part.image_tokens
            built[key] = Dialogues(
                sources[stage.name],
                chat,
                transform,
                tokens,
                recipe.data.dialogues,
                seed=recipe.seed,
                limits=limits,
                normalization=eye_normalization(recipe.duet.eye),
                pictures=pictures,
            )
        datasets[stage.name] = built[key]
    return datasets


def limits_of(config: DuetConfig) -> tuple[Limit, Limit]:
    """What either model can read of a conversation about a picture."""
    tiny, large = config.tiny_part, config.large_part

    def counts(encoded: Encoded) -> dict[int, int]:
        place, answer = int((encoded.ids == tiny.image_token_id).argmax()), int(encoded.supervised.argmax())
        return {PROMPT: place, IMAGE: tiny.image_tokens, TEXT: answer - place - 1}

    def more_in_large(encoded: Encoded) -> int:
        whole = tiny.image_tokens - 1
        return large_length(whole, counts(encoded), config.features, has_features=tiny.in_sequence)

    more_in_tiny = tiny.image_tokens - 1 if tiny.in_sequence else -1
    return (
        Limit("the tiny model's positions", tiny.text_part.max_position_embeddings, lambda _: more_in_tiny),
        Limit("the large model's positions", large.max_position_embeddings, more_in_large),
    )


def build_models(recipe: CTVLMRecipe, tokenizer: PreTrainedTokenizerFast) -> Duet:
    """The duet with its first weights. Raises RecipeError where parts do not fit each other or the tokenizer.

    The tiny model's own tokenizer does not matter, as it takes the large one's table.
    """
    choice, ids = recipe.duet, DecoderIds.of(tokenizer)
    torch.manual_seed(recipe.seed)
    if choice.large.folder is not None:
        compare_tokenizer("duet.large", choice.large.folder, tokenizer)
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
            answer_marker=Chat(tokenizer, last_chat(recipe)).answer_marker,
        )
    except ValueError as error:
        raise RecipeError(f"duet: {error}") from None


def build_method(recipe: CTVLMRecipe, duet: Duet, tokenizer: PreTrainedTokenizerFast) -> CTVLM:
    """The method over its duet.

    Raises RecipeError where a stage's globs match nothing or what does not train in it, or where its texts begin with
    the picture and the tiny model cannot read them.
    """
    chats = [Chat(tokenizer, stage.chat) for stage in recipe.stages]
    for index, chat in enumerate(chats):
        if chat.template.caption_only and chat.ids.bos is None and not duet.config.tiny_part.in_sequence:
            raise RecipeError(
                f"stages.{index}.chat.template {chat.config.template}: the tokenizer begins texts with no token of its "
                "own, so with duet.fusion cross nothing stands before the caption; take a fusion with prefix"
            )
    stages = [_stage(stage, chat) for stage, chat in zip(recipe.stages, chats, strict=True)]
    torch.manual_seed(recipe.seed)
    rows = min(len(tokenizer), duet.config.large_part.vocab_size)
    method = CTVLM(duet, rows, stages, recipe.duet.embedding)
    for index, stage in enumerate(method.plan):
        method.stage = stage
        _check_globs(index, stage, method)
        try:
            freeze(method, stage.trainable, method.teachers())
        except ValueError as error:
            raise RecipeError(f"stages.{index}.{error}") from None
    return method


def _check_globs(index: int, stage: DuetStage, method: CTVLM) -> None:
    """Raise RecipeError where a glob names a part that does not train in such a stage."""
    parts = method.teachers()
    for glob in stage.trainable:
        named = [
            name for name, _ in method.named_parameters() if fnmatchcase(name, glob) or name.startswith(f"{glob}.")
        ]
        still = [part for part in parts if any(name.startswith(f"{part}.") for name in named)]
        if still:
            raise RecipeError(
                f"stages.{index}.trainable: the glob {glob!r} names what never trains in stage {stage.name}, of kind "
                f"{stage.kind}: {', '.join(still)}; name the other parts one by one"
            )


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
        negatives=config.negatives,
        models=config.models,
        stop_token_id=chat.stop_id,
        pad_token_id=chat.ids.pad,
    )
