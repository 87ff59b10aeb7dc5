"""A tiny BLIP, and a batch and a tokenizer for it."""

from collections.abc import Callable

import pytest
import torch
from tiny_models import stir, text, vision
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from limbeck.models.blip import Blip
from limbeck.models.fusion import FusionConfig

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]"]
WORDS = [f"w{index}" for index in range(43)]


@pytest.fixture
def make_blip() -> Callable[..., Blip]:
    """A stirred BLIP; arguments are fields of FusionConfig."""

    def make(seed: int = 0, **values: object) -> Blip:
        config = FusionConfig.model_validate(
            {"family": "blip", "vision": vision(), "text": text(), "embedding": 16, **values}
        )
        model = stir(Blip(config), seed)
        assert isinstance(model, Blip)
        return model

    return make


@pytest.fixture
def pixels() -> Tensor:
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def ids() -> Tensor:
    """Three texts of 8, 5 and 3 tokens, class token first, separator last, padded to 8."""
    words = torch.randint(7, 50, (3, 8), generator=torch.Generator().manual_seed(2))
    words[:, 0] = 2
    for row, length in enumerate((8, 5, 3)):
        words[row, length - 1] = 3
        words[row, length:] = 0
    return words


@pytest.fixture
def mask(ids: Tensor) -> Tensor:
    return ids != 0


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(
        models.WordLevel({word: index for index, word in enumerate(SPECIAL + WORDS)}, unk_token="[UNK]")
    )
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(SPECIAL)
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]"
    )
