"""The tokenizer of caption metrics: hand-worked captions, the official code's output, Java beside our own."""

import json

import pytest

from limbeck.evaluation.metrics.ptb import DROPPED, best_tokenizer, tokenize

WITH_JAVA = pytest.mark.skipif(best_tokenizer() != "ptb-java", reason="no Java here")


@pytest.mark.parametrize(
    ("caption", "tokens"),
    [
        ("A man, a plan; a canal: Panama!", "a man a plan a canal panama"),
        ("The dog's toy isn't there. They've lost it", "the dog 's toy is n't there they 've lost it"),
        ("a t-shirt on a snow-covered hill", "a t-shirt on a snow-covered hill"),
        ("corner of 8th Ave. and Main St.", "corner of 8th ave. and main st."),
        ("street sign: 22 3/4 St", "street sign 22\u00a03/4 st"),
        ("the U.S. flag at 5:54pm, $5.99", "the u.s. flag at 5:54 pm $ 5.99"),
        ("he says \"hello\" (twice) and 'bye'", "he says hello -lrb- twice -rrb- and bye"),
        ("I cannot see, gonna go to 5 o'clock tea", "i can not see gon na go to 5 o'clock tea"),
        ("rock 'n' roll hors d'oeuvre", "rock 'n' roll hors d'oeuvre"),
        ("parked.A man", "parked.a man"),
        ("black/white cat -- and/or dog...", "black/white cat and/or dog"),
        ("no. 5 and no. more", "no. 5 and no more"),
        ("#1 in the 1950s & AT&T", "# 1 in the 1950s & at&t"),
        ("What??", "what ??"),
        ("", ""),
    ],
)
def test_the_fallback_cuts_captions_as_ptb_does(caption, tokens):
    assert tokenize([caption], "fallback") == [tokens]


def test_a_letters_period_depends_on_the_next_line_as_in_java():
    assert tokenize(["a sign that reads K.", "A dog"], "fallback")[0].endswith("reads k")
    assert tokenize(["a sign that reads K.", "dogs run"], "fallback")[0].endswith("reads k.")


def test_lines_stay_lines_whatever_they_hold():
    captions = ["", "two\nlines\rof text", "  ", "a \u2028 b", "<a", "end>"]
    assert len(tokenize(captions, "fallback")) == len(captions)


@pytest.mark.parametrize("name", ["fakecap126", "human_loo1000"])
def test_the_fallback_gives_the_official_codes_text(real_data, name):
    folder = real_data / "coco_caption_eval"
    expected = json.loads((folder / f"{name}_expected.json").read_text())
    references = json.loads((folder / f"{name}_references.json").read_text())
    pairs = [
        (text, tokens)
        for picture, texts in references.items()
        for text, tokens in zip(texts, expected["ptb_tokenized_refs"][picture], strict=True)
    ]
    assert tokenize([text for text, _ in pairs], "fallback") == [tokens for _, tokens in pairs]


@WITH_JAVA
def test_java_and_the_fallback_agree_on_every_caption_of_val2017(real_data):
    annotations = json.loads((real_data / "coco_caption_eval" / "captions_val2017.json").read_text())["annotations"]
    captions = [annotation["caption"] for annotation in annotations]
    assert len(captions) == 25_014
    assert tokenize(captions, "fallback") == tokenize(captions, "ptb-java")


@WITH_JAVA
def test_java_takes_awkward_lines_too():
    captions = ["a dog", "", "zwei\nZeilen", "caf\u00e9 \u201cbar\u201d", "a \u2028 b"]
    assert tokenize(captions, "ptb-java") == tokenize(captions, "fallback")


def test_punctuation_goes_and_lowered_brackets_stay():
    assert "-lrb-" not in DROPPED
    assert tokenize(["(a)"], "fallback") == ["-lrb- a -rrb-"]
