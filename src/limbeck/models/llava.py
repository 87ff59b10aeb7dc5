"""LLaVA-like models from pretrained parts: an eye, one connector, a language model; plain transformers loads them.

What comes out is transformers' own LlavaForConditionalGeneration. Its connector is always two linear layers with an
activation between them. The single linear layer of LLaVA and CoMD is written in these terms as `projector_hidden_act:
linear` and a second layer that is the identity and never trains (`trained_connector`), so that any copy of transformers
computes exactly W x + b.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn
from transformers import (
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    SiglipVisionModel,
    ViTModel,
)
from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from limbeck.models.duet_base import without_head
from limbeck.models.duet_build import Part, check_head, open_eye, open_language_model, table_of
from limbeck.models.duet_config import CLASS_TOKENS, TinyVLMConfig
from limbeck.models.duet_processor import make_processor

LlavaConnector = Literal["linear", "mlp"]
ACTIVATIONS: dict[LlavaConnector, str] = {"linear": "linear", "mlp": "gelu"}
"""What stands between the connector's two layers."""
CONNECTOR = "model.multi_modal_projector"


def build_llava(
    eye: Part,
    language_model: Part,
    *,
    tokenizer_length: int,
    image_token_id: int,
    pad_token_id: int,
    bos_token_id: int | None,
    eos_token_id: int,
    connector: LlavaConnector = "linear",
    eye_layer: int = -2,
    drop_class_token: bool | None = None,
    dtype: torch.dtype = torch.float32,
) -> LlavaForConditionalGeneration:
    """A LLaVA whose eye and language model have their weights and whose connector is new, in `eval` mode.

    Each part is a folder, a Hugging Face name, a config (new random weights) or a model, which is used itself and
    changed. The eye is CLIP's, SigLIP's or a ViT, limbeck's own by `limbeck.models.eyes.eye_of`; the language model any
    decoder. `tokenizer_length` counts the image token. The language model gets rows for tokens past its vocabulary, the
    image token's too: plain transformers looks it up before the picture takes its place. Tokens that no text ends in
    (the image token, rows past the tokenizer) are never generated. `drop_class_token` None drops it where the eye has
    one. Raises ValueError where parts do not fit or a folder lacks weights.
    """
    seeing, speaking = _without_head(open_eye(eye, dtype)), open_language_model(language_model, dtype)
    if seeing.config.model_type not in CLASS_TOKENS:
        raise ValueError(f"eye: model_type {seeing.config.model_type!r}; known are {', '.join(CLASS_TOKENS)}")
    layers = seeing.config.num_hidden_layers
    if not -layers <= eye_layer <= -1:
        raise ValueError(f"eye_layer is {eye_layer}; this eye has the layers -{layers} to -1")
    has_class_token = CLASS_TOKENS[seeing.config.model_type] > 0
    if drop_class_token and not has_class_token:
        raise ValueError(f"drop_class_token: an eye of model_type {seeing.config.model_type!r} has no class token")
    drops = has_class_token if drop_class_token is None else drop_class_token
    check_head(speaking)
    _add_rows(speaking, max(tokenizer_length, image_token_id + 1))
    _untie_where_needed(speaking)
    text = speaking.config
    text.pad_token_id, text.bos_token_id, text.eos_token_id = pad_token_id, bos_token_id, eos_token_id
    config = LlavaConfig(
        vision_config=seeing.config,
        text_config=text,
        image_token_index=image_token_id,
        image_seq_length=image_tokens(seeing, drops),
        projector_hidden_act=ACTIVATIONS[connector],
        vision_feature_layer=eye_layer,
        vision_feature_select_strategy="default" if drops else "full",
        tie_word_embeddings=bool(text.tie_word_embeddings),
        dtype=dtype,
    )
    model = _put_together(config, seeing, speaking, dtype)
    rows = text.vocab_size
    model.generation_config = GenerationConfig(
        bos_token_id=bos_token_id,
        eos_token_id=eos_token_id,
        pad_token_id=pad_token_id,
        suppress_tokens=sorted({image_token_id, *range(tokenizer_length, rows)}),
    )
    return model.eval()


def image_tokens(eye: PreTrainedModel, drop_class_token: bool) -> int:
    """How many tokens one picture becomes."""
    config = eye.config
    patches = (config.image_size // config.patch_size) ** 2
    return patches + (0 if drop_class_token else CLASS_TOKENS[config.model_type])


def make_llava_processor(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    chat_template: str | None = None,
    *,
    image_token: str = "<image>",
    pad_to_square: bool = True,
    image_mean: Sequence[float] = OPENAI_CLIP_MEAN,
    image_std: Sequence[float] = OPENAI_CLIP_STD,
) -> LlavaProcessor:
    """The processor of a built LLaVA: pictures to squares of the eye's size, texts by `chat_template` (Jinja).

    A picture is padded to a square with the mean colour, as LLaVA-1.5 does, or else stretched. Without a chat template
    the tokenizer's own stands; `Chat.jinja` is that of limbeck's. Raises ValueError where the tokenizer's image token
    is not the model's.
    """
    config = model.config
    shape = TinyVLMConfig(
        eye=config.vision_config,
        embeddings="resized",
        drop_class_token=config.vision_feature_select_strategy == "default",
        image_token_id=config.image_token_id,
    )
    return make_processor(
        shape,
        tokenizer,
        chat_template,
        image_token=image_token,
        pad_to_square=pad_to_square,
        image_mean=image_mean,
        image_std=image_std,
    )


def trained_connector(model: LlavaForConditionalGeneration) -> str:
    """The module that is the connector: its first layer where it is linear and the second the identity."""
    second = model.model.multi_modal_projector.linear_2
    is_single = model.config.projector_hidden_act == ACTIVATIONS["linear"] and _is_identity(second)
    return f"{CONNECTOR}.linear_1" if is_single else CONNECTOR


def _put_together(
    config: LlavaConfig, eye: PreTrainedModel, language_model: PreTrainedModel, dtype: torch.dtype
) -> LlavaForConditionalGeneration:
    """The model over parts that are there already; only the connector is made."""
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    head = language_model.get_output_embeddings()
    assert isinstance(head, nn.Linear)
    device = head.weight.device
    if isinstance(eye, ViTModel) and eye.pooler is None:  # plain transformers has one, which nothing here reads
        eye.pooler = model.model.vision_tower.pooler.to_empty(device=device).to(dtype)
        for parameter in eye.pooler.parameters():
            nn.init.zeros_(parameter)
    model.model.vision_tower = eye
    model.model.language_model = without_head(language_model)
    model.lm_head = head
    projector = model.model.multi_modal_projector.to_empty(device=device).to(dtype)
    for layer in (projector.linear_1, projector.linear_2):
        nn.init.normal_(layer.weight, std=0.02)
        nn.init.zeros_(layer.bias)
    if config.projector_hidden_act == "linear":
        nn.init.eye_(projector.linear_2.weight)
        projector.linear_2.requires_grad_(False)
    return model


def _without_head(eye: PreTrainedModel) -> PreTrainedModel:
    """SigLIP's tower without its pooling head, which nothing here reads."""
    if not isinstance(eye, SiglipVisionModel) or not eye.config.to_dict().get("vision_use_head", True):
        return eye
    config = copy.deepcopy(eye.config)
    config.vision_use_head = False
    headless = SiglipVisionModel(config)
    nn.Module.to(headless, eye.device, eye.dtype)
    own = headless.state_dict()
    headless.load_state_dict({name: x for name, x in eye.state_dict().items() if name in own})
    return headless


def _untie_where_needed(model: PreTrainedModel) -> None:
    """Give the head weights of its own where transformers' LLaVA would not find the table to tie it to (OPT)."""
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert isinstance(head, nn.Linear)
    if not model.config.tie_word_embeddings or table in without_head(model).children():
        return
    model.config.tie_word_embeddings = False
    head.weight = nn.Parameter(head.weight.detach().clone())


@torch.no_grad()
def _add_rows(model: PreTrainedModel, wanted: int) -> None:
    """Rows for tokens past the vocabulary, each the mean of those that are there."""
    rows = len(table_of(model))
    if wanted <= rows:
        return
    model.resize_token_embeddings(wanted, mean_resizing=False)
    for table in (model.get_input_embeddings(), model.get_output_embeddings()):
        assert isinstance(table, nn.Embedding | nn.Linear)
        if not table.weight.is_meta:
            table.weight[rows:] = table.weight[:rows].mean(0)


def _is_identity(layer: nn.Linear) -> bool:
    """Whether it changes nothing; weights that are not there yet are taken for those of `build_llava`."""
    if layer.weight.is_meta:
        return True
    own = torch.eye(len(layer.weight), dtype=layer.weight.dtype, device=layer.weight.device)
    return bool(layer.weight.equal(own)) and (layer.bias is None or not bool(layer.bias.any()))
