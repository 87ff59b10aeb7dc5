"""What the tiny VLM and the duet share: connectors, first weights, and loading that leaves nothing out."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as first

from limbeck.models.duet_config import ConnectorKind
from limbeck.models.duet_cross import ZeroLinear
from limbeck.models.files import listed


def make_connector(kind: ConnectorKind, given: int, wanted: int) -> nn.Module:
    """A map between widths: LLaVA-1.5's mlp2x_gelu, or one linear layer."""
    if kind == "linear":
        return nn.Linear(given, wanted)
    return nn.Sequential(nn.Linear(given, wanted), nn.GELU(), nn.Linear(wanted, wanted))


def without_head(model: PreTrainedModel) -> PreTrainedModel:
    """A language model up to its final norm, what comes before its head."""
    body = model.base_model
    assert isinstance(body, PreTrainedModel)
    return body


class DuetPreTrainedModel(PreTrainedModel):
    """A model of ours that saves and loads as transformers' own do."""

    base_model_prefix = ""
    input_modalities = ["image", "text"]  # noqa: RUF012
    supports_gradient_checkpointing = True
    _no_split_modules = ["CrossAttention"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values", "picture"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @abstractmethod
    def settle(self) -> None:
        """Set what neither weights nor config.json say, whatever made or loaded the model."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Path | str, *given: Any, **options: Any) -> Any:
        """transformers' own, except that a folder which lacks a weight or has an unknown one is refused."""
        wants_info = options.pop("output_loading_info", False)
        options["output_loading_info"] = True
        loaded: Any = super().from_pretrained(pretrained_model_name_or_path, *given, **options)
        model, info = loaded
        wrong = [
            f"{what} {listed(sorted(map(str, info[key])))}"
            for key, what in (("missing_keys", "lacks"), ("unexpected_keys", "has unknown"))
            if info[key]
        ]
        if wrong:
            raise ValueError(f"{pretrained_model_name_or_path}: {' and '.join(wrong)}")
        model.settle()
        return (model, info) if wants_info else model

    def enable_input_require_grads(self) -> None:
        """Nothing: checkpointing without re-entry needs no gradient at the embeddings, and a frozen table none."""

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ZeroLinear):
            first.zeros_(module.weight)

    def post_init(self) -> None:
        """First weights for what has none."""
        super().post_init()
        self.settle()
