"""Models by their names: those that come with limbeck, and Hugging Face's."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

from limbeck.explain import damaged, is_pointer

ASSETS = Path(str(files("limbeck"))) / "assets"
"""The models that come with limbeck, a folder each."""
PATTERNS = ["*.safetensors", "*.json", "*.txt"]
"""The files of a repository that are fetched: weights that cannot run code, settings, vocabularies."""
PICKLED = "pytorch_model.bin"
"""Weights as a pickle, fetched only where a repository has no safetensors; it is read as plain tensors alone."""
_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def shipped(source: str) -> str:
    """The folder of `limbeck:NAME`, a model that comes with the package; any other name as it is.

    Raises FileNotFoundError where no such model comes with it.
    """
    kind, _, name = source.partition(":")
    if kind != "limbeck":
        return source
    choices = sorted(path.parent.name for path in ASSETS.glob("*/config.json"))
    if name not in choices:
        raise FileNotFoundError(f"{source}: no such model comes with limbeck; there are {', '.join(choices)}")
    return str(ASSETS / name)


def local_model(source: Path | str) -> Path:
    """The folder or file itself where there is one, the folder of `limbeck:NAME`, or the local copy of the Hugging
    Face model `owner/name`.

    What was fetched once is kept in Hugging Face's cache and works offline. Raises FileNotFoundError where there is
    none of them, ValueError where Git LFS left a pointer in place of a file.
    """
    name = shipped(str(source))
    path = Path(name)
    if path.exists():
        _refuse_pointers(path)
        return path
    if not _NAME.fullmatch(name):
        raise FileNotFoundError(f"{name}: no such model folder or file")
    try:
        folder = Path(snapshot_download(name, allow_patterns=PATTERNS))
        if any(folder.glob("*.safetensors")):
            return folder
        return Path(snapshot_download(name, allow_patterns=[*PATTERNS, PICKLED]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise FileNotFoundError(
            f"{name}: no such model folder or file, and it cannot be fetched from Hugging Face ({reason}); where there "
            f"is a network, `hf download {name} --local-dir FOLDER` makes a folder to name here"
        ) from error


def _refuse_pointers(path: Path) -> None:
    """Before transformers reads such a file and says that its header is too large."""
    files = [path, *(file for pattern in (*PATTERNS, PICKLED) for file in sorted(path.glob(pattern)))]
    for file in files:
        if file.is_file() and is_pointer(file):
            raise ValueError(damaged(file, ""))
