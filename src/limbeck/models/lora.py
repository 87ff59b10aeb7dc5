"""Low-rank adapters (Hu et al., 2022) inside a model: put in by peft, merged into the weights when it is saved."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

ADAPTER = "default"
"""peft's name of the one adapter."""
TRAINED = "*.lora_*"
"""Glob over the names of the adapters' parameters."""


@dataclass(frozen=True, kw_only=True)
class Lora:
    """W x becomes W x + alpha / rank * B A x."""

    rank: int = 16
    alpha: float = 32
    dropout: float = 0.0


def add_lora(model: PreTrainedModel, modules: Sequence[str], settings: Lora) -> None:
    """Put an adapter beside every linear layer inside `modules`, in place; at first it changes nothing.

    Raises ValueError where there is no linear layer, ImportError where peft is missing.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ImportError("lora: adapters need peft; pip install 'limbeck[lora]'") from error
    targets = [
        f"{root}.{name}"
        for root in modules
        for name, module in model.get_submodule(root).named_modules()
        if isinstance(module, nn.Linear)
    ]
    if not targets:
        raise ValueError(f"lora: no linear layer in {', '.join(modules)}")
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # pyright: ignore[reportArgumentType]  # peft only divides it
        lora_dropout=settings.dropout,
        target_modules="|".join(map(re.escape, targets)),
    )
    inject_adapter_in_model(config, model, ADAPTER)


@torch.no_grad()
def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """The model's weights as if it had no adapters, what those have learned added in."""
    state = model.state_dict()
    if not any(".lora_" in name for name in state):
        return state
    from peft.tuners.lora import Linear

    merged = {name.replace(".base_layer.", "."): x for name, x in state.items() if ".lora_" not in name}
    for name, module in model.named_modules():
        if isinstance(module, Linear):
            key = f"{name}.weight"
            merged[key] = merged[key] + module.get_delta_weight(ADAPTER).to(merged[key].dtype)
    return merged
