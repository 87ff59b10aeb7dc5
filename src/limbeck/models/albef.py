"""ALBEF: BERT split in two, the upper layers look at the picture (Li et al., 2021)."""

from __future__ import annotations

from typing import final

from torch import Tensor

from limbeck.models.fusion import FusionVLM, Memory
from limbeck.types import Signals


@final
class Albef(FusionVLM):
    """The layers below the fusion layers read a text alone; the fusion layers go on from there. No caption decoder."""

    @property
    def text_layers(self) -> int:
        return self.config.text.first_fusion_layer

    def fill(
        self,
        memory: Memory,
        input_ids: Tensor,
        mask: Tensor | None,
        *,
        rows: Tensor | None = None,
        capture: bool = False,
    ) -> Signals:
        """Captions [P, T] with hidden words, over their pictures -> token logits [P, T, V] (masked language model)."""
        fused = self.fuse(memory, input_ids, mask, rows=rows, capture=capture)
        assert self.text is not None
        return Signals(
            output=self.text.logits(fused.hidden),
            hidden=fused.hidden,
            mask=mask,
            self_attention=fused.self_attention,
            cross_attention=fused.cross_attention,
        )

    def _fusion_ids(self, input_ids: Tensor) -> Tensor:
        return input_ids
