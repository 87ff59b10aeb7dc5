"""Both vocabularies: special tokens where BLIP has them, round trips, plain Hugging Face folders."""

import pytest
from transformers import AutoTokenizer

from limbeck.data.encoding import texts_of
from limbeck.data.examples import DataError
from limbeck.data.scenes import Scenes, ScenesConfig
from limbeck.data.tokenizer import BertTokenizer, FolderTokenizer, SpecialIds, WordPieceTokenizer, load_tokenizer

WORDPIECE = WordPieceTokenizer(tokenizer="wordpiece", vocab_size=500)


@pytest.fixture(scope="module")
def texts():
    return list(texts_of(Scenes(ScenesConfig(source="builtin:scenes", count=300))))


@pytest.fixture(scope="module")
def bert():
    return load_tokenizer(BertTokenizer(tokenizer="bert"))


def test_bert_has_blips_ids(bert):
    assert SpecialIds.of(bert) == SpecialIds(cls=101, sep=102, pad=0, dec=30522, enc=30523)
    assert len(bert) == 30524
    assert bert("a red apple").input_ids == [101, 1037, 2417, 6207, 102]
    assert (bert.bos_token_id, bert.eos_token_id) == (30522, 102)


@pytest.mark.parametrize("kind", ["bert", "wordpiece"])
def test_captions_survive_the_round_trip(kind, bert, texts):
    tokenizer = bert if kind == "bert" else load_tokenizer(WORDPIECE, texts)
    ids = tokenizer(texts).input_ids
    assert tokenizer.batch_decode(ids, skip_special_tokens=True) == texts
    special = SpecialIds.of(tokenizer)
    assert all(row[0] == special.cls and row[-1] == special.sep for row in ids)
    assert tokenizer.unk_token_id not in {token for row in ids for token in row}


def test_training_gives_the_same_vocabulary_every_time(texts):
    vocabularies = [load_tokenizer(WORDPIECE, texts).get_vocab() for _ in range(4)]
    assert all(vocabulary == vocabularies[0] for vocabulary in vocabularies)
    assert 400 < len(vocabularies[0]) <= 500


def test_unseen_words_are_spelt_not_lost(texts):
    tokenizer = load_tokenizer(WORDPIECE, texts)
    assert tokenizer.decode(tokenizer("zebra in berlin").input_ids, skip_special_tokens=True) == "zebra in berlin"
    assert tokenizer("## ##a").input_ids.count(tokenizer.unk_token_id) > 0, "no word piece is a special token"


def test_a_saved_folder_loads_here_and_in_plain_transformers(tmp_path, texts):
    tokenizer = load_tokenizer(WORDPIECE, texts)
    tokenizer.save_pretrained(tmp_path / "tok")
    again = load_tokenizer(FolderTokenizer(tokenizer="folder", path="tok"), base=tmp_path)
    plain = AutoTokenizer.from_pretrained(tmp_path / "tok")
    for other in (again, plain):
        assert other.get_vocab() == tokenizer.get_vocab()
        assert other(texts[:20]).input_ids == tokenizer(texts[:20]).input_ids
        assert other.bos_token_id == tokenizer.bos_token_id


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"version": "1.0"', "no tokenizer that can be read"),
        ("[]", "no tokenizer that can be read"),
        ("version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS, .*`git lfs pull`"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, content, message):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(DataError, match=rf"^{tmp_path / 'tokenizer.json'}: {message}"):
        load_tokenizer(FolderTokenizer(tokenizer="folder", path=str(tmp_path)))


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere.tokenizer.json: no such tokenizer file"):
        load_tokenizer(FolderTokenizer(tokenizer="folder", path="nowhere"), base=tmp_path)
    with pytest.raises(DataError, match="trained on the data's texts"):
        load_tokenizer(WORDPIECE)
