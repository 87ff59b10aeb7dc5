"""The fast pipeline finds spaCy's own phrases, all of them and no others."""

import json

import pytest

pytest.importorskip("spacy")

import spacy
from phrase_captions import CAPTIONS
from spacy.pipeline import AttributeRuler

from limbeck.data.examples import DataError
from limbeck.phrases.nouns import NounPhrases, fingerprint, pipeline_name
from limbeck.phrases.ruler import NOUNS, RulerTable


@pytest.fixture(scope="module")
def plain():
    return spacy.load(pipeline_name(None))


@pytest.fixture(scope="module")
def fast():
    return NounPhrases()


def test_phrases_are_those_of_the_plain_loop(fast, plain):
    expected = [{chunk.text.lower().strip() for chunk in plain(caption).noun_chunks} for caption in CAPTIONS]
    assert fast(CAPTIONS) == expected
    assert expected[0] == {"a black dog", "the grass"}
    assert {len(found) for found in expected} > {0, 2}


def test_nothing_and_empty_captions_have_no_phrases(fast):
    assert fast([]) == []
    assert fast(["", "   "]) == [set(), set()]


def test_real_captions_have_equal_phrases(fast, plain, real_data):
    lines = (real_data / "photos_captions" / "captions.jsonl").read_text().splitlines()
    captions = [caption for line in lines[::50] for caption in json.loads(line)["captions"]]
    expected = [{chunk.text.lower().strip() for chunk in doc.noun_chunks} for doc in plain.pipe(captions)]
    assert len(captions) > 500
    assert fast(captions) == expected


def test_the_table_says_of_every_token_what_the_ruler_says(plain):
    ruler = plain.get_pipe("attribute_ruler")
    assert RulerTable.can_replace(ruler)
    table = RulerTable(ruler)
    with plain.select_pipes(enable=["tok2vec", "tagger", "parser"]):
        bare = [(plain(caption), plain(caption)) for caption in CAPTIONS]
    for first, second in bare:
        expected, found = ruler(first), table(second)
        assert [token.dep for token in found] == [token.dep for token in expected]
        for own, right in zip(found, expected, strict=True):
            assert (own.pos_ in NOUNS) == (right.pos_ in NOUNS), (right.text, own.pos_, right.pos_)


def test_a_document_that_a_pattern_of_several_tokens_may_fit_goes_through_the_ruler(plain):
    ruler = AttributeRuler(plain.vocab)
    ruler.add([[{"TAG": "NN"}]], {"POS": "NOUN"})
    ruler.add([[{"TAG": "DT"}, {"LOWER": "dog"}]], {"POS": "PROPN"}, index=1)
    with plain.select_pipes(enable=["tok2vec", "tagger", "parser"]):
        doc = plain("The dog sees no dog .")
    expected = [token.pos_ for token in ruler(doc.copy())]
    assert "PROPN" in expected
    assert [token.pos_ for token in RulerTable(ruler)(doc)] == expected


def test_patterns_that_a_table_cannot_hold_are_left_to_the_ruler(plain):
    ruler = AttributeRuler(plain.vocab)
    ruler.add([[{"LOWER": {"REGEX": "^d"}}]], {"POS": "NOUN"})
    assert not RulerTable.can_replace(ruler)


def test_a_pipeline_that_is_not_there_is_named_with_those_that_are():
    with pytest.raises(DataError, match=r"en_core_web_xxl: neither .*en_core_web_sm"):
        fingerprint("en_core_web_xxl")
