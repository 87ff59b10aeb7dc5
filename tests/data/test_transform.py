"""Transforms depend on nothing but their generator; captions are cleaned as BLIP does."""

import random

import numpy as np
import pytest
from PIL import Image

from limbeck.data.transform import (
    AUGMENTATIONS,
    TransformConfig,
    clean_answer,
    clean_caption,
    random_resized_crop,
    transform,
)

FULL = TransformConfig(size=32, crop=(0.2, 1.0), flip=True, randaugment=True)


@pytest.fixture
def picture() -> Image.Image:
    noise = np.random.default_rng(0).integers(60, 200, (6, 8, 3), np.uint8)
    return Image.fromarray(noise).resize((80, 60), Image.Resampling.BICUBIC)


def test_the_same_generator_gives_the_same_picture(picture):
    random.seed(1)
    first = [transform(picture, FULL, random.Random(seed)) for seed in range(20)]
    random.seed(2)
    np.random.seed(2)  # noqa: NPY002 (the global state must not matter)
    second = [transform(picture, FULL, random.Random(seed)) for seed in range(20)]
    assert all(np.array_equal(a, b) for a, b in zip(first, second))
    assert len({array.tobytes() for array in first}) == 20


def test_evaluation_squashes_the_whole_picture(picture):
    result = transform(picture, FULL.evaluation(), random.Random(0))
    wanted = np.asarray(picture.resize((32, 32), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    assert np.array_equal(result, wanted)
    assert result.dtype == np.uint8


def test_a_picture_of_the_right_size_is_left_as_it_is(picture):
    square = picture.resize((32, 32))
    assert np.array_equal(transform(square, TransformConfig(size=32), random.Random(0))[1], np.asarray(square)[..., 1])


def test_crops_keep_to_the_share_of_the_area():
    ramp = np.zeros((100, 100, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(100)[None], np.arange(100)[:, None]
    shares = []
    for seed in range(200):
        crop = np.asarray(random_resized_crop(Image.fromarray(ramp), 50, (0.5, 1.0), random.Random(seed))).astype(int)
        shares.append((np.ptp(crop[..., 0]) + 2) * (np.ptp(crop[..., 1]) + 2) / 10_000)
    assert 0.45 < min(shares) < 0.6
    assert max(shares) > 0.85


def test_a_very_long_picture_is_cropped_to_its_middle():
    long = Image.new("RGB", (400, 4))
    assert random_resized_crop(long, 16, (0.9, 1.0), random.Random(0)).size == (16, 16)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_each_augmentation_keeps_the_size_and_does_something(name, picture):
    strong = AUGMENTATIONS[name](picture, 1.0, random.Random(0))
    assert strong.size == picture.size
    assert strong.mode == "RGB"
    assert (name == "identity") == np.array_equal(np.asarray(strong), np.asarray(picture))


def test_brightness_and_sharpness_do_nothing_at_blips_strength(picture):
    for name in ("brightness", "sharpness"):
        assert np.array_equal(np.asarray(AUGMENTATIONS[name](picture, 0.5, random.Random(0))), np.asarray(picture))


def test_a_recipes_list_is_a_crop_and_a_text_is_not():
    assert TransformConfig.model_validate({"crop": [0.5, 1]}).crop == (0.5, 1.0)
    with pytest.raises(ValueError, match="crop"):
        TransformConfig.model_validate({"crop": "0.5"})


def test_captions_are_cleaned_as_blip_does():
    assert clean_caption('A "Red" Apple (big)... on: a t-shirt!') == "a red apple big on a t-shirt"
    assert clean_caption("#one *two; three~ four? five, six") == "one two three four? five, six"
    assert len(clean_caption("word " * 50).split()) == 30
    assert clean_answer(" 10:30  PM") == "10:30 pm"
