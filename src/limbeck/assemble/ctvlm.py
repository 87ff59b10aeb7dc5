"""A CTVLM recipe's models, data and method as objects, each checked to fit the others."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import torch
from tokenizers import AddedToken
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from limbeck.assemble.shared import shipped
from limbeck.data.chat import Chat, ChatConfig
from limbeck.data.conversation_sources import load_conversations
from limbeck.data.conversations import IMAGE, ConversationSource
from limbeck.data.decoder_tokenizer import DecoderFolder, DecoderIds, conversation_texts, load_decoder_tokenizer
from limbeck.data.dialogue_set import Dialogues
from limbeck.data.examples import check_skipped
from limbeck.data.transform import TransformConfig
from limbeck.methods.ctvlm import CTVLM, DuetStage
from limbeck.models.duet import Duet
from limbeck.models.duet_build import build_duet, check_same_tokenizer
from limbeck.models.eyes import eye_of
from limbeck.models.files import CONFIG, read_model_type
from limbeck.models.hub import local_model
from limbeck.recipe.ctvlm import CTVLMRecipe, CTVLMStageConfig, LanguageModelChoice
from limbeck.recipe.shared import RecipeError
from limbeck.training.freeze import freeze


def open_sources(recipe: CTVLMRecipe) -> dict[str, ConversationSource]:
    """Every stage's conversations by its name; stages on the same sources share them. Raises DataError."""
    root, opened, sources = Path(recipe.data.root), {}, {}
    for stage in recipe.stages:
        key = repr(stage.data)
        if key not in opened:
            source = opened[key] = load_conversations(stage.data, root)
            total = len(source.conversations) + len(source.skipped)
            check_skipped(source.skipped, total, recipe.data.max_skipped, source.name)
        sources[stage.name] = opened[key]
    return sources


def open_tokenizer(recipe: CTVLMRecipe, sources: Iterable[ConversationSource]) -> PreTrainedTokenizerFast:
    """The tokenizer of both language models; a `bpe` one is trained on all that is said in `sources`."""
    config = recipe.tokenizer
    if isinstance(config, DecoderFolder):
        return load_decoder_tokenizer(config, base=Path(recipe.data.root))
    different = {id(source): source for source in sources}.values()
    return load_decoder_tokenizer(config, chain.from_iterable(map(conversation_texts, different)))


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
            compare_tokenizer(role, model.folder, tokenizer)
    try:
        return build_duet(
            _eye(choice.eye),
            _language_model(choice.tiny, tokenizer),
            _language_model(choice.large, tokenizer),
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


def _eye(name: str) -> str | PreTrainedModel:
    """transformers' folder as it is, or the image tower of a model of limbeck's."""
    folder = Path(shipped(name))
    if (folder / "student").is_dir():
        folder = folder / "student"
    is_ours = (folder / CONFIG).is_file() and read_model_type(folder).startswith("limbeck_")
    return eye_of(folder) if is_ours else str(folder) if folder.is_dir() else name


def _language_model(choice: LanguageModelChoice, tokenizer: PreTrainedTokenizerFast) -> str | PreTrainedConfig:
    """The folder, or the shape of a new model whose vocabulary is the tokenizer's without its image token."""
    if choice.folder is not None:
        return choice.folder
    ids = DecoderIds.of(tokenizer)
    values = {
        "vocab_size": len(tokenizer) - 1 if ids.image == len(tokenizer) - 1 else len(tokenizer),
        "hidden_size": choice.width,
        "num_hidden_layers": choice.layers,
        "num_attention_heads": choice.heads,
        "num_key_value_heads": choice.heads,
        "max_position_embeddings": choice.max_positions,
        "pad_token_id": ids.pad,
        "bos_token_id": ids.bos,
        "eos_token_id": ids.eos,
    }
    assert choice.width is not None
    inner = {"opt": {"ffn_dim": 4 * choice.width, "word_embed_proj_dim": choice.width, "dropout": 0.0}}
    return AutoConfig.for_model(
        choice.kind, **values, **inner.get(choice.kind, {"intermediate_size": 4 * choice.width})
    )


def compare_tokenizer(role: str, name: str, tokenizer: PreTrainedTokenizerFast) -> bool:
    """A pretrained model reads ids by its own table: where its folder has a tokenizer, it must be the recipe's.

    False where the folder has none, so that nobody can compare. Raises RecipeError where they differ.
    """
    folder = local_model(name)
    if not (folder / "tokenizer.json").is_file():
        return False
    own = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    own.add_tokens([AddedToken(IMAGE, normalized=False, special=True)])
    try:
        check_same_tokenizer(own, tokenizer, (role, "recipe"))
    except ValueError as error:
        raise RecipeError(f"duet.{role}: {error}") from None
    return True


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
