"""The file sources and the whole way to a batch on real pictures, captions and questions, where they are at hand."""

import io
import json
import tarfile
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from limbeck.data.coco import KarpathyConfig, VqaConfig, load_karpathy, load_vqa
from limbeck.data.dataset import Pairs, PairsConfig
from limbeck.data.examples import Source
from limbeck.data.jsonl import JsonlConfig, load_jsonl
from limbeck.data.order import EpochSampler
from limbeck.data.shards import WebDatasetConfig, load_webdataset
from limbeck.data.tokenizer import BertTokenizer, load_tokenizer
from limbeck.data.transform import TransformConfig


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(BertTokenizer(tokenizer="bert"))


def jsonl(folder: Path, path: str, **fields) -> Source:
    return load_jsonl(JsonlConfig(source="jsonl", path=path, **fields), folder)


def first_batch(source: Source, tokenizer, **fields):
    transform = TransformConfig(size=48, crop=(0.2, 1.0), flip=True, randaugment=True)
    pairs = Pairs(source, tokenizer, transform, PairsConfig(**fields))
    batch = next(iter(DataLoader(pairs, 16, sampler=EpochSampler(len(pairs)), collate_fn=pairs.collate)))
    assert "skipped" not in batch
    assert batch["pixel_values"].shape == (16, 3, 48, 48)
    assert torch.isfinite(batch["pixel_values"]).all()
    return batch


def test_flickr8k(real_data, tokenizer):
    photos = real_data / "photos_captions"
    sizes = {
        split: len(jsonl(photos, "captions.jsonl", where={"split": split}).examples) for split in ("train", "test")
    }
    assert sizes == {"train": 4000, "test": 1000}
    core = jsonl(photos, "captions.jsonl", where={"split": "train", "subset": "core"})
    assert len(core.examples) == 3000
    assert not core.skipped
    batch = first_batch(core, tokenizer)
    assert tokenizer.unk_token_id not in batch["input_ids"]


def test_coco_in_karpathys_file(real_data, tokenizer, tmp_path):
    folder = real_data / "coco_photos"
    records = [json.loads(line) for line in (folder / "annotations.jsonl").read_text().splitlines()]
    images = [
        {"filename": Path(r["image"]).name, "split": "test", "sentences": [{"raw": text} for text in r["captions"]]}
        for r in records
    ]
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": images}))
    config = KarpathyConfig(source="karpathy", path="dataset_coco.json", images=str(folder / "images"), split="test")
    source = load_karpathy(config, tmp_path)
    assert len(source.examples) == 239
    assert all(len(example.captions) >= 5 for example in source.examples)
    first_batch(source, tokenizer)


def test_vqa_v2_from_jsonl_and_from_the_official_files(real_data, tokenizer, tmp_path):
    folder = real_data / "vqa_v2"
    source = jsonl(folder, "with_images.jsonl")
    questions = {question.id: question for example in source.examples for question in example.questions}
    assert (len(source.examples), len(questions)) == (73, 112)
    assert all(len(question.answers) == 10 for question in questions.values())
    batch = first_batch(source, tokenizer, questions=1)
    weights = torch.zeros(16).index_add(0, batch["answer_question"], batch["answer_weight"])
    torch.testing.assert_close(weights, torch.ones(16))

    records = [json.loads(line) for line in (folder / "with_images.jsonl").read_text().splitlines()]
    (tmp_path / "photos").mkdir()
    for r in records:
        link = tmp_path / "photos" / f"COCO_val2014_{r['image_id']:012d}.jpg"
        if not link.exists():
            link.symlink_to(folder / r["image"])
    asked = [{name: r[name] for name in ("image_id", "question", "question_id")} for r in records]
    annotations = [
        {name: r[name] for name in ("question_id", "answer_type")} | {"answers": [{"answer": a} for a in r["answers"]]}
        for r in records
    ]
    (tmp_path / "q.json").write_text(json.dumps({"data_subtype": "val2014", "questions": asked}))
    (tmp_path / "a.json").write_text(json.dumps({"annotations": annotations}))
    config = VqaConfig(source="vqa_v2", questions="q.json", annotations="a.json", images="photos")
    official = load_vqa(config, tmp_path)
    assert len(official.examples) == 73
    assert questions == {question.id: question for example in official.examples for question in example.questions}


def test_emojis_in_other_styles(real_data, tokenizer):
    source = jsonl(real_data / "emoji", "manifest.jsonl", caption_field="label", where={"style": "fluent3d"})
    assert len(source.examples) == 1852
    first_batch(source, tokenizer)


def test_real_photos_in_a_shard_are_the_same_pictures(real_data, tmp_path):
    photos = jsonl(real_data / "photos_captions", "captions.jsonl", limit=20).examples
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for number, example in enumerate(photos):
            parts = {"jpg": Path(example.image.key).read_bytes(), "txt": example.captions[0].encode()}
            for ending, data in parts.items():
                info = tarfile.TarInfo(f"{number:04d}.{ending}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    sharded = load_webdataset(WebDatasetConfig(source="webdataset", shards="shard.tar"), tmp_path).examples
    assert [e.captions[0] for e in sharded] == [e.captions[0] for e in photos]
    assert all(a.image.open() == b.image.open() for a, b in zip(sharded, photos))
