"""Out to folders that plain transformers loads: three BLIP classes and CLIP, with processor and generation settings."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Literal

import torch
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
    BlipImageProcessorPil,
    BlipProcessor,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from limbeck.models.blip_import import HEADS
from limbeck.models.clip import CLIP_PARTS, LEGACY_END, DualEncoder, clip_config
from limbeck.models.fusion import FusionConfig, FusionVLM
from limbeck.models.med import TextTransformer
from limbeck.models.names import VISION_TRANSFORMERS, Role, text_names, vision_names

Task = Literal["captioning", "retrieval", "vqa", "clip"]
CLASSES: dict[Task, type[PreTrainedModel]] = {
    "captioning": BlipForConditionalGeneration,
    "retrieval": BlipForImageTextRetrieval,
    "vqa": BlipForQuestionAnswering,
    "clip": CLIPModel,
}

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def export(
    model: FusionVLM | DualEncoder,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path | str,
    *,
    task: Task,
    image_mean: Sequence[float] = CLIP_MEAN,
    image_std: Sequence[float] = CLIP_STD,
) -> None:
    """Write the transformers folder of one task: weights, config, generation settings and processor.

    Tasks of BLIP: `captioning` (BlipForConditionalGeneration), `retrieval` (BlipForImageTextRetrieval), `vqa`
    (BlipForQuestionAnswering); of CLIP: `clip` (CLIPModel). Pictures are resized to a square without cropping.

    transformers puts `[DEC]` before a caption by itself. The processor of `vqa` begins a question with `[ENC]`, as this
    model wants it; that of `retrieval` begins with `[CLS]`, which is right for similarities, and matching scores want
    `[ENC]` put there. BlipForQuestionAnswering lets an answer look at the padding of its question (its cross-attention
    never gets the mask): ask it questions of one length at a time.

    Raises ValueError where transformers' class cannot be this model: the message says why.
    """
    folder = Path(folder)
    theirs = convert(model, task)
    theirs.save_pretrained(folder)
    side = model.config.vision.image_size
    size = {"height": side, "width": side}
    mean, std = list(image_mean), list(image_std)
    if isinstance(model, DualEncoder):
        pictures = CLIPImageProcessorPil(size=size, do_center_crop=False, image_mean=mean, image_std=std)
        CLIPProcessor(pictures, tokenizer).save_pretrained(folder)
        return
    if task == "vqa":
        tokenizer = _beginning(tokenizer, model.config.text.enc_token_id, model.config.text.sep_token_id)
    BlipProcessor(BlipImageProcessorPil(size=size, image_mean=mean, image_std=std), tokenizer).save_pretrained(folder)


def convert(model: FusionVLM | DualEncoder, task: Task) -> PreTrainedModel:
    """transformers' model of one task with this model's weights. Raises ValueError as `export` does."""
    theirs = _clip(model) if isinstance(model, DualEncoder) else _blip(model, task)
    if type(theirs) is not CLASSES[task]:
        raise ValueError(f"a {model.config.family} model exports as clip, not as {task}")
    return theirs


def _blip(model: FusionVLM, task: Task) -> PreTrainedModel:
    """transformers' model of one task with this model's weights."""
    config = model.config
    if config.family != "blip" or task == "clip":
        raise ValueError(f"transformers has no class for a {config.family} model and task {task}")
    if config.text.first_fusion_layer:
        raise ValueError(
            f"transformers' BLIP has a cross-attention in every layer; this model in {config.text.fusion_layers} "
            f"of {config.text.layers} (text.fusion_layers)"
        )
    vision = model.vision
    state: dict[str, Tensor] = {}
    if task == "retrieval":
        if not config.heads:
            raise ValueError("this model has no contrastive and matching heads, so it does not export as retrieval")
        own = model.state_dict()
        state |= {theirs: own[ours] for ours, theirs in HEADS.items()}
    if task == "captioning":
        if config.decoder == "none":
            raise ValueError("this model has no decoder, so it does not export as captioning")
        vision = model.decoder_vision or model.vision
        state |= _text(model.decoder or model.text, "decoder", "text_decoder.bert.", "text_decoder.cls.")
    else:
        if not config.encoder:
            raise ValueError(f"this model has no text encoder, so it does not export as {task}")
        state |= _text(model.text, "encoder", "text_encoder.", None)
    if task == "vqa":
        if config.vision.width != config.text.width:
            raise ValueError(
                "transformers' BlipForQuestionAnswering gives all cross-attentions the image tower's width, but an "
                f"answer looks at its question; vision.width is {config.vision.width}, text.width {config.text.width}"
            )
        state |= _text(model.answerer(), "decoder", "text_decoder.bert.", "text_decoder.cls.")
    names = vision_names(config.vision.layers, VISION_TRANSFORMERS, "vision_model.")
    seen = vision.state_dict()
    state |= {theirs: seen[ours] for ours, theirs in names.items()}

    with torch.device("meta"):
        theirs = CLASSES[task](blip_config(config))
    # clones: save_pretrained refuses tensors that two names share where the class does not tie them
    theirs.load_state_dict({name: tensor.cpu().clone() for name, tensor in state.items()}, strict=False, assign=True)
    theirs.tie_weights()
    left = [name for name, parameter in theirs.named_parameters() if parameter.is_meta]
    assert not left, left
    theirs.generation_config = GenerationConfig(
        bos_token_id=config.text.dec_token_id,
        eos_token_id=config.text.sep_token_id,
        pad_token_id=config.text.pad_token_id,
    )
    return theirs


def blip_config(config: FusionConfig) -> BlipConfig:
    """The same model in transformers' words. Its defaults are not BLIP's, so everything is said."""
    vision, text = config.vision, config.text
    return BlipConfig(
        image_text_hidden_size=config.embedding,
        projection_dim=config.embedding,
        label_smoothing=0.1,
        vision_config={
            "hidden_size": vision.width,
            "intermediate_size": vision.feed_forward_width,
            "num_hidden_layers": vision.layers,
            "num_attention_heads": vision.heads,
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "layer_norm_eps": vision.norm_eps,
            "hidden_act": "gelu",
            "attention_dropout": 0.0,
            "initializer_range": 0.02,
        },
        text_config={
            "vocab_size": text.vocab_size,
            "hidden_size": text.width,
            "encoder_hidden_size": vision.width,
            "intermediate_size": text.feed_forward_width,
            "num_hidden_layers": text.layers,
            "num_attention_heads": text.heads,
            "max_position_embeddings": text.max_positions,
            "hidden_act": "gelu",
            "layer_norm_eps": text.norm_eps,
            "hidden_dropout_prob": text.dropout,
            "attention_probs_dropout_prob": text.dropout,
            "initializer_range": 0.02,
            "label_smoothing": 0.1,
            "pad_token_id": text.pad_token_id,
            "bos_token_id": text.dec_token_id,
            "eos_token_id": text.sep_token_id,
            "sep_token_id": text.sep_token_id,
            "enc_token_id": text.enc_token_id,
        },
    )


def _text(tower: TextTransformer | None, role: Role, prefix: str, head: str | None) -> dict[str, Tensor]:
    assert tower is not None
    own = tower.state_dict()
    names = text_names(tower.config.layers, role, prefix, head=head)
    return {theirs: own[ours] for ours, theirs in names.items()}


def _clip(model: DualEncoder) -> CLIPModel:
    if model.config.text.sep_token_id == LEGACY_END:
        raise ValueError("transformers' CLIPModel takes eos_token_id 2 for an old config's: sep_token_id must differ")
    theirs = CLIPModel(clip_config(model.config))
    parts = {ours: theirs for theirs, ours in CLIP_PARTS.items()}
    state = {"logit_scale": -model.temperature.detach().log()}
    for name, tensor in model.state_dict().items():
        prefix, _, rest = name.partition(".")
        if rest:
            state[f"{parts[prefix]}.{rest}"] = tensor
    theirs.load_state_dict(state)
    return theirs


def _beginning(tokenizer: PreTrainedTokenizerFast, first: int, last: int) -> PreTrainedTokenizerFast:
    """A copy of the tokenizer whose texts begin with the token `first`."""
    copy = deepcopy(tokenizer)
    start, stop = (str(copy.convert_ids_to_tokens(token)) for token in (first, last))
    copy.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{start} $A {stop}",
        special_tokens=[(start, first), (stop, last)],
    )
    return copy
