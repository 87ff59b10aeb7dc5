"""Pictures go to a server as they are stored where that is safe, and show the same as limbeck sees in any case."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from limbeck.competition.data_urls import data_url
from limbeck.data.examples import ArchiveImage, BrokenImage, FileImage, MadeImage


def noise(mode: str = "RGB", size: tuple[int, int] = (24, 16)) -> Image.Image:
    channels = len(Image.new(mode, (1, 1)).getbands())
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)
    return Image.fromarray(values.squeeze(), mode)


def sent(url: str) -> tuple[str, bytes]:
    head, data = url.split(";base64,")
    return head.removeprefix("data:"), base64.b64decode(data)


@pytest.mark.parametrize(("name", "kind"), [("a.jpg", "image/jpeg"), ("a.png", "image/png")])
def test_a_plain_file_is_sent_byte_for_byte(tmp_path: Path, name: str, kind: str) -> None:
    noise().save(tmp_path / name)
    stored = (tmp_path / name).read_bytes()
    assert sent(data_url(FileImage(str(tmp_path / name)))) == (kind, stored)
    (tmp_path / "archive").write_bytes(b"before" + stored + b"behind")
    assert sent(data_url(ArchiveImage(str(tmp_path / "archive"), name, 6, len(stored)))) == (kind, stored)


@pytest.mark.parametrize(("mode", "name"), [("RGBA", "a.png"), ("RGB", "a.webp"), ("CMYK", "a.jpg"), ("RGB", "a.bmp")])
def test_what_servers_may_see_differently_is_sent_as_limbeck_sees_it(tmp_path: Path, mode: str, name: str) -> None:
    noise(mode).save(tmp_path / name)
    source = FileImage(str(tmp_path / name))
    kind, data = sent(data_url(source))
    assert kind == "image/png"
    assert np.array_equal(Image.open(io.BytesIO(data)), source.open())


def test_a_turned_photograph_is_not_left_to_the_servers_taste(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    noise().save(tmp_path / "a.jpg", exif=exif)
    source = FileImage(str(tmp_path / "a.jpg"))
    found = Image.open(io.BytesIO(sent(data_url(source))[1]))
    assert not found.getexif()
    assert np.array_equal(found, source.open())


def test_a_large_made_picture_becomes_a_jpeg() -> None:
    kind, data = sent(data_url(MadeImage("large", lambda: noise(size=(1200, 1000)))))
    assert kind == "image/jpeg"
    assert Image.open(io.BytesIO(data)).size == (1200, 1000)


def test_what_is_cut_short_or_missing_is_broken(tmp_path: Path) -> None:
    noise(size=(200, 200)).save(tmp_path / "a.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:4000])
    with pytest.raises(BrokenImage, match=r"cut\.jpg"):
        data_url(FileImage(str(tmp_path / "cut.jpg")))
    with pytest.raises(BrokenImage, match=r"none\.jpg"):
        data_url(FileImage(str(tmp_path / "none.jpg")))
