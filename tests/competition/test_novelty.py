"""ROUGE-L: worked by hand, the package `rouge_score`'s values, and what is new about which picture."""

import json
import random

import numpy as np
import pytest

from limbeck.competition.novelty import Novelty, TokenCode, rouge_l, tokens

WORDS = ["what", "Is", "the", "colour", "of", "a", "cat's", "left-hand", "7th", "Ünder", "İt", "猫", "K2", "_", "?"]


def test_values_worked_by_hand():
    # common of six tokens: "what is the of the" with six; "the the" with four; "is the" with two; nothing
    found = rouge_l(
        ["What is the colour of the?"], ["what is the shape of the", "the cat, is the", "IS THE", "no", "", "猫"]
    )
    assert found.tolist() == [pytest.approx([10 / 12, 4 / 10, 4 / 8, 0, 0, 0])]
    assert rouge_l(["", "a"], ["", "a"]).tolist() == [[0, 0], [0, 1]], "two texts without tokens are not alike"


def test_tokens_are_runs_of_letters_and_digits_after_lowering():
    found = tokens("What's  the K2-thing_at 7:30?\nÜber İt")
    assert b" ".join(found) == b"what s the k2 thing at 7 30 ber i t"
    assert tokens("猫はどこ") == []


def texts(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(0, 12))) for _ in range(count)]


def by_package(text: str, others: list[str]) -> list[float]:
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeL"], use_stemmer=False)
    return [scorer.score(other, text)["rougeL"].fmeasure for other in others]


def test_the_package_gives_the_same_values():
    some, others = texts(20, 1), texts(40, 2)
    expected = np.array([by_package(text, others) for text in some])
    assert np.abs(rouge_l(some, others) - expected).max() < 1e-12
    novelty = Novelty(("a.jpg", text) for text in others)
    for text, row in zip(some, expected, strict=True):
        assert novelty.best("a.jpg", text) == pytest.approx(row.max(), abs=1e-12)


def test_the_package_gives_the_same_values_on_real_questions(real_data):
    lines = (real_data / "llava_instruct" / "llava_v1_5_mix1k.jsonl").read_text().splitlines()[:30]
    asked = [turn["value"] for line in lines for turn in json.loads(line)["conversations"] if turn["from"] == "human"]
    expected = np.array([by_package(text, asked[:20]) for text in asked[20:40]])
    assert np.abs(rouge_l(asked[20:40], asked[:20], workers=2) - expected).max() < 1e-12


def test_only_the_same_picture_counts():
    novelty = Novelty([("a.jpg", "Where is the cat?"), ("b.jpg", "How many birds fly?"), (None, "Say hello")])
    assert novelty.best("a.jpg", "where is the CAT") == 1
    assert novelty.best("b.jpg", "where is the CAT") == 0
    assert novelty.best("c.jpg", "where is the CAT") == 0
    assert novelty.best(None, "Say hello again") == 4 / 5
    novelty.add("c.jpg", "Where?")
    assert novelty.best("c.jpg", "where is the CAT") == 2 / 5


def test_a_new_text_is_known_once_it_is_added():
    novelty = Novelty()
    assert novelty.best("a.jpg", "Where is it?") == 0
    novelty.add("a.jpg", "Where is it?")
    novelty.add("a.jpg", "猫")
    assert novelty.best("a.jpg", "Where is it?") == 1
    assert novelty.best("a.jpg", "") == 0


@pytest.mark.parametrize(("common", "length"), [(7, 10), (14, 20), (21, 30), (6, 10), (9, 10), (13, 20), (3, 10)])
def test_exactly_the_limit_is_not_below_it(common, length):
    same, others = [f"w{n}" for n in range(common)], [f"x{n}" for n in range(length - common)]
    novelty = Novelty([("a", " ".join([*same, *others]))])
    limit = float(f"{common / length:.2f}")
    assert novelty.best("a", " ".join([*same, *(f"y{n}" for n in range(length - common))])) == limit
    assert rouge_l([" ".join(same)], [" ".join(same)]).item() == 1


def test_a_large_vocabulary_skips_what_is_no_character():
    code = TokenCode()
    text = " ".join(f"t{n}" for n in range(60_000))
    assert len(set(code.encode(text))) == 60_000
    assert code.encode(text).encode("utf-8")
    assert code.encode("t59999 t0") == code.encode(text)[-1] + code.encode(text)[0]
