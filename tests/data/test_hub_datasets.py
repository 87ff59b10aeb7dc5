"""Folders of the `datasets` library."""

from pathlib import Path

import pytest
from PIL import Image

from limbeck.data.examples import BrokenImage, DataError
from limbeck.data.hub import DatasetsConfig, load_datasets

datasets = pytest.importorskip("datasets")


@pytest.fixture
def table(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    rows = {
        "image": [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")],
        "caption": [["a red square", "red"], ["green"], [" "]],
        "q": ["which colour?"] * 3,
        "a": ["red", "green", "blue"],
    }
    return datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())


def load(folder, **fields):
    return load_datasets(DatasetsConfig(source="datasets", path="set", max_skipped=0.5, **fields), folder)


@pytest.mark.parametrize("kind", ["disk", "dict", "parquet"])
def test_local_folders(kind, table, tmp_path):
    if kind == "disk":
        table.save_to_disk(tmp_path / "set")
    elif kind == "dict":
        datasets.DatasetDict(train=table).save_to_disk(tmp_path / "set")
    else:
        (tmp_path / "set").mkdir()
        table.to_parquet(tmp_path / "set" / "train.parquet")
    source = load(tmp_path, question="q", answers="a")
    assert [example.captions for example in source.examples] == [("a red square", "red"), ("green",)]
    assert source.examples[1].image.open().getpixel((0, 0)) == (0, 255, 0)
    assert source.examples[1].questions[0].answers == ("green",)
    assert [(entry.id, entry.reason) for entry in source.skipped] == [
        ("set[2]", "field 'caption': the caption is empty")
    ]


def test_an_image_folder(table, tmp_path):
    (tmp_path / "set").mkdir()
    Image.new("RGB", (8, 8), "red").save(tmp_path / "set" / "1.png")
    (tmp_path / "set" / "2.png").write_text("broken")
    lines = [f'{{"file_name": "{n}.png", "caption": "number {n}"}}' for n in (1, 2)]
    (tmp_path / "set" / "metadata.jsonl").write_text("\n".join(lines))
    first, second = load(tmp_path).examples
    assert first.captions == ("number 1",)
    assert first.image.open().size == (8, 8)
    with pytest.raises(BrokenImage, match=r"set\[1\]"):
        second.image.open()


@pytest.mark.parametrize("kind", ["disk", "parquet", "files"])
def test_rows_of_one_picture_come_together(kind, table, tmp_path):
    places = []
    for name, colour in (("red", "red"), ("lime", "lime"), ("again", "red")):
        places.append(str(tmp_path / f"{name}.bmp"))
        Image.new("RGB", (8, 8), colour).save(places[-1])
    red, lime, again = places
    paths = [red, lime, red, lime, red if kind == "files" else again]
    pictures = paths if kind == "files" else [{"bytes": Path(path).read_bytes(), "path": None} for path in paths]
    rows = {"image": pictures, "caption": ["one", "two", "three", "four", "five"]}
    made = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    if kind == "parquet":
        (tmp_path / "set").mkdir()
        made.to_parquet(tmp_path / "set" / "train.parquet")
    else:
        made.save_to_disk(tmp_path / "set")
    examples = load(tmp_path).examples
    assert [(example.id, example.captions) for example in examples] == [
        ("set[0]", ("one", "three", "five")),
        ("set[1]", ("two", "four")),
    ]
    assert examples[1].image.open().getpixel((0, 0)) == (0, 255, 0)
    assert [example.captions for example in load(tmp_path, limit=1).examples] == [("one",)]


def test_wrong_columns_and_splits_are_named(table, tmp_path):
    datasets.DatasetDict(train=table).save_to_disk(tmp_path / "set")
    with pytest.raises(DataError, match="no column text; it has image, caption, q, a"):
        load(tmp_path, caption="text")
    with pytest.raises(DataError, match="no split 'test'; it has train"):
        load(tmp_path, split="test")


@pytest.mark.parametrize("path", ["./pets", "/nowhere/pets", "~/pets", "my/own/pets"])
def test_a_missing_folder_is_not_looked_for_on_the_hub(tmp_path, monkeypatch, path):
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("the hub was asked"))
    with pytest.raises(DataError, match=r"pets: no such folder \(source datasets, field path\)"):
        load_datasets(DatasetsConfig(source="datasets", path=path), tmp_path)
