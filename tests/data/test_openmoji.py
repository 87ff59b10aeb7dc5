"""The emoji pictures: all there, named, split once and for all, drawn once."""

import re

import numpy as np
import pytest

from limbeck.data import builtin
from limbeck.data.builtin import OpenMojiConfig, emojis, load_openmoji, pictures, with_article
from limbeck.data.examples import DataError


def load(split, **fields):
    return load_openmoji(OpenMojiConfig(source="builtin:openmoji", split=split, size=16, **fields)).examples


@pytest.fixture
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path))
    pictures.cache_clear()
    yield tmp_path
    pictures.cache_clear()


def test_there_are_3944_emojis_each_with_its_own_name():
    names = {entry.code: entry.name for entry in emojis()}
    assert len(names) == 3944
    assert len(set(names.values())) == 3944
    assert names["1F34E"] == "red apple"
    assert names["1F1EB-1F1F7"] == "flag of france"


@pytest.mark.parametrize("hold_out", ["emoji", "person"])
def test_splits_part_the_emojis(hold_out):
    ids = {split: {example.id for example in load(split, hold_out=hold_out)} for split in ("train", "val", "test")}
    assert sum(map(len, ids.values())) == len(set.union(*ids.values())) == 3944
    assert 300 < len(ids["test"]) < 500
    assert 300 < len(ids["val"]) < 500


def test_hold_out_person_keeps_skin_tones_together():
    tone = re.compile(r"( (medium-light|medium-dark|light|medium|dark) skin tone)+")
    people = {
        split: {tone.sub("", name) for e in load(split, hold_out="person") if "skin tone" in (name := e.captions[0])}
        for split in ("train", "test")
    }
    assert len(people["test"]) > 10
    assert not people["train"] & people["test"]


def test_pictures_are_drawn_once_and_then_read_from_the_cache(cache_folder, monkeypatch):
    example = load("train", limit=3)[1]
    first = np.asarray(example.image.open())
    assert first.shape == (16, 16, 3)
    assert (first == 255).any(), "on white"
    (file,) = cache_folder.iterdir()
    assert file.suffix == ".npy"
    pictures.cache_clear()
    monkeypatch.setattr(builtin, "render", lambda code, size: pytest.fail("drawn again"))
    assert np.array_equal(np.asarray(example.image.open()), first)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("red apple", "a red apple"),
        ("owl", "an owl"),
        ("unicorn", "a unicorn"),
        ("grapes", "grapes"),
        ("cactus", "a cactus"),
        ("women wrestling", "women wrestling"),
        ("hourglass done", "an hourglass done"),
    ],
)
def test_articles(name, said):
    assert with_article(name) == said


def test_the_licence_is_named():
    assert "OpenMoji" in builtin.ATTRIBUTION
    assert "CC BY-SA 4.0" in builtin.ATTRIBUTION


def test_a_missing_package_is_named_with_how_to_get_it(monkeypatch):
    found = builtin.importlib.util.find_spec
    monkeypatch.setattr(builtin.importlib.util, "find_spec", lambda name: None if name == "resvg_py" else found(name))
    with pytest.raises(DataError, match=r"needs resvg-py: pip install 'limbeck\[quickstart\]'"):
        emojis.__wrapped__()
