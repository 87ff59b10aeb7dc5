"""Pairs, collate and the order of an epoch."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from limbeck.data.dataset import Collator, Item, Pairs, PairsConfig, normalize
from limbeck.data.encoding import texts_of
from limbeck.data.examples import (
    DataError,
    Example,
    FileImage,
    MadeImage,
    Question,
    Skipped,
    Source,
    check_skipped,
)
from limbeck.data.order import EpochSampler
from limbeck.data.scenes import ScenesConfig, load_scenes
from limbeck.data.sources import load_sources
from limbeck.data.tokenizer import SpecialIds, WordPieceTokenizer, load_tokenizer
from limbeck.data.transform import MEAN, STD, TransformConfig

CHANCE = TransformConfig(size=32, crop=(0.5, 1.0), flip=True, randaugment=True)
PLAIN = TransformConfig(size=32)


def scenes(**fields) -> Source:
    return load_scenes(ScenesConfig(source="builtin:scenes", count=40, size=32, **fields))


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(WordPieceTokenizer(tokenizer="wordpiece", vocab_size=600), texts_of(scenes().examples))


def same(first, second) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def batches(pairs: Pairs, epoch: int = 0, workers: int = 0) -> list:
    sampler = EpochSampler(len(pairs), seed=3, epoch=epoch)
    return list(DataLoader(pairs, batch_size=8, sampler=sampler, collate_fn=pairs.collate, num_workers=workers))


def test_a_batch_has_the_shapes_that_the_contract_names(tokenizer):
    pairs = Pairs(scenes(), tokenizer, PLAIN, PairsConfig(questions=2))
    batch = batches(pairs)[0]
    special = SpecialIds.of(tokenizer)
    assert batch["pixel_values"].shape == (8, 3, 32, 32)
    for ids, mask in (
        ("input_ids", "attention_mask"),
        ("question_ids", "question_mask"),
        ("answer_ids", "answer_mask"),
    ):
        assert batch[mask].dtype == torch.bool
        assert (batch[ids][:, 0] == special.cls).all()
        assert (batch[ids][~batch[mask]] == special.pad).all()
        ends = batch[mask].sum(1) - 1
        assert (batch[ids].gather(1, ends[:, None]) == special.sep).all()
        assert batch[mask].all(0).shape[0] == batch[mask].sum(1).max(), "padded to the longest, no further"
    assert batch["question_ids"].shape[0] == 16
    assert batch["question_image"].tolist() == [row for row in range(8) for _ in range(2)]
    assert batch["answer_question"].tolist() == list(range(16))
    assert "skipped" not in batch


def test_question_keys_are_absent_unless_asked_for(tokenizer):
    silent = load_scenes(ScenesConfig(source="builtin:scenes", count=8, size=32, questions=0))
    for pairs in (Pairs(scenes(), tokenizer, PLAIN), Pairs(silent, tokenizer, PLAIN, PairsConfig(questions=1))):
        assert not [key for key in batches(pairs)[0] if key.startswith(("question", "answer"))]


def test_workers_and_another_run_give_the_same_bits(tokenizer):
    pairs = Pairs(scenes(), tokenizer, CHANCE, PairsConfig(questions=1), seed=5)
    here = batches(pairs, epoch=2)
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002 (the global state must not matter)
    assert all(same(a, b) for a, b in zip(here, batches(pairs, epoch=2, workers=2), strict=True))
    again = Pairs(scenes(), tokenizer, CHANCE, PairsConfig(questions=1), seed=5)
    assert all(same(a, b) for a, b in zip(here, batches(again, epoch=2), strict=True))
    assert not same(here[0], batches(pairs, epoch=3)[0])


def test_epochs_draw_different_captions_and_all_of_them(tokenizer):
    pairs = Pairs(scenes(), tokenizer, PLAIN)
    drawn = {pairs[0, epoch].caption.tobytes() for epoch in range(60)}
    assert len(drawn) == 5


def test_all_captions_make_an_item_each_about_one_picture(tokenizer):
    source = scenes()
    pairs = Pairs(source, tokenizer, PLAIN, PairsConfig(captions="all"))
    assert len(pairs) == 200
    texts = [tokenizer.decode(pairs[index].caption, skip_special_tokens=True) for index in range(200)]
    assert texts == [caption for example in source.examples for caption in example.captions]
    assert pairs[0].image_id == pairs[4].image_id != pairs[5].image_id


def test_the_cache_changes_nothing(tokenizer):
    plain, cached = (Pairs(scenes(), tokenizer, PLAIN, PairsConfig(cache=cache)) for cache in (False, True))
    assert all(same(a, b) for a, b in zip(batches(plain), batches(cached), strict=True))
    with pytest.raises(DataError, match="randaugment must be off"):
        Pairs(scenes(), tokenizer, CHANCE, PairsConfig(cache=True))


def test_an_item_brings_draws_of_its_own_new_in_each_epoch(tokenizer):
    pairs = Pairs(scenes(), tokenizer, PLAIN)
    items = [pairs[index, 0] for index in range(4)]
    whole, part = pairs.collate(items), pairs.collate(items[2:3])
    length = part["input_ids"].shape[1]
    assert whole["draws"].shape == (*whole["input_ids"].shape, 2)
    assert torch.equal(whole["draws"][2, :length], part["draws"][0])
    assert not whole["draws"][~whole["attention_mask"]].any()
    drawn = whole["draws"][whole["attention_mask"]]
    assert len(drawn.unique()) == drawn.numel()
    assert not np.array_equal(pairs[2, 1].draws[:3], items[2].draws[:3])


def test_answers_weigh_as_many_as_gave_them(tokenizer):
    question = Question("q", "how many?", ("2", "two", "2", "2", "Two"))
    example = Example("a", MadeImage("a", lambda: Image.new("RGB", (32, 32))), ("a dog",), (question,))
    batch = batches(Pairs(Source("s", [example]), tokenizer, PLAIN, PairsConfig(questions=1)))[0]
    assert batch["answer_weight"].tolist() == pytest.approx([0.6, 0.4])
    assert batch["answer_question"].tolist() == [0, 0]
    assert tokenizer.batch_decode(batch["answer_ids"], skip_special_tokens=True) == ["2", "two"]


def test_long_texts_are_cut_and_keep_their_end(tokenizer):
    example = Example("a", MadeImage("a", lambda: Image.new("RGB", (32, 32))), ("dog " * 40,))
    item = Pairs(Source("s", [example]), tokenizer, PLAIN, PairsConfig(max_length=7))[0]
    assert isinstance(item, Item)
    assert len(item.caption) == 7
    assert item.caption[-1] == SpecialIds.of(tokenizer).sep


def test_the_prompt_stands_before_the_caption(tokenizer):
    item = Pairs(scenes(), tokenizer, PLAIN, PairsConfig(prompt="a picture of "))[0]
    assert tokenizer.decode(item.caption, skip_special_tokens=True).startswith("a picture of ")


@pytest.mark.parametrize("cache", [False, True])
def test_another_takes_a_broken_pictures_place_and_it_is_reported(tokenizer, tmp_path, cache):
    good, cut, text = tmp_path / "good.jpg", tmp_path / "cut.jpg", tmp_path / "text.jpg"
    Image.effect_noise((64, 64), 50).convert("RGB").save(good)
    cut.write_bytes(good.read_bytes()[:600])
    text.write_text("no picture")
    examples = [Example(path.name, FileImage(str(path)), ("a dog",)) for path in (good, cut, good, text)]
    pairs = Pairs(Source("s", examples), tokenizer, PLAIN, PairsConfig(cache=cache))
    batch = pairs.collate([pairs[index] for index in range(4)])
    assert batch["pixel_values"].shape[0] == batch["input_ids"].shape[0] == 4, "as many rows as items"
    assert batch["image_id"].unique().tolist() == [pairs[0].image_id], "the same picture in every row"
    reasons = {entry.id: entry.reason for entry in batch["skipped"]}
    assert reasons.keys() == {"cut.jpg", "text.jpg"}
    assert "truncated" in reasons["cut.jpg"].lower()
    assert str(text) in reasons["text.jpg"]
    assert pairs.collate([pairs[1]])["skipped"][0].id == "cut.jpg", "a batch of one, too"
    broken = Pairs(Source("s", [examples[1], examples[3]]), tokenizer, PLAIN, PairsConfig(cache=cache))
    with pytest.raises(DataError, match=r"not one of 2 examples that were tried(.|\n)*cut\.jpg"):
        broken[0]


def test_which_one_takes_a_broken_pictures_place_follows_from_seed_epoch_and_index(tokenizer):
    examples = list(scenes().examples)
    for index in range(10, 30):
        examples[index] = replace(examples[index], image=FileImage("gone.jpg"))
    pairs, again = (Pairs(Source("s", examples), tokenizer, CHANCE, PairsConfig(questions=1)) for _ in range(2))
    for epoch in (0, 1):
        item, other = pairs[12, epoch], again[12, epoch]
        assert item.skipped == other.skipped
        assert item.image_id == other.image_id
        assert (item.image == other.image).all()
        assert (item.caption == other.caption).all()
    assert len({pairs[12, epoch].image_id for epoch in range(20)}) > 5, "another one in another epoch"
    assert not pairs[9].skipped


def test_past_the_limit_the_run_is_told_the_first_ones():
    skipped = [Skipped(f"file:{line}", "no picture") for line in range(12)]
    check_skipped(skipped, 1200, 0.01, "data.jsonl")
    with pytest.raises(DataError, match=r"data.jsonl: 12 of 1199 (.|\n)*file:0: no picture(.|\n)*and 2 more"):
        check_skipped(skipped, 1199, 0.01, "data.jsonl")


def test_normalizing_is_clips():
    pictures = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    torch.testing.assert_close(normalize(pictures), (pictures / 255 - mean) / std)


def test_fingerprints_tell_data_and_settings_apart(tokenizer):
    def fingerprint(seed=0, size=32, **fields):
        return Pairs(scenes(**fields), tokenizer, TransformConfig(size=size), seed=seed).fingerprint()

    assert fingerprint() == fingerprint()
    assert len({fingerprint(), fingerprint(seed=1), fingerprint(size=48), fingerprint(split="val")}) == 4


def test_several_sources_are_one(tokenizer):
    configs = [ScenesConfig(source="builtin:scenes", count=count, size=32, seed=count) for count in (3, 4)]
    joined = load_sources(configs, Path())
    parts = [load_scenes(config).examples for config in configs]
    assert [e.id for e in joined.examples] == [e.id for part in parts for e in part]
    assert joined.examples[-1].id == parts[1][3].id
    with pytest.raises(IndexError):
        joined.examples[7]


def test_an_item_past_the_end_is_an_error(tokenizer):
    with pytest.raises(IndexError, match="item 40 of 40"):
        Pairs(scenes(), tokenizer, PLAIN)[40]


def test_the_collator_pads_with_the_tokenizers_own_id():
    image = np.zeros((3, 4, 4), np.uint8)
    items = [
        Item(image, 1, np.arange(1, 1 + length, dtype=np.int32), (), np.full((length, 2), 0.5, np.float32))
        for length in (2, 4)
    ]
    assert Collator(pad=9)(items)["input_ids"].tolist() == [[1, 2, 9, 9], [1, 2, 3, 4]]
