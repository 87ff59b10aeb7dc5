"""Dialogues by a model's own processor: the tensors that it makes, answers' places, what is too long or broken."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_model_chat import made
from torch.utils.data import DataLoader

from limbeck.data.chat import Chat, ChatConfig
from limbeck.data.conversations import Conversation, ConversationSource, Turn
from limbeck.data.dialogue_set import Dialogues
from limbeck.data.encoded_conversations import DialoguesConfig
from limbeck.data.examples import DataError, FileImage, MadeImage
from limbeck.data.model_chat import ModelChat
from limbeck.data.order import EpochSampler
from limbeck.data.processed import ProcessedDialogue, ProcessedDialogues, expanded, picture_tokens
from limbeck.data.transform import TransformConfig
from limbeck.models.llava import make_llava_processor
from limbeck.types import IGNORE

sys.path.append(str(Path(__file__).parents[1] / "models"))
from tiny_llavas import llava
from tiny_vlms import KINDS, picture, vlm

TALK = ("Is there a dog?", "Yes, a brown dog.", "How many cats?", "Two.")
SIZES = {"a": (40, 24), "b": (16, 48), "c": (30, 30)}


def shown(id: str, *texts: str) -> Conversation:
    turns = tuple(Turn("assistant" if number % 2 else "user", text) for number, text in enumerate(texts))
    return Conversation(id, MadeImage(id, lambda: picture(*SIZES[id])), turns)


def source(*conversations: Conversation) -> ConversationSource:
    return ConversationSource("s", conversations)


def talks() -> ConversationSource:
    return source(shown("a", *TALK), made("blind", "Hi", "Ho", image=False), shown("b", *TALK[:2]), shown("c", *TALK))


def dialogues(kind: str, data: ConversationSource | None = None, **fields) -> ProcessedDialogues:
    _, processor = vlm(kind)
    return ProcessedDialogues(data or talks(), ModelChat(processor), processor, DialoguesConfig(**fields))


def length_of(data: ProcessedDialogues, index: int) -> int:
    item = data[index]
    assert isinstance(item, ProcessedDialogue)
    return len(item.labels)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_what_the_processor_makes(kind):
    data = dialogues(kind)
    batch = data.collate([data[index] for index in (0, 2, 3)])
    conversations = [data.source.conversations[index] for index in (0, 2, 3)]
    wanted = data.processor(
        text=[data.chat.text(each) for each in conversations],
        images=[[each.image.open()] for each in conversations],
        padding=True,
        padding_side="right",
        add_special_tokens=False,
        return_tensors="pt",
    )
    assert batch.keys() == {*wanted, "labels", "image_id"}
    for name, tensor in wanted.items():
        assert batch[name].dtype == tensor.dtype, name
        assert torch.equal(batch[name], tensor), name


@pytest.mark.parametrize("kind", KINDS)
def test_labels_are_shifted_and_are_the_answers(kind):
    data = dialogues(kind)
    for index in range(4):
        item = data[index]
        assert isinstance(item, ProcessedDialogue)
        ids = item.texts["input_ids"]
        places = np.flatnonzero(item.labels != IGNORE)
        assert (ids[places + 1] == item.labels[places]).all()
        stop = data.processor.tokenizer.decode(data.chat.stop_id)
        said = data.processor.tokenizer.decode(item.labels[places]).split(stop)
        answers = [answer for _, answer in data.source.conversations[index].exchanges]
        assert [part.strip() for part in said] == [*answers, ""]
        if item.picture:
            assert np.flatnonzero(ids == data.chat.ids.image).max() < places[0]


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_of_a_mixed_batch_is_that_of_its_rows(kind):
    from limbeck.methods.comd import CoMD, StudentStage
    from limbeck.training.trainer import count_batch
    from limbeck.types import Counts

    model, _ = vlm(kind)
    method = CoMD(model, [StudentStage(name="tune", kind="tune", trainable=(), weights={})]).eval()
    data = dialogues(kind)
    items = [data[index] for index in range(4)]
    whole = data.collate(items)
    counts = Counts(*count_batch(whole))
    assert counts.answer_tokens == sum((item.labels != IGNORE).sum() for item in items)
    with torch.no_grad():
        parts = [method({**data.collate([item]), "counts": counts}).total for item in items]
        torch.testing.assert_close(method({**whole, "counts": counts}).total, sum(parts), rtol=1e-4, atol=1e-5)


def test_limbecks_processor_makes_of_llava_what_dialogues_make():
    _, small = vlm("llava")
    processor = make_llava_processor(llava(small.tokenizer, image_size=16), small.tokenizer)
    chat, fields, tokens = Chat(processor.tokenizer, ChatConfig()), {"pad_to_square": True}, 16
    ours = Dialogues(talks(), chat, TransformConfig(size=16), tokens, DialoguesConfig(**fields))
    theirs = ProcessedDialogues(talks(), chat, processor, DialoguesConfig(**fields))
    assert picture_tokens(processor, chat.ids.image) == (tokens, tokens)
    one, other = (data.collate([data[index] for index in range(4)]) for data in (ours, theirs))
    for name in ("input_ids", "labels", "image_id"):
        assert torch.equal(one[name], other[name]), name
    assert torch.equal(one["attention_mask"].long(), other["attention_mask"])
    assert (one["pixel_values"][one["has_image"]] - other["pixel_values"]).abs().max() < 0.05, (
        "rounding to whole levels"
    )


@pytest.mark.parametrize("kind", ["llava", "smolvlm", "qwen2_vl"])
def test_workers_another_run_and_the_cache_change_nothing(kind):
    def batches(workers: int = 0, epoch: int = 1, **fields) -> list:
        data = dialogues(kind, **fields)
        sampler = EpochSampler(len(data), seed=3, epoch=epoch)
        return list(DataLoader(data, batch_size=2, sampler=sampler, collate_fn=data.collate, num_workers=workers))

    here = batches()
    for other in (batches(), batches(workers=1), batches(cache=True)):
        for one, two in zip(here, other, strict=True):
            assert one.keys() == two.keys()
            assert all(torch.equal(one[name], two[name]) for name in one)


def test_what_is_too_long_is_left_out_or_loses_its_last_exchanges():
    full, short = length_of(dialogues("llava"), 0), length_of(dialogues("llava", source(shown("a", *TALK[:2]))), 0)
    data = dialogues("llava", max_length=full - 1, max_left_out=0.5)
    assert len(data) == 2
    assert [str(entry) for entry in data.left_out] == [
        f"{id}: {full} tokens, more than max_length {full - 1}" for id in "ac"
    ]
    with pytest.raises(DataError, match=r"s, max_left_out: 2 of 4 records"):
        dialogues("llava", max_length=full - 1)
    cut = dialogues("llava", max_length=full - 1, too_long="cut")
    assert length_of(cut, 0) == short
    assert not cut.left_out
    blind = dialogues("llava", needs_image=True, max_left_out=0.5)
    assert [str(entry) for entry in blind.left_out] == ["blind: no picture"]


def test_pictures_of_any_size_are_measured_when_they_are_opened():
    data = dialogues("qwen2_vl")
    fewest, most = picture_tokens(data.processor, data.chat.ids.image)
    assert fewest < most
    llava_data = dialogues("llava")
    assert picture_tokens(llava_data.processor, llava_data.chat.ids.image) == (4, 4)
    lengths = [length_of(data, index) for index in range(4)]
    long = max(lengths[0], lengths[3])
    skipping = dialogues("qwen2_vl", max_length=long - 1)
    assert len(skipping) == 4
    item = skipping[lengths.index(long)]
    assert f"{long} tokens, more than max_length {long - 1}" in str(item.skipped[0])
    assert len(item.labels) < long
    cutting = dialogues("qwen2_vl", max_length=long - 2, too_long="cut")
    assert length_of(cutting, lengths.index(long)) < long - 2


def test_another_takes_a_broken_pictures_place_and_it_is_reported(tmp_path):
    good, text = tmp_path / "good.png", tmp_path / "text.png"
    Image.effect_noise((64, 64), 50).convert("RGB").save(good)
    text.write_text("no picture")
    turns = (Turn("user", "Who?"), Turn("assistant", "Me."))
    files = source(*(Conversation(path.name, FileImage(str(path)), turns) for path in (good, text)))
    for cache in (False, True):
        data = dialogues("internvl", files, cache=cache)
        batch = data.collate([data[0], data[1]])
        assert len(batch["input_ids"]) == 2
        assert batch["image_id"].unique().numel() == 1
        assert [entry.id for entry in batch["skipped"]] == ["text.png"]
        assert [entry.id for entry in data.collate([data[1]])["skipped"]] == ["text.png"], "a batch of one, too"
        with pytest.raises(DataError, match=r"not one of 1 examples that were tried(.|\n)*text\.png"):
            dialogues("internvl", source(files.conversations[1]), cache=cache)[0]


def test_epochs_draw_from_groups():
    conversations = [shown("a", "Who?", answer) for answer in ("Me.", "You.")] + [shown("b", "Who?", "He.")]
    data = dialogues("llava", ConversationSource("s", conversations, groups=np.array([0, 2, 3])))
    assert len(data) == 2
    drawn = {
        data.processor.tokenizer.decode(data[0, epoch].labels[data[0, epoch].labels != IGNORE]) for epoch in range(20)
    }
    assert drawn == {" Me.</s>", " You.</s>"}
    with pytest.raises(IndexError, match="item 2 of 2"):
        data[2]


def test_fingerprints_tell_data_and_settings_apart():
    found = [
        dialogues("llava").fingerprint(),
        dialogues("llava", source(shown("a", *TALK))).fingerprint(),
        dialogues("llava", max_length=1000).fingerprint(),
        dialogues("internvl").fingerprint(),
    ]
    assert len({*found, dialogues("llava").fingerprint()}) == 4


def test_a_processor_that_changes_more_than_the_pictures_place_is_refused():
    plain = np.array([1, 5, 9, 6, 7])
    assert expanded(plain, np.array([1, 5, 8, 9, 9, 8, 6, 7]), 9, "P") == (2, 6)
    for changed in ([1, 4, 9, 9, 6, 7], [1, 5, 9, 9, 6, 8], [1, 5, 6, 7]):
        with pytest.raises(DataError, match="P makes"):
            expanded(plain, np.array(changed), 9, "P")


def test_chat_and_processor_must_mean_the_same_picture():
    _, llava = vlm("llava")
    _, qwen = vlm("qwen2_vl")
    with pytest.raises(DataError, match=r"token 4, the chat template writes token|in the place of token"):
        ProcessedDialogues(talks(), Chat(llava.tokenizer, ChatConfig()), qwen)
