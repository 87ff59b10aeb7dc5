"""Dialogues and their batches: shapes, labels, chance, cache, what is too long, broken or without a picture."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from chat_tokenizers import bpe
from PIL import Image
from pydantic import TypeAdapter
from torch.utils.data import DataLoader

from limbeck.data.chat import Chat, ChatConfig, encode_conversation
from limbeck.data.conversation_sources import ConversationSourceConfig, load_conversations
from limbeck.data.conversations import Conversation, ConversationSource, Turn, join
from limbeck.data.decoder_tokenizer import conversation_texts
from limbeck.data.dialogue_set import Dialogue, DialogueCollator, Dialogues, padded_to_square
from limbeck.data.encoded_conversations import DialoguesConfig
from limbeck.data.examples import DataError, FileImage, MadeImage
from limbeck.data.normalization import CLIP, Normalization, read_normalization
from limbeck.data.order import EpochSampler
from limbeck.data.transform import MEAN, STD, TransformConfig, transform
from limbeck.types import IGNORE

CHANCE = TransformConfig(size=32, crop=(0.5, 1.0), flip=True, randaugment=True)
PLAIN = TransformConfig(size=32)
N = 5
"""image tokens"""


def scenes(kind: str, count: int = 24, **fields) -> ConversationSource:
    of = {"source": "builtin:scenes", "count": count, "size": 32, "vocabulary": 36}
    config = TypeAdapter(ConversationSourceConfig).validate_python({"source": kind, "of": of, **fields})
    return load_conversations([config], Path())


@pytest.fixture(scope="module")
def tokenizer():
    return bpe(conversation_texts(scenes("dialogue")), 500)


@pytest.fixture(scope="module")
def chat(tokenizer):
    return Chat(tokenizer, ChatConfig(template="vicuna_v1", system=""))


@pytest.fixture(scope="module")
def caption(tokenizer):
    return Chat(tokenizer, ChatConfig(template="plain"))


def dialogues(chat, source=None, transform=PLAIN, seed=0, **fields) -> Dialogues:
    return Dialogues(source or scenes("dialogue"), chat, transform, N, DialoguesConfig(**fields), seed=seed)


def batches(data: Dialogues, epoch: int = 0, workers: int = 0) -> list:
    sampler = EpochSampler(len(data), seed=3, epoch=epoch)
    return list(DataLoader(data, batch_size=8, sampler=sampler, collate_fn=data.collate, num_workers=workers))


def same(first, second) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def made(id: str, *texts: str, image=True) -> Conversation:
    """A conversation about a picture of noise; user and assistant say the texts by turns."""
    turns = tuple(Turn("assistant" if number % 2 else "user", text) for number, text in enumerate(texts))
    return Conversation(
        id, MadeImage(id, lambda: Image.effect_noise((8, 6), 50).convert("RGB")) if image else None, turns
    )


def test_a_batch_has_the_shapes_that_the_contract_names(chat):
    batch = batches(dialogues(chat))[0]
    ids, mask, labels = batch["input_ids"], batch["attention_mask"], batch["labels"]
    assert batch["pixel_values"].shape == (8, 3, 32, 32)
    assert batch["pixel_values"].dtype == torch.float32
    assert ids.dtype == labels.dtype == batch["image_id"].dtype == torch.int64
    assert mask.dtype == batch["has_image"].dtype == torch.bool
    assert ids.shape == mask.shape == labels.shape == (8, int(mask.sum(1).max()))
    assert (mask.long().diff(dim=1) <= 0).all(), "padded on the right"
    assert (ids[~mask] == chat.ids.pad).all()
    assert (labels[~mask] == IGNORE).all()
    assert ((ids == chat.ids.image).sum(1) == N).all()
    assert (ids[:, 0] == chat.ids.bos).all()
    assert batch["has_image"].all()
    assert batch["image_id"].unique().numel() == 8
    assert "skipped" not in batch


def test_labels_are_shifted_and_are_the_answers(chat):
    data = dialogues(chat)
    source = data.source.conversations
    for index in range(len(data)):
        item = data[index]
        assert isinstance(item, Dialogue)
        places = np.flatnonzero(item.labels != IGNORE)
        assert (item.ids[places + 1] == item.labels[places]).all()
        answers = "".join(f" {answer}</s>" for _, answer in source[index].exchanges)
        assert chat.tokenizer.decode(item.labels[places]) == answers
        ids, labels = encode_conversation(source[index], chat, N)
        assert (ids == item.ids).all()
        assert (labels == item.labels).all()
        first = places[0]
        assert (item.ids[:first] == chat.ids.image).sum() == N, "the picture stands before every answer"


def test_widened_ids_are_those_of_a_processors_text(chat):
    """A processor repeats `<image>` in the text before it is tokenised."""
    conversation = scenes("dialogue").conversations[0]
    text = chat.text(conversation).replace("<image>", "<image>" * N)
    ids, _ = encode_conversation(conversation, chat, N)
    assert chat.tokenizer(text).input_ids == ids.tolist()


def test_captions_make_picture_and_caption_pairs(caption):
    data = dialogues(caption, scenes("captions"))
    item = data[0]
    assert isinstance(item, Dialogue)
    assert item.ids[: N + 1].tolist() == [caption.ids.bos, *[caption.ids.image] * N]
    assert (item.labels[:N] == IGNORE).all()
    assert item.labels[N:].tolist() == [*item.ids[N + 1 :].tolist(), IGNORE]


def test_workers_and_another_run_give_the_same_bits(caption):
    data = dialogues(caption, scenes("captions"), CHANCE, seed=5)
    here = batches(data, epoch=2)
    torch.manual_seed(1)
    assert all(same(a, b) for a, b in zip(here, batches(data, epoch=2, workers=2), strict=True))
    again = dialogues(caption, scenes("captions"), CHANCE, seed=5)
    assert all(same(a, b) for a, b in zip(here, batches(again, epoch=2), strict=True))
    assert not same(here[0], batches(data, epoch=3)[0])


def test_epochs_draw_different_captions_and_all_of_them(caption):
    source = scenes("captions")
    data = dialogues(caption, source)
    assert len(data) == 24
    drawn = {caption.tokenizer.decode(data[0, epoch].ids, skip_special_tokens=True) for epoch in range(60)}
    assert drawn == {conversation.turns[1].text for conversation in source.conversations[:5]}
    every = dialogues(caption, scenes("captions", draw="all"))
    assert len(every) == 120
    assert every[0].image_id == every[4].image_id != every[5].image_id


def test_a_group_loses_what_is_too_long_and_stays_a_group(caption):
    long, short = "dog " * 60, "a dog"
    parts = [("a", short, long, "a cat"), ("b", long), ("c", "a cow")]
    conversations = [made(id, "?", text) for id, *texts in parts for text in texts]
    source = ConversationSource("s", conversations, groups=np.array([0, 3, 4, 5]))
    data = dialogues(caption, source, max_length=30, max_left_out=0.5)
    assert len(data) == 2
    decode = caption.tokenizer.decode
    drawn = [{decode(data[row, epoch].ids, skip_special_tokens=True) for epoch in range(30)} for row in (0, 1)]
    assert drawn == [{"a dog", "a cat"}, {"a cow"}]
    assert [entry.id for entry in data.left_out] == ["a", "b"]


def test_lengths_are_those_of_an_epochs_items(caption, chat):
    for data in (dialogues(caption, scenes("captions", draw="one")), dialogues(chat)):
        for epoch in (0, 1):
            assert data.lengths(epoch) == [len(data[index, epoch].ids) - N + 1 for index in range(len(data))]


def test_the_cache_changes_nothing(caption):
    plain, cached = (dialogues(caption, scenes("captions"), cache=cache) for cache in (False, True))
    assert all(same(a, b) for a, b in zip(batches(plain), batches(cached), strict=True))
    assert cached._images is not None
    assert len(cached._images) == 24, "one for all captions of a picture"
    with pytest.raises(DataError, match="randaugment must be off"):
        dialogues(caption, scenes("captions"), CHANCE, cache=True)


def test_what_is_too_long_is_left_out_and_listed(chat):
    long = made("long", "Who?", "dog " * 40)
    source = ConversationSource("s", [made("a", "Who?", "Me."), long, made("b", "Who?", "You.")])
    full = len(encode_conversation(long, chat, N)[0])
    data = dialogues(chat, source, max_length=full - 1, max_left_out=0.5)
    assert len(data) == 2
    assert [str(entry) for entry in data.left_out] == [f"long: {full} tokens, more than max_length {full - 1}"]
    assert len(dialogues(chat, source, max_length=full)) == 3, "the picture's tokens are counted exactly"
    with pytest.raises(DataError, match=r"s, max_left_out: 1 of 3 records(.|\n)*long: \d+ tokens"):
        dialogues(chat, source, max_length=full - 1)
    with pytest.raises(DataError, match=r"not one of 3 conversations can be used"):
        dialogues(chat, source, max_length=8, max_left_out=1.0)


def test_what_is_too_long_can_lose_its_last_exchanges(chat):
    exchanges = ["Who?", "Me.", "And?", "You.", "Then?", "dog " * 40]
    fits = made("fits", *exchanges[:4])
    length = len(encode_conversation(fits, chat, N)[0])
    source = ConversationSource("s", [made("cut", *exchanges), made("lost", "Who?", "dog " * 40), fits])
    data = dialogues(chat, source, too_long="cut", max_length=length, max_left_out=0.5)
    assert len(data) == 2
    assert (data[0].ids == data[1].ids).all()
    assert (data[0].labels == data[1].labels).all()
    assert [entry.id for entry in data.left_out] == ["lost"]


def test_conversations_without_a_picture(chat):
    source = ConversationSource("s", [made("a", "Who?", "Me."), made("b", "Hi", "Ho", image=False)])
    data = dialogues(chat, source)
    batch = data.collate([data[0], data[1], data[1]])
    assert batch["has_image"].tolist() == [True, False, False]
    assert (batch["pixel_values"][1] == 0).all()
    assert (batch["pixel_values"][0] != 0).any()
    assert (batch["input_ids"] == chat.ids.image).sum(1).tolist() == [N, 0, 0]
    assert len({*batch["image_id"].tolist()}) == 2
    demanding = dialogues(chat, source, needs_image=True, max_left_out=0.5)
    assert len(demanding) == 1
    assert [str(entry) for entry in demanding.left_out] == ["b: no picture"]


def test_what_a_source_says_wrongly_is_left_out_and_listed(chat):
    bad = [made("a", "Who?"), made("b", "Who?", ""), made("c", "Who?", "end</s>")]
    data = dialogues(chat, ConversationSource("s", [*bad, made("d", "Who?", "Me.")]), max_left_out=0.8)
    assert [entry.id for entry in data.left_out] == ["a", "b", "c"]
    assert len(data) == 1


@pytest.mark.parametrize("cache", [False, True])
def test_texts_alone_open_no_picture_and_are_the_same_texts(chat, tmp_path, cache):
    turns = (Turn("user", "Who?"), Turn("assistant", "Me."))
    source = ConversationSource("s", [Conversation("gone", FileImage(str(tmp_path / "gone.jpg")), turns)])
    full = len(encode_conversation(source.conversations[0], chat, N)[0])
    config = DialoguesConfig(cache=cache, needs_image=True)
    texts = Dialogues(source, chat, PLAIN, N, config, pictures=False)
    batch = texts.collate([texts[0]])
    assert "skipped" not in batch
    assert (batch["pixel_values"] == 0).all()
    assert batch["input_ids"].shape == (1, full)
    assert (batch["input_ids"] == chat.ids.image).sum() == N
    assert texts.fingerprint() == dialogues(chat, source, cache=cache, needs_image=True).fingerprint()


@pytest.mark.parametrize("cache", [False, True])
def test_another_takes_a_broken_pictures_place_and_it_is_reported(chat, tmp_path, cache):
    good, cut, text = tmp_path / "good.jpg", tmp_path / "cut.jpg", tmp_path / "text.jpg"
    Image.effect_noise((64, 64), 50).convert("RGB").save(good)
    cut.write_bytes(good.read_bytes()[:600])
    text.write_text("no picture")
    turns = (Turn("user", "Who?"), Turn("assistant", "Me."))
    files = [Conversation(path.name, FileImage(str(path)), turns) for path in (good, cut, good, text)]
    data = dialogues(chat, ConversationSource("s", files), cache=cache)
    batch = data.collate([data[index] for index in range(4)])
    assert batch["pixel_values"].shape[0] == batch["input_ids"].shape[0] == 4, "as many rows as items"
    assert batch["image_id"].unique().numel() == 1
    reasons = {entry.id: entry.reason for entry in batch["skipped"]}
    assert reasons.keys() == {"cut.jpg", "text.jpg"}
    assert str(text) in reasons["text.jpg"]
    assert data[1, 7].skipped == data[1, 7].skipped
    assert data.collate([data[1]])["skipped"][0].id == "cut.jpg", "a batch of one, too"
    broken = dialogues(chat, ConversationSource("s", [files[1], files[3]]), cache=cache)
    with pytest.raises(DataError, match=r"not one of 2 examples that were tried(.|\n)*cut\.jpg"):
        broken[0]


def test_pictures_are_padded_to_a_square_with_clips_mean(chat):
    wide = Image.new("RGB", (40, 20), (255, 0, 0))
    square = np.asarray(padded_to_square(wide))
    assert square.shape == (40, 40, 3)
    assert (square[10:30] == (255, 0, 0)).all()
    assert (square[:10] == (122, 116, 104)).all(), "LLaVA's int(255 * mean)"
    assert (square[30:] == (122, 116, 104)).all()
    assert padded_to_square(Image.new("RGB", (20, 40))).size == (40, 40)
    turns = (Turn("user", "Who?"), Turn("assistant", "Me."))
    source = ConversationSource("s", [Conversation("a", MadeImage("a", lambda: wide), turns)])
    item = dialogues(chat, source, pad_to_square=True)[0]
    assert (item.image == transform(padded_to_square(wide), PLAIN, random.Random(0))).all()
    assert not (item.image == dialogues(chat, source)[0].image).all()


def test_an_item_brings_two_draws_of_its_own_new_in_each_epoch(chat):
    data = dialogues(chat, scenes("dialogue"))
    whole, part = data.collate([data[index] for index in range(4)]), data.collate([data[2]])
    assert whole["draws"].shape == (4, 2)
    assert whole["draws"][2].equal(part["draws"][0])
    assert len(whole["draws"].unique()) == 8
    assert data[2, 1].draws != data[2].draws


def test_pixels_have_clips_mean_and_deviation():
    image = np.full((3, 2, 2), 51, np.uint8)
    batch = DialogueCollator(pad=0, size=2)([Dialogue(image, 1, np.array([1, 2]), np.array([2, IGNORE]), (0.1, 0.9))])
    expected = (0.2 - torch.tensor(MEAN)) / torch.tensor(STD)
    torch.testing.assert_close(batch["pixel_values"][0, :, 0, 0], expected)


def test_fingerprints_tell_data_and_settings_apart(chat, tokenizer):
    def fingerprint(kind="dialogue", writer=chat, transform=PLAIN, seed=0, **fields):
        return dialogues(writer, scenes(kind), transform, seed, **fields).fingerprint()

    other = Chat(tokenizer, ChatConfig(template="llama"))
    found = [
        fingerprint(),
        fingerprint("instructions"),
        fingerprint(writer=other),
        fingerprint(transform=TransformConfig(size=48)),
        fingerprint(seed=1),
        fingerprint(max_length=1000),
    ]
    assert len({*found, fingerprint()}) == 6


def test_an_item_past_the_end_is_an_error(chat):
    with pytest.raises(IndexError, match="item 24 of 24"):
        dialogues(chat)[24]


def test_sources_joined_are_drawn_by_their_own_groups(chat):
    source = join([scenes("captions", 4), scenes("dialogue", 3)])
    data = dialogues(chat, source)
    assert len(data) == 7
    assert data[6].ids.size


def test_an_eyes_own_mean_fills_borders_and_normalises(chat):
    mean, std = (0.5, 0.25, 0.0), (0.5, 0.2, 1.0)
    wide = Image.new("RGB", (40, 20), (255, 0, 0))
    turns = (Turn("user", "Who?"), Turn("assistant", "Me."))
    source = ConversationSource("s", [Conversation("a", MadeImage("a", lambda: wide), turns)])
    config = DialoguesConfig(pad_to_square=True)
    data = Dialogues(source, chat, PLAIN, N, config, normalization=Normalization(mean, std))
    assert data[0].image[:, 0, 0].tolist() == [127, 63, 0]
    pixels = data.collate([data[0]])["pixel_values"][0]
    expected = (torch.tensor([127, 63, 0]) / 255 - torch.tensor(mean)) / torch.tensor(std)
    torch.testing.assert_close(pixels[:, 0, 0], expected)


@pytest.mark.parametrize(
    ("file", "values", "expected"),
    [
        (None, {}, CLIP),
        ("preprocessor_config.json", {"image_mean": [0.5] * 3, "image_std": [0.25] * 3}, ((0.5,) * 3, (0.25,) * 3)),
        ("preprocessor_config.json", {"do_normalize": False, "image_mean": [0.5] * 3}, ((0.0,) * 3, (1.0,) * 3)),
        ("preprocessor_config.json", {"size": 224}, CLIP),
        ("processor_config.json", {"image_processor": {"image_mean": [0.5] * 3}}, ((0.5,) * 3, STD)),
        ("processor_config.json", {"image_seq_len": 4}, CLIP),
    ],
)
def test_an_eyes_folder_says_how_it_was_trained(tmp_path, file, values, expected):
    if file is not None:
        (tmp_path / file).write_text(json.dumps(values))
    assert read_normalization(tmp_path) == (expected if expected is CLIP else Normalization(*expected))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image_mean": [0.5]}, r"image_mean is \[0\.5\]; wanted three numbers"),
        ({"image_std": 0.5}, r"image_std is 0\.5; wanted three numbers"),
        ([], r"preprocessor_config\.json: wanted an object, found a list"),
    ],
)
def test_settings_of_an_eyes_folder_that_make_no_sense_are_refused(tmp_path, values, message):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
    with pytest.raises(DataError, match=message):
        read_normalization(tmp_path)
