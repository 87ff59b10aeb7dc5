"""A trained model made ready for what comes next: another picture size, an answer decoder of its own, drop path."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from limbeck.models.clip import ClipConfig, DualEncoder
from limbeck.models.families import build_model
from limbeck.models.fusion import FusionConfig, FusionVLM
from limbeck.models.vision import interpolate_positions

CLIP_POSITIONS = "vision.embeddings.position_embedding.weight"
POSITIONS = ("vision.positions", "decoder_vision.positions")


def refit(
    model: FusionVLM | DualEncoder,
    *,
    image_size: int | None = None,
    drop_path: float | None = None,
    answer_decoder: bool = False,
) -> FusionVLM | DualEncoder:
    """A model with `model`'s weights in its training mode, changed where asked.

    `image_size` (pixels a side) interpolates the image tower's positions. `answer_decoder` gives questions a decoder of
    their own: a copy of the caption decoder (BLIP's VQA) or of the fusion layers (ALBEF's), whose cross-attention
    starts anew where the widths of picture and question differ or the layer had none. Raises ValueError for a CLIP.
    """
    config = model.config
    vision: dict[str, Any] = {"image_size": image_size, "drop_path": drop_path}
    values: dict[str, Any] = {
        "vision": config.vision.model_dump() | {name: value for name, value in vision.items() if value is not None}
    }
    if answer_decoder:
        if isinstance(config, ClipConfig):
            raise ValueError("answer_decoder: separate copies layers in which text meets picture, and a clip has none")
        values["answer_decoder"] = "separate"
    kind = ClipConfig if isinstance(config, ClipConfig) else FusionConfig
    changed = build_model(kind.model_validate(config.model_dump() | values))
    state = model.state_dict()
    grid = changed.config.vision.image_size // changed.config.vision.patch_size
    for name in state.keys() & {*POSITIONS}:
        state[name] = interpolate_positions(state[name], grid, grid)
    if CLIP_POSITIONS in state:
        state[CLIP_POSITIONS] = interpolate_positions(state[CLIP_POSITIONS][None], grid, grid)[0]
    if isinstance(config, FusionConfig) and answer_decoder and config.answer_decoder == "tied":
        state |= _answer_decoder(state, changed.state_dict(), config)
    changed.load_state_dict(state)
    return changed.train(model.training)


def _answer_decoder(state: dict[str, Tensor], fresh: dict[str, Tensor], config: FusionConfig) -> dict[str, Tensor]:
    """The answer decoder's weights: the model's own where it has them in that shape, else the fresh ones."""
    weights = {}
    for name in (name for name in fresh if name.startswith("answer_decoder.")):
        theirs = state.get(_origin(name, config))
        weights[name] = theirs if theirs is not None and theirs.shape == fresh[name].shape else fresh[name]
    return weights


def _origin(name: str, config: FusionConfig) -> str:
    """What a parameter of the answer decoder starts from: BLIP's decoder, or the layers in which ALBEF fuses."""
    name = name.replace("answer_decoder", "decoder" if config.decoder == "separate" else "text", 1)
    if config.decoder == "none":
        first = config.text.first_fusion_layer
        name = re.sub(r"(?<=\.layers\.)\d+", lambda layer: str(int(layer[0]) + first), name)
        name = name.replace("decoder_attention", "encoder_attention")
    return name
