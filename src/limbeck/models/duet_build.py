"""A duet from pretrained parts: an eye, a tiny and a large language model, each a folder, a hub name, a config or a
model. A config makes new, random weights.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    CLIPConfig,
    CLIPVisionModel,
    GenerationConfig,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    SiglipConfig,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTModel,
)

from limbeck.models.duet import Duet
from limbeck.models.duet_base import without_head
from limbeck.models.duet_config import (
    ConnectorKind,
    DuetConfig,
    Embeddings,
    Features,
    Fusion,
    TinyVLMConfig,
    embedding_width,
)
from limbeck.models.duet_eye import make_eye, without_pooling
from limbeck.models.files import listed
from limbeck.models.hub import local_model
from limbeck.models.tiny_vlm import TinyVLM

Part = str | Path | PreTrainedConfig | PreTrainedModel

EYE_CLASSES: dict[str, type[PreTrainedModel]] = {
    "clip": CLIPVisionModel,
    "clip_vision_model": CLIPVisionModel,
    "siglip": SiglipVisionModel,
    "siglip_vision_model": SiglipVisionModel,
    "vit": ViTModel,
}
"""transformers' model_type of a folder -> the class of its image tower."""


def build_duet(
    eye: Part,
    tiny: Part,
    large: Part,
    *,
    tokenizer_length: int,
    image_token_id: int,
    pad_token_id: int,
    bos_token_id: int | None,
    eos_token_id: int,
    embeddings: Embeddings = "large_frozen",
    fusion: Fusion = "prefix+cross",
    connector: ConnectorKind = "mlp",
    features: Features = "I+T",
    eye_layer: int = -2,
    drop_class_token: bool | None = None,
    answer_marker: Sequence[int] = (),
    dtype: torch.dtype = torch.float32,
) -> Duet:
    """A duet whose eye, body and large model have their pretrained weights, in `eval` mode.

    The token table comes from the large model. `tokenizer_length` counts the image token; only that one may lie past
    the large model's rows. Rows past the tokenizer, and the image token's, are never generated. Of the large model's
    own generation settings only what ends a text stays; its sampling and penalties do not. Models that are given are
    used themselves and changed. Raises ValueError where parts do not fit or a folder lacks weights.
    """
    large = open_language_model(large, dtype)
    rows = len(table_of(large))
    _check_rows(rows, tokenizer_length, image_token_id)
    check_head(large)
    seeing = open_eye(eye, dtype)
    body = without_head(open_language_model(tiny, dtype))
    text = body.config
    text.vocab_size = rows
    text.pad_token_id, text.bos_token_id, text.eos_token_id = pad_token_id, bos_token_id, eos_token_id
    if isinstance(text, OPTConfig):
        text.word_embed_proj_dim = text.hidden_size
    config = DuetConfig(
        tiny=TinyVLMConfig(
            eye=seeing.config,
            text=text,
            embeddings=embeddings,
            table_width=embedding_width(large.config) if embeddings == "large_frozen" else None,
            fusion=fusion,
            connector=connector,
            eye_layer=eye_layer,
            drop_class_token=drop_class_token,
            image_token_id=image_token_id,
            pad_token_id=pad_token_id,
            bos_token_id=bos_token_id,
            eos_token_id=eos_token_id,
        ),
        large=large.config,
        features=features,
        connector=connector,
        answer_marker=list(answer_marker) or None,
    )
    duet = Duet(config, tiny=TinyVLM(config.tiny_part, eye=seeing, body=body), large=large)
    _cast(duet, dtype)
    fill_table(duet)
    own_end = large.generation_config.eos_token_id if large.generation_config is not None else None
    duet.generation_config = GenerationConfig(
        bos_token_id=bos_token_id,
        eos_token_id=eos_token_id if own_end is None else own_end,
        pad_token_id=pad_token_id,
        suppress_tokens=sorted({image_token_id, *range(tokenizer_length, rows)} & set(range(rows))) or None,
    )
    duet.settle()
    return duet.eval()


@torch.no_grad()
def fill_table(duet: Duet) -> None:
    """Give the tiny model its token table: a copy of the large model's, or its principal components."""
    source = table_of(duet.large)
    if source.is_meta:
        return
    table = source if duet.tiny.table_is_frozen else principal_table(source, duet.tiny.width)
    duet.tiny.table.weight.copy_(table)


@torch.no_grad()
def principal_table(weight: Tensor, width: int, std: float = 0.02) -> Tensor:
    """A table [V, W] -> its first `width` principal components [V, width], rescaled to a standard deviation.

    Raises ValueError where the table is narrower.
    """
    if width > weight.shape[1]:
        raise ValueError(
            f"embeddings resized: a table {weight.shape[1]} wide has no {width} principal components; "
            "the tiny model must not be wider than the large one's token embeddings"
        )
    centred = weight.double() - weight.double().mean(0)
    _, directions = torch.linalg.eigh(centred.T @ centred)
    main = directions[:, -width:].flip(1)
    main = main * main.gather(0, main.abs().argmax(0, keepdim=True)).sign()
    table = centred @ main
    return (table * (std / table.std())).to(weight.dtype)


def check_same_tokenizer(
    first: PreTrainedTokenizerBase, second: PreTrainedTokenizerBase, names: tuple[str, str] = ("tiny", "large")
) -> None:
    """Raise ValueError, with the first token that differs, unless both give every number to the same token."""
    own, other = ({number: token for token, number in each.get_vocab().items()} for each in (first, second))
    for number in range(max([*own, *other], default=-1) + 1):
        if own.get(number) != other.get(number):
            said = [repr(tokens[number]) if number in tokens else "nothing" for tokens in (own, other)]
            raise ValueError(
                f"the {names[0]} model's tokenizer and the {names[1]} one's differ: token {number} is {said[0]} in the "
                f"first and {said[1]} in the second; models that teach each other share one tokenizer"
            )


def table_of(model: PreTrainedModel) -> Tensor:
    """A language model's embeddings [rows, width]."""
    table = model.get_input_embeddings()
    assert isinstance(table, nn.Embedding)
    return table.weight


def open_language_model(part: Part, dtype: torch.dtype) -> PreTrainedModel:
    """The language model of a part. Raises ValueError where a folder lacks weights."""
    if isinstance(part, PreTrainedModel):
        return _cast(part, dtype)
    if isinstance(part, PreTrainedConfig):
        return AutoModelForCausalLM.from_config(copy.deepcopy(part), dtype=dtype)
    return _loaded(AutoModelForCausalLM, local_model(part), dtype)


def open_eye(part: Part, dtype: torch.dtype) -> PreTrainedModel:
    """The image tower of a part, without a pooling layer. Raises ValueError where it is none or lacks weights."""
    if isinstance(part, PreTrainedModel):
        return without_pooling(_cast(part, dtype))
    if isinstance(part, PreTrainedConfig):
        return _cast(make_eye(copy.deepcopy(part)), dtype)
    folder = local_model(part)
    config = AutoConfig.from_pretrained(folder)
    if config.model_type not in EYE_CLASSES:
        raise ValueError(f"{folder}: model_type {config.model_type!r} is no eye; known are {', '.join(EYE_CLASSES)}")
    if isinstance(config, CLIPConfig | SiglipConfig):
        config = config.vision_config
        assert isinstance(config, PreTrainedConfig)
    if isinstance(config, SiglipVisionConfig):
        config.vision_use_head = False
    options = {"add_pooling_layer": False} if isinstance(config, ViTConfig) else {}
    return _loaded(EYE_CLASSES[config.model_type], folder, dtype, config=config, **options)


def _loaded(kind: Any, folder: Path, dtype: torch.dtype, **options: Any) -> PreTrainedModel:
    model, info = kind.from_pretrained(folder, dtype=dtype, use_safetensors=True, output_loading_info=True, **options)
    if info["missing_keys"]:
        raise ValueError(f"{folder}: lacks {listed(sorted(info['missing_keys']))}")
    return model


def _cast(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    nn.Module.to(model, dtype)
    return model


def _check_rows(rows: int, tokenizer_length: int, image_token_id: int) -> None:
    needed = tokenizer_length - 1 if image_token_id >= tokenizer_length - 1 else tokenizer_length
    if needed > rows:
        raise ValueError(
            f"the tokenizer has {needed} tokens beside the image token, but the large model only {rows} embeddings: "
            "tokens that were added to the tokenizer need rows of their own (resize_token_embeddings)"
        )


@torch.no_grad()
def check_head(large: PreTrainedModel) -> None:
    """Raise ValueError unless the logits are the hidden states times the head's weight, which losses take them for."""
    head = large.get_output_embeddings()
    assert isinstance(head, nn.Linear)
    if head.weight.is_meta:
        return
    ids = torch.arange(2, device=head.weight.device)[None]
    training = large.training
    large.eval()
    logits = large(input_ids=ids, use_cache=False).logits
    plain = functional.linear(without_head(large)(input_ids=ids, use_cache=False).last_hidden_state, head.weight)
    large.train(training)
    if not torch.allclose(logits, plain, rtol=1e-2, atol=1e-2 * float(plain.abs().max())):
        raise ValueError(
            f"{type(large).__name__}: its logits are not its hidden states times its head (a bias, a scale or a cap), "
            "so they cannot be compared without being formed"
        )
