"""spaCy's token embedding, made once for each different token of a batch.

An embedding is a function of the token alone (its norm, prefix, suffix, shape, the blank after it), and captions say
the same words over and over: of a batch's 3,000 tokens some 700 differ. Hashing, the sums of table rows and the widest
of the network's matrix products need no more rows than that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from thinc.api import Model, chain, with_array

AnyModel = Model[Any, Any]

_ODD = np.uint64(0x9E3779B97F4A7C15)
_PARTS = ("extract_features", "list2ragged", "with_array", "with_array", "ragged2list")
"""the layers of spaCy's MultiHashEmbed without static vectors"""


def embed_once(tok2vec: AnyModel) -> bool:
    """Change a tok2vec network in place, its outputs staying the same. False where it is built in another way."""
    if not tok2vec.layers:
        return False
    embed = tok2vec.layers[0]
    if tuple(layer.name.partition("(")[0] for layer in embed.layers) != _PARTS:
        return False
    tables, mixed = (layer.layers[0] for layer in embed.layers[2:4])
    embed.layers[2:4] = [with_array(_once(chain(tables, mixed)))]
    return True


def _once(layer: AnyModel) -> AnyModel:
    """The layer, run on each different row of its input once."""
    return Model("once", _forward, layers=[layer])


def _forward(model: AnyModel, rows: np.ndarray, is_train: bool) -> tuple[np.ndarray, Callable[[Any], Any]]:
    """uint64 [tokens, features] to float32 [tokens, width]."""
    if is_train:
        _no_gradient(None)
    hashed = np.zeros(len(rows), np.uint64)
    for column in rows.T:  # two rows alike by chance: one in 2^64, as for spaCy's own string hashes
        hashed = (hashed ^ (hashed >> np.uint64(29)) ^ column) * _ODD
    _, first, inverse = np.unique(hashed, return_index=True, return_inverse=True)
    return model.layers[0].predict(rows[first])[inverse], _no_gradient


def _no_gradient(_: Any) -> Any:
    raise ValueError("this network is for prediction only")
