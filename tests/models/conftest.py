"""Tiny models with weights large enough that a mistake shows, and a batch for them."""

from collections.abc import Callable

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from limbeck.models.blip import Blip
from limbeck.models.fusion import FusionConfig
from limbeck.models.med import TextConfig
from limbeck.models.vision import VisionConfig

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]"]
WORDS = [f"w{index}" for index in range(43)]


def vision(width: int = 24, **values: int) -> VisionConfig:
    return VisionConfig(**{"width": width, "layers": 2, "heads": 2, "image_size": 16, "patch_size": 4, **values})


def text(width: int = 24, **values: int) -> TextConfig:
    ids = {"pad_token_id": 0, "sep_token_id": 3, "dec_token_id": 5, "enc_token_id": 6}
    return TextConfig(
        **{"width": width, "layers": 3, "heads": 4, "vocab_size": 50, "max_positions": 32, **ids, **values}
    )


def stir(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every weight a value of its own, biases and norms too; in `eval` mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "temperature":
                spread = 0.25 if parameter.ndim > 1 else 0.1
                parameter += spread * torch.randn(parameter.shape, generator=generator)
    return model.eval()


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
