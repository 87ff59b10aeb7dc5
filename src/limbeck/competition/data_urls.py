"""Pictures as data URLs, the form in which a server takes them.

A file's own bytes are sent where every server sees the same picture in them as limbeck does: JPEG or PNG, colour or
grey, not turned by its EXIF tag. All else is opened by limbeck and written anew: as PNG, which loses nothing, and as
JPEG of quality 95 where it is large.
"""

from __future__ import annotations

import base64
import io
from pathlib import Path

from PIL import Image

from limbeck.data.examples import ArchiveImage, BrokenImage, FileImage, ImageSource

LARGE = 1024 * 1024
"""Pixels from which a picture that must be written anew becomes a JPEG."""

_ORIENTATION = 0x0112
_TYPES = {"JPEG": "image/jpeg", "PNG": "image/png"}


def data_url(image: ImageSource) -> str:
    """The picture as `data:image/...;base64,...`. Raises BrokenImage."""
    stored = _stored_bytes(image)
    kind = _kind_as_it_is(stored) if stored is not None else None
    if stored is None or kind is None:
        picture = image.open()
        kind = "PNG" if picture.width * picture.height < LARGE else "JPEG"
        written = io.BytesIO()
        picture.save(written, kind, quality=95)
        stored = written.getvalue()
    return f"data:{_TYPES[kind]};base64,{base64.b64encode(stored).decode('ascii')}"


def _stored_bytes(image: ImageSource) -> bytes | None:
    """What the picture's file holds; None where a function makes it, or the file cannot be read."""
    try:
        if isinstance(image, FileImage):
            return Path(image.path).read_bytes()
        if isinstance(image, ArchiveImage):
            with Path(image.archive).open("rb") as file:
                file.seek(image.offset)
                return file.read(image.size)
    except OSError as error:
        raise BrokenImage(f"{image.key}: {error}") from error
    return None


def _kind_as_it_is(data: bytes) -> str | None:
    """JPEG or PNG where these bytes can be sent, decoded once to be sure; None where they must be written anew."""
    try:
        with Image.open(io.BytesIO(data)) as picture:
            plain = picture.mode in ("RGB", "L") and "transparency" not in picture.info
            if picture.format not in _TYPES or not plain or picture.getexif().get(_ORIENTATION, 1) != 1:
                return None
            picture.load()
            return picture.format
    except Exception:  # what is broken is opened once more by its source, which says what is wrong with it
        return None
