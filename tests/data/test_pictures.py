"""Stored pictures as RGB: which way is up, and how bright."""

import io

import numpy as np
import pytest
from PIL import Image

from limbeck.data.examples import BrokenImage, decode

ORIENTATION = 0x0112


def stored(image: Image.Image, format: str = "png", **values) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, format, **values)
    return file


@pytest.fixture
def halves() -> Image.Image:
    """Red above blue, twice as wide as high."""
    image = Image.new("RGB", (16, 8), "red")
    image.paste("blue", (0, 4, 16, 8))
    return image


@pytest.mark.parametrize(("format", "settings"), [("png", {}), ("jpeg", {"subsampling": 0})])
def test_a_turned_photograph_stands_upright(halves, format, settings):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    seen = decode(stored(halves.rotate(90, expand=True), format, exif=exif, **settings), "turned")
    assert seen.size == (16, 8)
    np.testing.assert_allclose(np.asarray(seen), np.asarray(halves), atol=30)


def test_a_damaged_exif_block_costs_no_picture(halves):
    seen = decode(stored(halves, "jpeg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"), "damaged")
    assert seen.size == (16, 8)


@pytest.mark.parametrize("mode", ["I;16", "I"])
def test_16_bits_of_grey_are_scaled_to_8(mode):
    grey = np.array([[0, 257 * 100], [257 * 200, 65535]], np.uint16 if mode == "I;16" else np.int32)
    file = stored(Image.fromarray(grey), "png" if mode == "I;16" else "tiff")
    assert Image.open(file).mode == mode
    assert np.asarray(decode(file, "grey"))[..., 0].tolist() == [[0, 100], [200, 255]]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.full((2, 2), 0.5, np.float32), "grey: its pixels are fractions"),
        (np.full((2, 2), 70000, np.int32), "grey: its pixels are numbers of more than 16 bits"),
    ],
)
def test_what_has_no_known_range_is_broken(values, reason):
    with pytest.raises(BrokenImage, match=reason):
        decode(stored(Image.fromarray(values), "tiff"), "grey")
