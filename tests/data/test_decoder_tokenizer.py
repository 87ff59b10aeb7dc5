"""Tokenizers of generative models: round trips, special tokens, BOS once, plain Hugging Face folders."""

import pytest
from chat_tokenizers import CHATML, bpe
from tokenizers import Tokenizer, models, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from limbeck.data.conversations import Conversation, ConversationSource, Turn
from limbeck.data.decoder_tokenizer import (
    BpeTokenizer,
    DecoderFolder,
    DecoderIds,
    conversation_texts,
    load_decoder_tokenizer,
)
from limbeck.data.examples import DataError

TEXTS = [f"how many {thing}s are there? there are {n}" for thing in ("dog", "cat", "house", "tree") for n in range(30)]


@pytest.fixture(scope="module")
def tokenizer():
    return bpe(TEXTS, 310)


def test_special_tokens_have_their_places(tokenizer):
    assert DecoderIds.of(tokenizer) == DecoderIds(bos=1, eos=2, pad=0, image=310)
    assert len(tokenizer) == 311, "<image> is one past the models' vocabulary"
    assert [tokenizer.get_vocab()[token] for token in CHATML] == [3, 4]
    assert tokenizer("<s><image><|im_end|></s>").input_ids == [1, 310, 4, 2]
    assert tokenizer.padding_side == "left"


def test_nothing_is_added_and_nothing_is_lost(tokenizer):
    for text in (*TEXTS[:9], " Élan  vital\n\n\t- 猫 😀 \x00", "", "a" * 5000):
        ids = tokenizer(text).input_ids
        assert 1 not in ids
        assert tokenizer.decode(ids) == text


def test_training_gives_the_same_vocabulary_every_time():
    vocabularies = [bpe(TEXTS, 310).get_vocab() for _ in range(4)]
    assert all(vocabulary == vocabularies[0] for vocabulary in vocabularies)
    assert len(bpe(TEXTS, 5000)) < 500, "so few texts have no 5,000 merges"


def test_a_saved_folder_loads_here_and_in_plain_transformers(tokenizer, tmp_path):
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    tokenizer.save_pretrained(tmp_path / "tok")
    tokenizer.chat_template = None
    again = load_decoder_tokenizer(DecoderFolder(tokenizer="folder", path="tok"), base=tmp_path)
    plain = AutoTokenizer.from_pretrained(tmp_path / "tok")
    assert DecoderIds.of(again) == DecoderIds.of(plain) == DecoderIds.of(tokenizer), "<s> is still wanted"
    for other in (again, plain):
        assert other.get_vocab() == tokenizer.get_vocab()
        assert other(TEXTS).input_ids == tokenizer(TEXTS).input_ids
        assert (other.pad_token_id, other.eos_token_id) == (0, 2)
        assert other.chat_template == "{{ messages[0]['content'] }}"
        assert other("<image>").input_ids == [310]
    assert plain("a", padding="max_length", max_length=5).input_ids[:2] == [0, 0]


def folder_tokenizer(folder, *, adds_bos: bool, **tokens):
    """A letter tokenizer; `adds_bos` makes it put <s> before each text by itself, as Llama's does."""
    names = ["<s>", "</s>", "<fill>", *"abc"]
    backend = Tokenizer(models.BPE({name: number for number, name in enumerate(names)}, []))
    backend.add_special_tokens(["<s>", "</s>", "<fill>"])
    if adds_bos:
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", **tokens).save_pretrained(folder)
    return folder


def test_bos_is_taken_from_the_tokenizers_habit_and_left_to_the_template(tmp_path):
    for adds_bos in (True, False):
        folder = folder_tokenizer(tmp_path / str(adds_bos), adds_bos=adds_bos, eos_token="</s>", pad_token="<fill>")
        found = load_decoder_tokenizer(DecoderFolder(tokenizer="folder", path=str(folder)))
        assert DecoderIds.of(found) == DecoderIds(bos=0 if adds_bos else None, eos=1, pad=2, image=6)
        assert found("abc").input_ids == [3, 4, 5]
        found.save_pretrained(tmp_path / "again")
        assert AutoTokenizer.from_pretrained(tmp_path / "again")("abc").input_ids == [3, 4, 5]


def test_padding_must_be_named(tmp_path):
    folder = str(folder_tokenizer(tmp_path / "tok", adds_bos=True, eos_token="</s>"))
    with pytest.raises(DataError, match=r"names no padding token; set pad_token.*</s>, <fill>, <s>"):
        load_decoder_tokenizer(DecoderFolder(tokenizer="folder", path=folder))
    with pytest.raises(DataError, match="no token '<pad>' to pad with"):
        load_decoder_tokenizer(DecoderFolder(tokenizer="folder", path=folder, pad_token="<pad>"))
    found = load_decoder_tokenizer(DecoderFolder(tokenizer="folder", path=folder, pad_token="<fill>"))
    assert DecoderIds.of(found).pad == 2


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere: no such tokenizer folder"):
        load_decoder_tokenizer(DecoderFolder(tokenizer="folder", path="nowhere"), base=tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: no tokenizer that transformers can load"):
        load_decoder_tokenizer(DecoderFolder(tokenizer="folder", path="empty"), base=tmp_path)
    with pytest.raises(DataError, match="trained on the data's texts"):
        load_decoder_tokenizer(BpeTokenizer(tokenizer="bpe"))
    endless = str(folder_tokenizer(tmp_path / "endless", adds_bos=True, pad_token="<fill>"))
    with pytest.raises(DataError, match="names no end-of-sequence token"):
        load_decoder_tokenizer(DecoderFolder(tokenizer="folder", path=endless))


def test_a_sources_texts_are_all_that_is_said():
    turns = (Turn("system", "Be brief."), Turn("user", "Who?"), Turn("assistant", "Me."))
    source = ConversationSource("s", [Conversation("a", None, turns), Conversation("b", None, turns[1:])])
    assert list(conversation_texts(source)) == ["Be brief.", "Who?", "Me.", "Who?", "Me."]
