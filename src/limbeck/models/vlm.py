"""Any transformers image-text-to-text model as a student: its parts by name, loaded and saved as a plain folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForImageTextToText,
    GenerationMixin,
    LlavaForConditionalGeneration,
    PreTrainedModel,
    ProcessorMixin,
)

from limbeck.models.files import listed
from limbeck.models.hub import local_model
from limbeck.models.llava import trained_connector
from limbeck.models.lora import merged_state


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Names of a model's modules: what sees, what translates, what speaks."""

    eye: str
    """the image tower; where the connector is a part of it, the connector too"""
    connector: tuple[str, ...]
    language: tuple[str, ...]
    """the language model and, where its weights are its own, the head"""


_PROJECTED = Parts(
    eye="model.vision_tower", connector=("model.multi_modal_projector",), language=("model.language_model",)
)
_MERGED = Parts(eye="model.visual", connector=("model.visual.merger",), language=("model.language_model",))
_DEEP = Parts(
    eye="model.visual",
    connector=("model.visual.merger", "model.visual.deepstack_merger_list"),
    language=("model.language_model",),
)
_CONNECTED = Parts(eye="model.vision_model", connector=("model.connector",), language=("model.text_model",))

PARTS: dict[str, Parts] = {
    "idefics3": _CONNECTED,
    "internvl": _PROJECTED,
    "llava": _PROJECTED,
    "qwen2_5_vl": _MERGED,
    "qwen2_vl": _MERGED,
    "qwen3_vl": _DEEP,
    "smolvlm": _CONNECTED,
}
"""transformers' model_type -> where its parts are."""
_BEYOND_HEAD = {"final_logit_softcapping": (None,), "logit_scale": (None, 1), "logits_scaling": (None, 1)}
"""Settings of language models that change logits after the head -> values that do not."""


def parts_of(model: PreTrainedModel) -> Parts:
    """Where the model's parts are. Raises ValueError for a class that limbeck does not know."""
    kind = model.config.model_type
    if kind not in PARTS:
        raise ValueError(
            f"{type(model).__name__}: which modules are the connector and the language model of model_type {kind!r} is "
            f"not known (known are {', '.join(PARTS)}); name them by globs, `trainable`"
        )
    parts = PARTS[kind]
    connector = (trained_connector(model),) if isinstance(model, LlavaForConditionalGeneration) else parts.connector
    head = model.get_output_embeddings()
    assert head is not None
    own = {id(parameter) for name in parts.language for parameter in model.get_submodule(name).parameters()}
    tied = all(id(parameter) in own for parameter in head.parameters())
    return Parts(eye=parts.eye, connector=connector, language=(*parts.language, *(() if tied else ("lm_head",))))


def load_vlm(folder: Path | str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """An image-text-to-text model from a folder or Hugging Face name, in `eval` mode.

    Raises ValueError where weights are missing, FileNotFoundError where nothing is there.
    """
    path = local_model(folder)
    load: Any = AutoModelForImageTextToText.from_pretrained
    model, info = load(path, dtype=dtype, use_safetensors=True, output_loading_info=True)
    if info["missing_keys"]:
        raise ValueError(f"{folder}: lacks {listed(sorted(info['missing_keys']))}")
    check_head(model)
    return model.eval()


def check_head(model: PreTrainedModel) -> None:
    """Raise ValueError unless the logits are the head times the hidden states, which the loss takes them for."""
    if not isinstance(model, GenerationMixin) or not isinstance(model.get_output_embeddings(), nn.Linear):
        raise ValueError(f"{type(model).__name__} has no linear head over tokens; wanted a model that writes")
    settings = model.config.get_text_config().to_dict()
    for name, harmless in _BEYOND_HEAD.items():
        if settings.get(name) not in harmless:
            raise ValueError(
                f"{type(model).__name__}: {name} is {settings[name]}, so its logits are not its hidden states times "
                "its head, which the loss takes them for"
            )


def hidden_states(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> Tensor:
    """What meets the head, [B, T, D]; `inputs` are those that the model's processor makes."""
    given = {name: x.to(model.dtype) if x.is_floating_point() else x for name, x in inputs.items()}
    return cast(Any, model.base_model)(**given, use_cache=False).last_hidden_state


def save_vlm(model: PreTrainedModel, processor: ProcessorMixin | None, folder: Path) -> None:
    """A folder that plain transformers loads; adapters are merged into it, and stay as they are in `model`."""
    model.save_pretrained(folder, state_dict=merged_state(model))
    if processor is not None:
        processor.save_pretrained(folder)
