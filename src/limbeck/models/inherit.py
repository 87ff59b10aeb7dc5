"""A student's first weights: slices of its teacher, or a pretrained vision transformer or BERT.

A tower takes evenly spaced layers, and of every layer evenly spaced channels: the same channels of the residual stream
everywhere (embeddings, norms, both ends of every layer), evenly spaced heads, and evenly spaced channels inside a head.
A tower of the same size takes everything.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from limbeck.models.clip import DualEncoder
from limbeck.models.files import CONFIG, State, listed, read_model_type, read_object, read_weights
from limbeck.models.fusion import FusionVLM
from limbeck.models.hub import local_model
from limbeck.models.load import load_model
from limbeck.models.med import TextConfig
from limbeck.models.names import VISION_TRANSFORMERS, text_names, vision_names
from limbeck.models.vision import VisionConfig, interpolate_positions

TowerName = Literal["vision", "text"]
Axis = Literal["width", "heads", "qkv", "inner", "memory", "rows", "all"]

AXES: tuple[tuple[str, tuple[Axis, ...]], ...] = (
    (r".*(class_token|positions|position_embedding\.weight)", ("all", "all", "width")),
    (r".*(patches|patch_embedding)\.weight", ("width", "all", "all", "all")),
    (r".*(words|token_embedding|positions)\.weight", ("rows", "width")),
    (r"head\.bias", ("rows",)),
    (r".*\.cross_attention\.(key|value)\.weight", ("heads", "memory")),
    (r".*\.(query|key|value|q_proj|k_proj|v_proj)\.(weight|bias)", ("heads", "width")),
    (r".*\.qkv\.(weight|bias)", ("qkv", "width")),
    (r".*attention\.output\.weight|.*\.out_proj\.weight", ("width", "heads")),
    (r".*\.(up|fc1)\.(weight|bias)", ("inner", "width")),
    (r".*\.(down|fc2)\.weight", ("width", "inner")),
    (r".*", ("width", "width")),
)
"""What the axes of a tower's parameters are, the first pattern that fits; a parameter with fewer axes has the first."""

VIT = {
    "class_token": "embeddings.cls_token",
    "positions": "embeddings.position_embeddings",
    "patches.*": "embeddings.patch_embeddings.projection.*",
    "norm.*": "layernorm.*",
    "blocks.#.attention_norm.*": "encoder.layer.#.layernorm_before.*",
    "blocks.#.attention.query.*": "encoder.layer.#.attention.attention.query.*",
    "blocks.#.attention.key.*": "encoder.layer.#.attention.attention.key.*",
    "blocks.#.attention.value.*": "encoder.layer.#.attention.attention.value.*",
    "blocks.#.attention.output.*": "encoder.layer.#.attention.output.dense.*",
    "blocks.#.feed_forward_norm.*": "encoder.layer.#.layernorm_after.*",
    "blocks.#.up.*": "encoder.layer.#.intermediate.dense.*",
    "blocks.#.down.*": "encoder.layer.#.output.dense.*",
}
"""limbeck's names -> those of transformers' ViT and DeiT checkpoints"""


@dataclass(frozen=True)
class Source:
    """A tower to take weights from, under the names of the tower that takes them."""

    origin: str
    config: VisionConfig | TextConfig
    state: State
    memory_width: int = 0


def inherit_tower(student: FusionVLM | DualEncoder, teacher: FusionVLM | DualEncoder, tower: TowerName) -> None:
    """Fill the student's image or text tower with slices of the teacher's; what the teacher lacks stays as it is.

    Raises ValueError where the teacher is smaller somewhere, has another vocabulary, or is of another kind of family.
    """
    if isinstance(student, DualEncoder) != isinstance(teacher, DualEncoder):
        raise ValueError(f"a {student.config.family} student cannot take slices of a {teacher.config.family} teacher")
    config = teacher.config.vision if tower == "vision" else teacher.config.text
    state = teacher.get_submodule(tower).state_dict() if tower == "vision" or teacher.text is not None else {}
    if tower == "text" and isinstance(teacher, FusionVLM) and teacher.decoder is not None:
        state = teacher.decoder.state_dict() | state
    _fill(student, tower, Source("the teacher", config, state, teacher.config.vision.width))


def load_tower(student: FusionVLM | DualEncoder, origin: Path | str, tower: TowerName) -> None:
    """Fill the student's image or text tower from a folder or Hugging Face name, in slices where that is larger.

    For pictures: ViT, DeiT, BlipVisionModel, or a model that `load_model` knows. For text: BERT (both self-attentions
    start as BERT's one), or such a model. Raises ValueError naming what does not fit, FileNotFoundError where there is
    nothing.
    """
    folder = local_model(origin)
    kind = "salesforce" if folder.is_file() else read_model_type(folder)
    readers = {"vision": ("vit", "deit", "blip_vision_model"), "text": ("bert",)}[tower]
    if kind not in readers:
        known = ("salesforce", "limbeck_blip", "limbeck_albef", "limbeck_clip", "blip", "clip")
        if kind not in known:
            raise ValueError(f"{folder / CONFIG}: model_type {kind!r}; known are {', '.join(readers + known)}")
        inherit_tower(student, load_model(folder), tower)
    elif isinstance(student, DualEncoder):
        raise ValueError(f"{folder}: a clip student cannot start from a {kind}; give a CLIP folder")
    else:
        _fill(student, tower, _read_bert(folder) if kind == "bert" else _read_vit(folder, kind))


def _fill(student: FusionVLM | DualEncoder, tower: TowerName, source: Source) -> None:
    """Copy every parameter of a tower that the source has."""
    config = student.config.vision if tower == "vision" else student.config.text
    module = student.get_submodule(tower)
    layers = _spread(source.config.layers, config.layers, f"{source.origin}: {tower}.layers")
    choose = _chooser(source, config, tower, student.config.vision.width)
    taken = 0
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            theirs = re.sub(r"(?<=layers\.)\d+|(?<=blocks\.)\d+", lambda found: str(int(layers[int(found[0])])), name)
            if theirs in source.state:
                target = parameter[: _rows(name, source)]
                value = choose(name, source.state[theirs], parameter)
                if value.shape != target.shape:
                    raise ValueError(f"{source.origin}: {theirs} gives {tuple(value.shape)} for {tuple(target.shape)}")
                target.copy_(value)
                taken += 1
    if not taken:
        raise ValueError(f"{source.origin}: nothing in it for the {tower} tower")


def _rows(name: str, source: Source) -> int | None:
    """How many first rows of a parameter a source fills: BERT knows not the two words that BLIP adds."""
    if isinstance(source.config, TextConfig) and re.search(r"(words|token_embedding)\.weight$|^head\.bias$", name):
        return source.config.vocab_size
    return None


def _chooser(
    source: Source, config: VisionConfig | TextConfig, tower: str, memory_width: int
) -> Callable[[str, Tensor, nn.Parameter], Tensor]:
    """A function (name, the source's tensor, the student's parameter) -> the slice that fits the parameter."""
    where = f"{source.origin}: {tower}"
    width = _spread(source.config.width, config.width, f"{where}.width")
    inner = _spread(source.config.feed_forward_width, config.feed_forward_width, f"{where}.feed_forward")
    head_width = source.config.width // source.config.heads
    picked = _spread(source.config.heads, config.heads, f"{where}.heads")
    inside = _spread(head_width, config.width // config.heads, f"{where}: channels of a head")
    heads = (picked[:, None] * head_width + inside).flatten()
    memory = torch.arange(0)
    if source.memory_width:
        memory = _spread(source.memory_width, memory_width, f"{source.origin}: vision.width")
    if isinstance(source.config, TextConfig) and isinstance(config, TextConfig):
        added = config.vocab_size - source.config.vocab_size
        if added not in (0, 2):
            raise ValueError(
                f"{where}: a vocabulary of {source.config.vocab_size} words for a student of {config.vocab_size}; "
                "it must be the student's, with or without [DEC] and [ENC]"
            )
    index = {
        "width": width,
        "heads": heads,
        "qkv": torch.cat([heads + part * source.config.width for part in range(3)]),
        "inner": inner,
        "memory": memory,
    }

    def choose(name: str, tensor: Tensor, parameter: nn.Parameter) -> Tensor:
        axes = next(axes for pattern, axes in AXES if re.fullmatch(pattern, name))
        if axes[0] == "all" and isinstance(config, VisionConfig):
            tensor = _regrid(tensor, parameter)
        for dim, axis in enumerate(axes[-tensor.ndim :] if axes[0] == "all" else axes[: tensor.ndim]):
            if axis in index:
                tensor = tensor.index_select(dim, index[axis].to(tensor.device))
            elif axis == "rows" and tensor.shape[dim] > parameter.shape[dim]:
                tensor = tensor.narrow(dim, 0, parameter.shape[dim])
        return tensor.to(parameter.device, parameter.dtype)

    return choose


def _regrid(positions: Tensor, parameter: nn.Parameter) -> Tensor:
    """Positions [1, N, D] or [N, D] for the student's number of patches; anything else as it is."""
    tokens = parameter.shape[-2] if parameter.ndim > 1 else 1
    if positions.ndim == 1 or positions.shape[-2] == tokens or tokens == 1:
        return positions
    side = round((tokens - 1) ** 0.5)
    return interpolate_positions(positions.reshape(1, *positions.shape[-2:]), side, side).reshape(
        *positions.shape[:-2], tokens, -1
    )


def _spread(count: int, wanted: int, what: str) -> Tensor:
    """`wanted` evenly spaced indices of `count`, the first and the last among them."""
    if wanted > count:
        raise ValueError(f"{what} is {count}, and the student wants {wanted}; only a larger one can be sliced")
    return torch.linspace(0, count - 1, wanted).round().long()


def _read_vit(folder: Path, kind: str) -> Source:
    """The tower of a ViT, DeiT or BlipVisionModel folder."""
    values = read_object(folder / CONFIG)
    config = VisionConfig(
        width=values["hidden_size"],
        layers=values["num_hidden_layers"],
        heads=values["num_attention_heads"],
        feed_forward=values["intermediate_size"],
        image_size=values["image_size"],
        patch_size=values["patch_size"],
    )
    weights = read_weights(folder)
    if kind == "blip_vision_model":
        return Source(
            str(folder), config, _renamed(weights, vision_names(config.layers, VISION_TRANSFORMERS, ""), folder)
        )
    prefix = next((name for name in ("vit.", "deit.") if f"{name}embeddings.cls_token" in weights), "")
    state = _renamed(weights, vision_names(config.layers, VIT, prefix), folder)
    if f"{prefix}embeddings.distillation_token" in weights:
        state["positions"] = torch.cat((state["positions"][:, :1], state["positions"][:, 2:]), dim=1)
    for layer in range(config.layers):
        for suffix in ("weight", "bias"):
            parts = [state.pop(f"blocks.{layer}.attention.{part}.{suffix}") for part in ("query", "key", "value")]
            state[f"blocks.{layer}.attention.qkv.{suffix}"] = torch.cat(parts)
    return Source(str(folder), config, state)


def _read_bert(folder: Path) -> Source:
    """The tower of a BERT folder; its first token type's embedding, which every word has, goes into the positions."""
    values = read_object(folder / CONFIG)
    config = TextConfig(
        width=values["hidden_size"],
        layers=values["num_hidden_layers"],
        heads=values["num_attention_heads"],
        feed_forward=values["intermediate_size"],
        vocab_size=values["vocab_size"],
        max_positions=values["max_position_embeddings"],
    )
    weights = read_weights(folder)
    prefix = "bert." if "bert.embeddings.word_embeddings.weight" in weights else ""
    state: State = {}
    for role in ("encoder", "decoder"):
        state |= _renamed(weights, text_names(config.layers, role, prefix, cross=False), folder)
    types = f"{prefix}embeddings.token_type_embeddings.weight"
    if types in weights:
        state["embeddings.positions.weight"] = state["embeddings.positions.weight"] + weights[types][0]
    return Source(str(folder), config, state)


def _renamed(weights: State, names: dict[str, str], folder: Path) -> State:
    missing = [theirs for theirs in names.values() if theirs not in weights]
    if missing:
        raise ValueError(f"{folder}: lacks {listed(missing)}")
    return {ours: weights[theirs] for ours, theirs in names.items()}
