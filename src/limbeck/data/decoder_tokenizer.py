"""Tokenizers of generative models: a byte-level BPE trained on the texts at hand, or any fast tokenizer's folder.

A tokenizer adds no special token by itself: the chat template writes `<s>` where one belongs, so it is there once
whether a text comes from training, from `tokenizer.apply_chat_template` or from a processor. `<image>`, the place of
the picture, is a special token too, mostly one past the models' vocabulary: they put the picture's features there.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from limbeck.config import Section
from limbeck.data.conversations import IMAGE, ConversationSource
from limbeck.data.examples import DataError

PAD, BOS, EOS = "<pad>", "<s>", "</s>"
_MARK = "begins_with_bos"
"""In a saved tokenizer's settings: texts want the BOS token, although the tokenizer does not write it."""


class BpeTokenizer(Section):
    """A byte-level BPE trained on the training data's texts: any text survives the round trip."""

    tokenizer: Literal["bpe"]
    vocab_size: int = Field(default=2048, ge=300)
    """special tokens and the 256 bytes included, `<image>` besides"""
    extra_tokens: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """more special tokens, e.g. <|im_start|> and <|im_end|> for the chat template qwen"""


class DecoderFolder(Section):
    """A fast tokenizer saved as a Hugging Face folder."""

    tokenizer: Literal["folder"]
    path: str
    pad_token: str | None = None
    """a token of its vocabulary to pad with, where it names none"""


DecoderTokenizerConfig = Annotated[BpeTokenizer | DecoderFolder, Field(discriminator="tokenizer")]


@dataclass(frozen=True)
class DecoderIds:
    """Ids of the special tokens."""

    bos: int | None
    """begins every sequence; None for tokenizers that have no such habit"""
    eos: int
    pad: int
    image: int
    """stands where the picture's features go"""

    @staticmethod
    def of(tokenizer: PreTrainedTokenizerFast) -> DecoderIds:
        """Read them from a tokenizer. Raises DataError where one is missing."""
        image = tokenizer.get_vocab().get(IMAGE)
        eos, pad, bos = tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.bos_token_id
        named = {"end-of-sequence": eos, "padding": pad, IMAGE: image}
        missing = [name for name, number in named.items() if number is None]
        if missing:
            raise DataError(f"the tokenizer has no {', '.join(missing)} token; load_decoder_tokenizer adds {IMAGE}")
        return DecoderIds(bos=bos, eos=eos, pad=pad, image=image)  # pyright: ignore[reportArgumentType]


def load_decoder_tokenizer(
    config: BpeTokenizer | DecoderFolder, texts: Iterable[str] | None = None, base: Path = Path()
) -> PreTrainedTokenizerFast:
    """The tokenizer with `<image>`; it saves as a plain Hugging Face folder.

    `texts` is what `bpe` trains on; `base` is the folder that a relative path starts from. Raises DataError.
    """
    match config:
        case BpeTokenizer():
            if texts is None:
                raise DataError("tokenizer bpe is trained on the data's texts, and was given none")
            backend = train_bpe(texts, config.vocab_size, config.extra_tokens)
            return _wrap(backend, bos=BOS, eos=EOS, pad=PAD, unknown=None)
        case DecoderFolder():
            return _from_folder(base / config.path, config.pad_token)


def train_bpe(texts: Iterable[str], vocab_size: int, extra_tokens: tuple[str, ...] = ()) -> Tokenizer:
    """A byte-level BPE of at most `vocab_size` entries: `<pad>` 0, `<s>` 1, `</s>` 2, the extra ones, bytes, merges."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(  # pyright: ignore[reportCallIssue]
        vocab_size=vocab_size,
        special_tokens=[PAD, BOS, EOS, *extra_tokens],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return backend


def conversation_texts(source: ConversationSource) -> Iterable[str]:
    """Everything that is said in a source, for training a tokenizer."""
    for index in range(len(source.conversations)):
        for turn in source.conversations[index].turns:
            yield turn.text


def _from_folder(folder: Path, pad: str | None) -> PreTrainedTokenizerFast:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such tokenizer folder; one written by save_pretrained has a tokenizer.json")
    try:
        found = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # tokenizers raises nothing more special
        raise DataError(f"{folder}: no tokenizer that transformers can load: {error}") from error
    if not isinstance(found, PreTrainedTokenizerFast):
        raise DataError(f"{folder}: {type(found).__name__} is no fast tokenizer; spans of answers need one")
    pad = pad or found.pad_token  # pyright: ignore[reportAssignmentType]
    if pad is None or pad not in found.get_vocab():
        known = ", ".join(sorted({token.content for token in found.added_tokens_decoder.values()})[:12])
        what = "names no padding token" if pad is None else f"has no token {pad!r} to pad with"
        raise DataError(f"{folder}: the tokenizer {what}; set pad_token, e.g. to one of its special tokens: {known}")
    if found.eos_token is None:
        raise DataError(f"{folder}: the tokenizer names no end-of-sequence token (eos_token)")
    writes_bos = found.bos_token is not None and found("a").input_ids[0] == found.bos_token_id
    wants_bos = writes_bos or found.init_kwargs.get(_MARK, False)
    wrapped = _wrap(
        Tokenizer.from_str(found.backend_tokenizer.to_str()),
        bos=str(found.bos_token) if wants_bos else None,
        eos=str(found.eos_token),
        pad=pad,
        unknown=None if found.unk_token is None else str(found.unk_token),
    )
    wrapped.chat_template = found.chat_template
    return wrapped


def _wrap(backend: Tokenizer, *, bos: str | None, eos: str, pad: str, unknown: str | None) -> PreTrainedTokenizerFast:
    """A tokenizer that adds nothing by itself, cuts nothing and knows `<image>`; `bos` where texts want one."""
    backend.no_truncation()
    backend.no_padding()
    backend.post_processor = None  # pyright: ignore[reportAttributeAccessIssue]
    if backend.token_to_id(IMAGE) is None:
        backend.add_special_tokens([AddedToken(IMAGE, normalized=False, special=True)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=pad,
        bos_token=bos,
        eos_token=eos,
        unk_token=unknown,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        **{_MARK: bos is not None},
    )
