"""A trained model made ready for what comes next: another picture size, an answer decoder of its own, drop path."""

from __future__ import annotations

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
    their own (BLIP's VQA): a copy of the caption decoder, whose cross-attention starts anew where the widths of picture
    and question differ or the layer had none. Raises ValueError where the model has no such part.
    """
    config = model.config
    vision: dict[str, Any] = {"image_size": image_size, "drop_path": drop_path}
    values: dict[str, Any] = {
        "vision": config.vision.model_dump() | {name: value for name, value in vision.items() if value is not None}
    }
    if answer_decoder:
        if isinstance(config, ClipConfig) or config.decoder == "none":
            raise ValueError(f"answer_decoder: separate copies the caption decoder, and a {config.family} has none")
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
        state |= _answer_decoder(state, changed.state_dict(), "text" if config.decoder == "tied" else "decoder")
    changed.load_state_dict(state)
    return changed.train(model.training)


def _answer_decoder(state: dict[str, Tensor], fresh: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """The answer decoder's weights: `source`'s where it has them in that shape, else the fresh ones."""
    weights = {}
    for name in (name for name in fresh if name.startswith("answer_decoder.")):
        theirs = state.get(name.replace("answer_decoder", source, 1))
        weights[name] = theirs if theirs is not None and theirs.shape == fresh[name].shape else fresh[name]
    return weights
