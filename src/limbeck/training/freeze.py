"""Freezing by globs over parameter names."""

from __future__ import annotations

from difflib import get_close_matches
from fnmatch import fnmatchcase

from torch import nn


def freeze(model: nn.Module, trainable: tuple[str, ...], frozen: tuple[str, ...] = ()) -> list[str]:
    """Let exactly those parameters train that a glob of `trainable` names and that lie in no submodule of `frozen`.

    A glob names parameters (`student.vision.*`) or a submodule (`student.vision`); no globs at all mean everything.
    Returns the names that train. Raises ValueError for a glob that matches nothing.
    """
    names = [name for name, _ in model.named_parameters() if not name.startswith(tuple(f"{root}." for root in frozen))]
    chosen: set[str] = set() if trainable else set(names)
    for glob in trainable:
        matched = [name for name in names if fnmatchcase(name, glob) or name.startswith(f"{glob}.")]
        if not matched:
            roots = sorted({".".join(name.split(".")[:depth]) for name in names for depth in (1, 2, 3)})
            near = get_close_matches(glob, roots, n=1) or roots[:1]
            raise ValueError(
                f"trainable: the glob {glob!r} matches no parameter; the nearest module is {near[0]!r}, "
                f"the top ones are {', '.join(sorted({name.split('.')[0] for name in names}))}"
            )
        chosen.update(matched)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
    return [name for name in names if name in chosen]
