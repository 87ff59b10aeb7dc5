"""Captions: the official figures of pycocoevalcap's own example, from COCO's files and Karpathy's."""

import json
import shutil

import pytest
from PIL import Image

from limbeck.data.examples import DataError
from limbeck.data.jsonl import JsonlConfig
from limbeck.data.scenes import ScenesConfig
from limbeck.evaluation.generative.benchmarks import BENCHMARKS, load_benchmark, score, with_predictions
from limbeck.evaluation.generative.captions import CaptionsConfig, CocoCaptionsConfig, ScenesCaptionConfig
from limbeck.evaluation.generative.items import CAPTION


@pytest.fixture(autouse=True)
def no_java(monkeypatch):
    """METEOR takes seconds to start; the metrics have their own tests."""
    monkeypatch.setattr(shutil, "which", lambda name: None)


def test_coco_captions_of_known_score(real_data, tmp_path):
    folder = real_data / "coco_caption_eval"
    captions = json.loads((folder / "captions_val2017.json").read_text())
    said = {row["image_id"]: row["caption"] for row in json.loads((folder / "fakecap126_results.json").read_text())}
    chosen = {
        "images": [image for image in captions["images"] if image["id"] in said],
        "annotations": [one for one in captions["annotations"] if one["image_id"] in said],
    }
    (tmp_path / "captions.json").write_text(json.dumps(chosen))
    config = CocoCaptionsConfig(benchmark="coco_captions", annotations="captions.json", blind=True)
    items = load_benchmark(config, tmp_path)
    assert len(items) == 126
    assert items[0].prompt == "Provide a one-sentence caption for the provided image."
    rows = with_predictions(items, {str(id): caption for id, caption in said.items()})
    summary = score("coco_captions", rows)
    assert summary["CIDEr"] == pytest.approx(62.77, abs=0.5)
    assert summary["BLEU-4"] == pytest.approx(19.83, abs=0.3)
    submission = BENCHMARKS["coco_captions"].submission
    assert submission is not None
    assert {row["image_id"]: row["caption"] for row in submission(rows)} == said


def test_karpathys_split(tmp_path):
    def image(id: int, split: str) -> dict:
        name = f"{id}.jpg"
        (tmp_path / "val2014").mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "val2014" / name)
        sentences = [{"raw": f"a cat number {id} "}, {"raw": "a cat"}]
        return {"cocoid": id, "split": split, "filepath": "val2014", "filename": name, "sentences": sentences}

    file = tmp_path / "dataset_coco.json"
    file.write_text(json.dumps({"images": [image(1, "train"), image(2, "test"), image(3, "test")]}))
    fields = {"benchmark": "coco_captions", "annotations": file.name, "images": "."}
    items = load_benchmark(CocoCaptionsConfig(**fields, prompt=""), tmp_path)
    assert [item.id for item in items] == ["2", "3"]
    assert items[0].row == {"references": ["a cat number 2", "a cat"]}
    assert items[0].prompt == ""
    assert items[0].images[0].open().size == (4, 4)
    assert len(load_benchmark(CocoCaptionsConfig(**fields, limit=1), tmp_path)) == 1
    with pytest.raises(DataError, match="not one picture of the split val"):
        load_benchmark(CocoCaptionsConfig(**fields, split="val"), tmp_path)
    file.write_text(json.dumps({"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": [{"image_id": 1}]}))
    with pytest.raises(DataError, match=r"annotations\[0\]: no field 'caption'"):
        load_benchmark(CocoCaptionsConfig(**fields), tmp_path)


def test_captions_of_any_source(tmp_path):
    for name in ("a", "b"):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{name}.png")
    records = [{"id": "a", "image": "a.png", "captions": ["a red square", "red"]}]
    records += [{"id": "b", "image": "b.png", "question": "Which?", "answer": "red"}]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    config = CaptionsConfig(benchmark="captions", data=(JsonlConfig(source="jsonl", path="pairs.jsonl"),))
    items = load_benchmark(config, tmp_path)
    assert [(item.id, item.row["references"]) for item in items] == [("a", ["a red square", "red"])]


def test_captions_of_scenes():
    pytest.importorskip("resvg_py")
    scenes = ScenesConfig(source="builtin:scenes", split="test", count=6, size=32)
    items = load_benchmark(ScenesCaptionConfig(benchmark="scenes_caption", data=scenes))
    assert len(items) == 6
    assert {item.prompt for item in items} == {CAPTION}
    said = {item.id: item.row["references"][0] for item in items}
    perfect = score("scenes_caption", with_predictions(items, said))
    assert perfect["BLEU-1"] == pytest.approx(100)
    assert perfect["CIDEr"] > 100
    assert score("scenes_caption", with_predictions(items, dict.fromkeys(said, "what")))["CIDEr"] < 1
