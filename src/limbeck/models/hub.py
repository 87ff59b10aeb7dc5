"""Models by their Hugging Face names."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

PATTERNS = ["*.safetensors", "*.json", "*.txt"]
"""The files of a repository that are fetched: weights that cannot run code, settings, vocabularies."""
PICKLED = "pytorch_model.bin"
"""Weights as a pickle, fetched only where a repository has no safetensors; it is read as plain tensors alone."""
_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def local_model(source: Path | str) -> Path:
    """The folder or file itself where there is one; else the local copy of the Hugging Face model `owner/name`.

    What was fetched once is kept in Hugging Face's cache and works offline. Raises FileNotFoundError where there is
    neither.
    """
    path = Path(source)
    if path.exists():
        return path
    name = str(source)
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
