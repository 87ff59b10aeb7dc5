"""Model folders on disk: config.json beside model.safetensors, each written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from limbeck.config import Section
from limbeck.explain import damaged

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
State = dict[str, Tensor]
_DAMAGE = (
    *(ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, RuntimeError, TypeError, ValueError),
    struct.error,
)
"""What torch.load raises over damaged files."""


def write_model(model: nn.Module, model_type: str, config: Section, folder: Path) -> None:
    """Write `model`'s weights and, last, its config, so that a folder with a config is a whole one."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    _replace(folder / WEIGHTS, lambda path: save_file(state, path, {"format": "pt"}))
    text = json.dumps({"model_type": model_type, **config.model_dump(mode="json")}, indent=2) + "\n"
    _replace(folder / CONFIG, lambda path: path.write_text(text))


def read_weights(folder: Path) -> State:
    """Every tensor of a folder: one safetensors file, several with an index, or a pickle of plain tensors.

    Raises FileNotFoundError where it has none of them, ValueError naming the file that is damaged.
    """
    index, pickled = folder / f"{WEIGHTS}.index.json", folder / "pytorch_model.bin"
    if (folder / WEIGHTS).exists():
        return _read_safetensors(folder / WEIGHTS)
    if index.exists():
        state: State = {}
        files = read_object(index).get("weight_map")
        if not isinstance(files, dict):
            raise ValueError(f"{index}: no weight_map, which says which file has which tensor")
        for name in sorted(set(files.values())):
            state |= _read_safetensors(folder / Path(name).name)
        return state
    if pickled.exists():
        return tensors_of(read_pickle(pickled), pickled)
    raise FileNotFoundError(f"{folder}: neither {WEIGHTS} nor {index.name} nor {pickled.name}")


def read_model_type(folder: Path) -> str:
    """What config.json says the folder is. Raises FileNotFoundError, or ValueError where it is no JSON object."""
    if not (folder / CONFIG).exists():
        raise FileNotFoundError(f"{folder}: no {CONFIG}")
    return str(read_object(folder / CONFIG).get("model_type"))


def read_object(file: Path) -> dict[str, Any]:
    """The object that a JSON file holds. Raises ValueError naming the file where it holds none."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, or no UTF-8
        raise ValueError(damaged(file, f"not JSON: {error}")) from error
    if not isinstance(values, dict):
        raise ValueError(f"{file}: wanted a JSON object, found {json.dumps(values)[:40]}")
    return values


def read_pickle(file: Path) -> dict[str, Any]:
    """The mapping that torch.save wrote; no code in it is run. Raises ValueError naming a file that holds none."""
    try:
        values = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # its text tells how to run the code
        reason = "it is damaged, or holds more than tensors, which could run code and is not read"
        raise ValueError(damaged(file, f"no weights that can be read safely: {reason}")) from error
    except _DAMAGE as error:
        reason = str(error).partition(".")[0]
        raise ValueError(damaged(file, f"not written by torch.save, or cut short ({reason or 'it ends'})")) from error
    if not isinstance(values, dict):
        raise ValueError(f"{file}: wanted weights by their names, found {type(values).__name__}")
    return values


def tensors_of(values: Any, file: Path) -> State:
    """`values` of a pickle, where they are tensors by name. Raises ValueError naming the file and what is none."""
    if not isinstance(values, dict):
        raise ValueError(f"{file}: wanted weights by their names, found {type(values).__name__}")
    strange = [str(name) for name, value in values.items() if not isinstance(value, Tensor)]
    if strange:
        raise ValueError(f"{file}: no tensor, {listed(strange)}")
    return values


def _read_safetensors(file: Path) -> State:
    try:
        return load_file(file)
    except SafetensorError as error:
        raise ValueError(damaged(file, f"no safetensors file, or cut short ({error})")) from error


def fingerprint(model: nn.Module) -> str:
    """Tells models apart: a hash of every weight by its name."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in model.state_dict().items():
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(values.shape)} {values.dtype}".encode())
        digest.update(values.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def fill(model: nn.Module, state: State, origin: str) -> None:
    """Load `state` into `model`; it must hold every weight, in shape, finite and not all zero.

    Raises ValueError with the first offending names; `origin` says where the state came from.
    """
    own = model.state_dict()
    missing = [name for name in own if name not in state]
    unknown = [name for name in state if name not in own]
    if missing or unknown:
        parts = [f"lacks {listed(missing)}"] * bool(missing) + [f"has unknown {listed(unknown)}"] * bool(unknown)
        raise ValueError(f"{origin}: " + " and ".join(parts))
    shapes = [
        f"{name} {tuple(state[name].shape)} in place of {tuple(own[name].shape)}"
        for name in own
        if state[name].shape != own[name].shape
    ]
    if shapes:
        raise ValueError(f"{origin}: wrong shape, {listed(shapes)}")
    infinite = [name for name in own if not bool(torch.isfinite(state[name]).all())]
    if infinite:
        raise ValueError(f"{origin}: not finite, {listed(infinite)}")
    empty = [name for name in own if own[name].ndim > 1 and not bool(state[name].any())]
    if empty:
        raise ValueError(f"{origin}: nothing but zeros, {listed(empty)}")
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()}, assign=True)


def listed(names: list[str], count: int = 3) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file beside `path`, bring it to disk, and put it in `path`'s place at once."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    made = Path(name)
    try:
        write(made)
        with made.open("rb") as file:
            os.fsync(file.fileno())
        made.chmod(0o644)
        made.replace(path)
    finally:
        made.unlink(missing_ok=True)
