"""Very small random duets, and conversations for them."""

from typing import TypeVar

import torch
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    OPTConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    SiglipVisionConfig,
    ViTConfig,
)

from limbeck.models.duet import Duet
from limbeck.models.duet_config import DuetConfig, TinyVLMConfig
from limbeck.types import IGNORE

Model = TypeVar("Model", bound=nn.Module)
ROWS = 60
IMAGE = ROWS
PAD, BOS, EOS = 0, 1, 2


def eye_config(kind: str = "clip") -> PreTrainedConfig:
    made = {"clip": CLIPVisionConfig, "siglip": SiglipVisionConfig, "vit": ViTConfig}[kind]
    return made(
        hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=8, patch_size=4
    )


def text_config(kind: str = "opt", width: int = 24, layers: int = 2, **values: object) -> PreTrainedConfig:
    shared = {
        "vocab_size": ROWS,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
    }
    if kind == "opt":
        return OPTConfig(**{**shared, "ffn_dim": 48, "dropout": 0.0, **values})
    made = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}[kind]
    heads = {"head_dim": 16} if kind == "qwen3" else {}
    return made(**{**shared, "intermediate_size": 48, "num_key_value_heads": 1, **heads, **values})


def tiny_config(tiny: str = "opt", eye: str = "clip", **values: object) -> TinyVLMConfig:
    shared = {"image_token_id": IMAGE, "pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
    width = 24 if values.get("embeddings") == "resized" else 32
    return TinyVLMConfig(
        **{"eye": eye_config(eye), "text": text_config(tiny), "table_width": width, **shared, **values}
    )


def duet(
    tiny: str = "opt", large: str = "llama", eye: str = "clip", seed: int = 0, features: str = "I+T", **values: object
) -> Duet:
    """A stirred duet; `values` are fields of TinyVLMConfig."""
    config = DuetConfig(
        tiny=tiny_config(tiny, eye, **values), large=text_config(large, width=32, layers=2), features=features
    )
    torch.manual_seed(seed)
    return stirred(Duet(config), seed)


def stirred(model: Model, seed: int = 0) -> Model:
    """Every weight gets a value of its own, zeros and norms too; in `eval` mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += (0.2 if parameter.ndim > 1 else 0.1) * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def pixels(count: int, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def conversation(prompt: int, text: int, answer: int, image_tokens: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Ids [T] of <s>, `prompt` words, the picture, `text` words, `answer` words and </s>; shifted labels [T]."""
    generator = torch.Generator().manual_seed(seed)

    def words(count: int) -> Tensor:
        return torch.randint(3, ROWS, (count,), generator=generator)

    ends = (torch.tensor([BOS]), torch.tensor([EOS]))
    ids = torch.cat((ends[0], words(prompt), torch.full((image_tokens,), IMAGE), words(text), words(answer), ends[1]))
    labels = torch.full_like(ids, IGNORE)
    labels[-answer - 2 : -1] = ids[-answer - 1 :]
    return ids, labels


def batch(*rows: tuple[Tensor, Tensor], left: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, mask and labels [B, T] of conversations, padded on the right or on the left."""
    length = max(len(ids) for ids, _ in rows)

    def padded(values: Tensor, fill: int) -> Tensor:
        pad = values.new_full((length - len(values),), fill)
        return torch.cat((pad, values) if left else (values, pad))

    ids = torch.stack([padded(ids, PAD) for ids, _ in rows])
    mask = torch.stack([padded(torch.ones_like(ids), 0) for ids, _ in rows]).bool()
    return ids, mask, torch.stack([padded(labels, IGNORE) for _, labels in rows])
