"""Whether a model that is said to be pretrained is: neither zeros nor what a new model starts with.

A new model of the same shape, a few layers of it, is made beside it. Weights that start as a constant (norms, biases)
have moved in every trained model; matrices that start at random have lost their first spread and the shape of their
distribution. What differs in neither way was never trained, whatever its folder says; where no norm and no
bias has moved, that is doubtful at least.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from limbeck.doctor.finding import Finding
from limbeck.models.files import listed

SAMPLE = 2**18
"""Values of a matrix that are looked at, evenly spaced."""
LEAST = 64
"""Values that a matrix must have for its spread to say anything."""
DEVIATIONS = 5.0
"""Standard errors within which two samples count as of one distribution."""
ALIKE = 0.4
"""Share of matrices as a new model's past which a model counts as new."""
FRESH_LAYERS = 2
"""Layers of the new model."""

_LAYER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True)
class Pretrained:
    """A model, or a part of one, that a recipe takes from a folder."""

    role: str
    origin: str
    model: nn.Module
    fresh: Callable[[], nn.Module]
    """makes a new one, perhaps of fewer layers; the names of its weights are the model's"""


class Spread(NamedTuple):
    """How a sample is distributed."""

    size: int
    deviation: float
    kurtosis: float
    """fourth moment by squared variance: 3 for a normal distribution, 1.8 for a uniform one"""


def check_weights(part: Pretrained) -> Finding:
    """Refuse zeros, numbers that are none, and first weights."""
    check = f"weights {part.role}"
    random, still = dict[str, Tensor](), dict[str, Tensor]()
    pairs = dict(_pairs(part))
    for name, (own, fresh) in pairs.items():
        (still if _is_constant(fresh) else random)[name] = own
    infinite = [name for name, (own, _) in pairs.items() if not bool(torch.isfinite(own).all())]
    if infinite:
        return Finding(check, "failed", f"{part.origin}: not finite: {listed(infinite)}")
    zero = [name for name, own in random.items() if not bool(own.any())]
    looked = [name for name, own in random.items() if own.numel() >= LEAST]
    if not looked:
        return Finding(check, "skipped", f"{part.origin}: a new model of its kind has no weights of these names")
    scale = _depth_scale(pairs)
    alike = [name for name in looked if is_alike(spread(random[name]), spread(pairs[name][1]), scale)]
    moved = [name for name, own in still.items() if not torch.equal(own, pairs[name][1].expand_as(own))]
    figures = {
        "matrices": len(looked),
        "zero": len(zero),
        "as_new": len(alike),
        "constants": len(still),
        "constants_moved": len(moved),
    }
    if zero and 2 * len(zero) >= len(random):
        text = f"{part.origin}: nothing but zeros in {len(zero)} of {len(random)} matrices: {listed(zero)}"
        return Finding(check, "failed", text, figures)
    share = len(alike) / len(looked)
    if share >= ALIKE and not moved:
        text = (
            f"{part.origin}: these are first weights: {len(alike)} of {len(looked)} matrices are spread as a new "
            f"model's, and none of {len(still)} norms and biases has moved; the recipe says that it is pretrained"
        )
        return Finding(check, "failed", text, figures)
    said = (
        f"{len(alike)} of {len(looked)} matrices are spread as a new model's, "
        f"{len(moved)} of {len(still)} norms and biases have moved"
    )
    doubts = [f"zeros: {listed(zero)}"] * bool(zero)
    if share >= ALIKE:
        doubts.append(f"it can hardly have been trained, or is new in part: {listed(alike)}")
    elif still and not moved:
        doubts.append("training moves norms and biases: these may be first weights of an unusual spread")
    text = "; ".join([f"{part.origin}: {said}", *doubts])
    return Finding(check, "warning" if doubts else "ok", text, figures)


def spread(values: Tensor) -> Spread:
    """Of a sample of a tensor."""
    flat = values.detach().flatten()
    sample = flat[:: max(1, len(flat) // SAMPLE)].double()
    centred = sample - sample.mean()
    variance = float(centred.square().mean())
    kurtosis = float(centred.pow(4).mean()) / variance**2 if variance else 0.0
    return Spread(len(sample), math.sqrt(variance), kurtosis)


def is_alike(own: Spread, fresh: Spread, scale: float = 1.0) -> bool:
    """Whether two samples may be of one distribution, or of one that is `scale` times as wide."""
    if not own.deviation or not fresh.deviation:
        return own.deviation == fresh.deviation
    count = min(own.size, fresh.size)
    width, ratio = max(DEVIATIONS / math.sqrt(count), 0.005), own.deviation / fresh.deviation
    same_width = any(abs(math.log(ratio / factor)) < width for factor in (1.0, scale))
    return same_width and abs(own.kurtosis - fresh.kurtosis) < max(DEVIATIONS * math.sqrt(48 / count), 0.05)


def with_layers(config: PreTrainedConfig, layers: int) -> PreTrainedConfig:
    """The same config for a model of so many layers; a list of the layers' kinds is cut, or its last one repeated."""
    config = copy.deepcopy(config)
    config.num_hidden_layers = layers
    kinds = config.to_dict().get("layer_types")
    if kinds:
        config.layer_types = [*kinds, *[kinds[-1]] * (layers - len(kinds))][:layers]  # pyright: ignore[reportAttributeAccessIssue]
    return config


def fresh_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The config of the new model."""
    return with_layers(config, min(FRESH_LAYERS, config.num_hidden_layers))


def _pairs(part: Pretrained) -> Iterator[tuple[str, tuple[Tensor, Tensor]]]:
    """Each weight's name, its values, and those of the new model's weight of that name."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        fresh = {name: values.detach() for name, values in part.fresh().named_parameters()}
    for name, values in part.model.named_parameters():
        matched = fresh.get(name)
        if matched is None:
            matched = fresh.get(_LAYER.sub(lambda found: f".{min(int(found[1]), FRESH_LAYERS - 1)}.", name, count=1))
        if matched is not None and matched.shape == values.shape:
            yield name, (values.detach().cpu(), matched)


def _depth_scale(names: Iterable[str]) -> float:
    """How much narrower deep models start (CLIP, GPT-2), by the root of their layers, than one of `FRESH_LAYERS`."""
    layers = 1 + max((int(found[1]) for name in names if (found := _LAYER.search(name))), default=0)
    return math.sqrt(FRESH_LAYERS / max(layers, FRESH_LAYERS))


def _is_constant(values: Tensor) -> bool:
    return bool((values == values.flatten()[0]).all())
