"""The parts of models that write: an eye, a language model, a tokenizer, each checked to fit the others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

from tokenizers import AddedToken
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from limbeck.data.conversation_sources import ConversationSourceConfig, load_conversations
from limbeck.data.conversations import IMAGE, ConversationSource
from limbeck.data.decoder_tokenizer import (
    DecoderFolder,
    DecoderIds,
    DecoderTokenizerConfig,
    conversation_texts,
    load_decoder_tokenizer,
)
from limbeck.data.examples import check_skipped
from limbeck.data.normalization import CLIP, Normalization, read_normalization
from limbeck.models.duet_build import check_same_tokenizer
from limbeck.models.eyes import eye_of
from limbeck.models.files import CONFIG, read_model_type
from limbeck.models.hub import local_model, shipped
from limbeck.recipe.shared import RecipeError
from limbeck.recipe.writers import ConversationsConfig, LanguageModelChoice


def open_conversations(
    data: Sequence[ConversationSourceConfig], config: ConversationsConfig, where: str
) -> ConversationSource:
    """The conversations of a recipe's sources, whose key path is `where`.

    Raises DataError, also where too many records are broken.
    """
    return accepted(load_conversations(data, Path(config.root), where), config)


def accepted(source: ConversationSource, config: ConversationsConfig) -> ConversationSource:
    """The source. Raises DataError where too many of its records are broken."""
    total = len(source.conversations) + len(source.skipped)
    check_skipped(source.skipped, total, config.max_skipped, source.name)
    return source


def open_tokenizer(
    config: DecoderTokenizerConfig, root: Path, sources: Iterable[ConversationSource]
) -> PreTrainedTokenizerFast:
    """The tokenizer of a decoder; a `bpe` one is trained on all that is said in `sources`.

    A folder is one under `root`, limbeck:NAME, or that of a hub name.
    """
    if isinstance(config, DecoderFolder):
        folder = root / shipped(config.path)
        if not folder.is_dir():
            folder = local_model(config.path)
        return load_decoder_tokenizer(config.model_copy(update={"path": str(folder.absolute())}))
    different = {id(source): source for source in sources}.values()
    return load_decoder_tokenizer(config, chain.from_iterable(map(conversation_texts, different)))


def eye(name: str) -> str | PreTrainedModel:
    """transformers' folder as it is, or the image tower of a model of limbeck's."""
    folder, is_ours = _eye_folder(name)
    return eye_of(folder) if is_ours else str(folder) if folder.is_dir() else name


def eye_normalization(name: str) -> Normalization:
    """What pictures for the eye are normalised with; limbeck's own models have CLIP's. Raises DataError."""
    folder, is_ours = _eye_folder(name)
    return CLIP if is_ours else read_normalization(folder if folder.is_dir() else local_model(name))


def language_model(choice: LanguageModelChoice, tokenizer: PreTrainedTokenizerFast) -> str | PreTrainedConfig:
    """The folder, or the shape of a new model whose vocabulary is the tokenizer's without its image token."""
    if choice.folder is not None:
        return choice.folder
    ids = DecoderIds.of(tokenizer)
    assert choice.width is not None
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
        "init_std" if choice.kind == "opt" else "initializer_range": choice.initial or choice.width**-0.5,
    }
    inner = {"opt": {"ffn_dim": 4 * choice.width, "word_embed_proj_dim": choice.width, "dropout": 0.0}}
    return AutoConfig.for_model(
        choice.kind, **values, **inner.get(choice.kind, {"intermediate_size": 4 * choice.width})
    )


def compare_tokenizer(where: str, name: str, tokenizer: PreTrainedTokenizerFast) -> bool:
    """A pretrained model reads ids by its own table: where its folder has a tokenizer, it must be the recipe's.

    False where the folder has none, so that nobody can compare. Raises RecipeError where they differ.
    """
    folder = local_model(name)
    if not (folder / "tokenizer.json").is_file():
        return False
    own = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    own.add_tokens([AddedToken(IMAGE, normalized=False, special=True)])
    try:
        check_same_tokenizer(own, tokenizer, (where, "recipe"))
    except ValueError as error:
        raise RecipeError(f"{where}: {error}") from None
    return True


def _eye_folder(name: str) -> tuple[Path, bool]:
    """Where an eye's folder would be, and whether it is a model of limbeck's."""
    folder = Path(shipped(name))
    if (folder / "student").is_dir():
        folder = folder / "student"
    return folder, (folder / CONFIG).is_file() and read_model_type(folder).startswith("limbeck_")
