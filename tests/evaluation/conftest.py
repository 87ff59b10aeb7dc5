"""A toy world of coloured squares, and tiny models that read it."""

from collections.abc import Callable

import pytest
import torch
from PIL import Image
from transformers import PreTrainedTokenizerFast

from limbeck.data.examples import BrokenImage, Example, MadeImage, Question
from limbeck.data.tokenizer import SpecialIds, WordPieceTokenizer, load_tokenizer
from limbeck.models.albef import Albef
from limbeck.models.blip import Blip
from limbeck.models.clip import ClipConfig, DualEncoder
from limbeck.models.fusion import FusionConfig
from limbeck.models.med import TextConfig
from limbeck.models.vision import VisionConfig

COLOURS = ("red", "green", "blue", "white", "black", "yellow")


def square(name: str) -> Example:
    """A picture of one colour with two captions and a question."""
    return Example(
        id=name,
        image=MadeImage(name, lambda: Image.new("RGB", (16, 16), name)),
        captions=(f"a {name} square", f"this is {name}"),
        questions=(Question(id=f"{name}-1", text="Which colour is it?", answers=(name,), kind="colour"),),
    )


@pytest.fixture
def examples() -> list[Example]:
    return [square(name) for name in COLOURS]


@pytest.fixture
def broken() -> Example:
    """A picture that does not decode."""

    def fail() -> Image.Image:
        raise BrokenImage("broken: cut short")

    return Example(id="broken", image=MadeImage("broken", fail), captions=("nothing",))


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    texts = [text for name in COLOURS for text in (*square(name).captions, "which colour is it?")]
    return load_tokenizer(WordPieceTokenizer(tokenizer="wordpiece", vocab_size=128), texts)


@pytest.fixture
def text_config(tokenizer: PreTrainedTokenizerFast) -> Callable[..., TextConfig]:
    special = SpecialIds.of(tokenizer)

    def make(**values: int | None) -> TextConfig:
        return TextConfig.model_validate(
            {
                "width": 16,
                "layers": 2,
                "heads": 2,
                "vocab_size": len(tokenizer),
                "max_positions": 32,
                "pad_token_id": special.pad,
                "sep_token_id": special.sep,
                "dec_token_id": special.dec,
                "enc_token_id": special.enc,
                **values,
            }
        )

    return make


@pytest.fixture
def vision_config() -> VisionConfig:
    return VisionConfig(width=16, layers=2, heads=2, patch_size=8, image_size=16)


def stirred(model: torch.nn.Module) -> None:
    """Weights large enough that inputs matter."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "temperature":
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)


@pytest.fixture
def blip(text_config, vision_config) -> Blip:
    model = Blip(FusionConfig(family="blip", vision=vision_config, text=text_config(), embedding=8))
    stirred(model)
    return model


@pytest.fixture
def albef(text_config, vision_config) -> Albef:
    model = Albef(FusionConfig(family="albef", vision=vision_config, text=text_config(fusion_layers=1), embedding=8))
    stirred(model)
    return model


@pytest.fixture
def clip(text_config, vision_config) -> DualEncoder:
    model = DualEncoder(ClipConfig(vision=vision_config, text=text_config(), embedding=8))
    stirred(model)
    return model


@pytest.fixture
def cpu() -> torch.device:
    return torch.device("cpu")
