"""Model folders on disk: config.json beside model.safetensors, each written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from limbeck.config import Section

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
State = dict[str, Tensor]


def write_model(model: nn.Module, model_type: str, config: Section, folder: Path) -> None:
    """Write `model`'s weights and, last, its config, so that a folder with a config is a whole one."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    _replace(folder / WEIGHTS, lambda path: save_file(state, path, {"format": "pt"}))
    text = json.dumps({"model_type": model_type, **config.model_dump(mode="json")}, indent=2) + "\n"
    _replace(folder / CONFIG, lambda path: path.write_text(text))


def read_weights(folder: Path) -> State:
    """Every tensor of a folder: one safetensors file, several with an index, or a pickle of plain tensors."""
    index, pickled = folder / f"{WEIGHTS}.index.json", folder / "pytorch_model.bin"
    if (folder / WEIGHTS).exists():
        return load_file(folder / WEIGHTS)
    if index.exists():
        state: State = {}
        for name in sorted(set(json.loads(index.read_text())["weight_map"].values())):
            state |= load_file(folder / Path(name).name)
        return state
    if pickled.exists():
        return torch.load(pickled, map_location="cpu", weights_only=True)
    raise FileNotFoundError(f"{folder}: neither {WEIGHTS} nor {index.name} nor {pickled.name}")


def read_model_type(folder: Path) -> str:
    """What config.json says the folder is."""
    if not (folder / CONFIG).exists():
        raise FileNotFoundError(f"{folder}: no {CONFIG}")
    return str(json.loads((folder / CONFIG).read_text()).get("model_type"))


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
