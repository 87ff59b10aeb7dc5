"""Checkpoints that a kill cannot spoil.

A checkpoint is sealed by a manifest of its files and their sizes, written last and moved into place in one step. What
has no manifest, or does not match it, was torn by a kill: it is passed over, and the one before it is still there,
because older checkpoints are deleted only after a newer one is sealed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

from limbeck.writing import write_text

MANIFEST = "complete.json"
_NAME = re.compile(r"^checkpoint-(\d+)$")


def seal(checkpoint: Path) -> None:
    """Flush every file of `checkpoint` to the disk, then write the manifest that makes it valid."""
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name != MANIFEST)
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
    sizes = {str(path.relative_to(checkpoint)): path.stat().st_size for path in files}
    write_text(checkpoint / MANIFEST, json.dumps({"files": sizes}))


def is_sealed(checkpoint: Path) -> bool:
    """Whether every file that the manifest names is there with its size."""
    try:
        files = json.loads((checkpoint / MANIFEST).read_text())["files"]
    except (FileNotFoundError, json.JSONDecodeError, KeyError):
        return False
    return all(
        (checkpoint / name).is_file() and (checkpoint / name).stat().st_size == size for name, size in files.items()
    )


def list_checkpoints(folder: Path) -> list[Path]:
    """Folders `checkpoint-N` in `folder`, sealed or not, by ascending step."""
    if not folder.is_dir():
        return []
    found = [(int(match[1]), path) for path in folder.iterdir() if (match := _NAME.match(path.name)) and path.is_dir()]
    return [path for _, path in sorted(found)]


def latest(folder: Path) -> Path | None:
    """The newest sealed checkpoint of `folder`, None without one."""
    return next((path for path in reversed(list_checkpoints(folder)) if is_sealed(path)), None)


def discard_torn(folder: Path) -> list[Path]:
    """Delete what a kill left half-written in `folder`; returns what was deleted."""
    torn = [path for path in list_checkpoints(folder) if not is_sealed(path)]
    for path in torn:
        shutil.rmtree(path)
    return torn


def rotate(folder: Path, keep: int | None) -> None:
    """Delete the oldest sealed checkpoints but the newest `keep`; None or 0 keeps all."""
    if keep:
        for path in [path for path in list_checkpoints(folder) if is_sealed(path)][:-keep]:
            (path / MANIFEST).unlink()
            shutil.rmtree(path)
