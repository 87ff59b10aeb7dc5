"""Scores and instructions are read out of what models really write; Eq. 6 against numbers worked by hand."""

import json
import time
from pathlib import Path

import pytest

from limbeck.competition.replies import (
    IS_HARD,
    TAU,
    Rejected,
    difficulty,
    flips,
    instruction,
    instruction_budget,
    said_scores,
    scores,
)


def test_all_recorded_reviews_parse_to_their_scores(real_data: Path) -> None:
    """680 reviews of GPT-4. Two say 10 and 4 where 10 and 2 was recorded (by hand, it seems): we read what they say."""
    folder = real_data / "llava_bench"
    files = [*folder.glob("llava_bench_in_the_wild/reviews/*.jsonl"), *folder.glob("vicuna80_text/review/*.jsonl")]
    if not files:
        pytest.skip("no recorded reviews in the real data")
    other = {}
    number = 0
    for file in files:
        for line in file.read_text().splitlines():
            review = json.loads(line)
            number += 1
            recorded = tuple(map(float, review["tuple"] if "tuple" in review else review["score"]))
            said = said_scores(review["content"] if "content" in review else review["text"])
            if said != recorded:
                other[review["review_id"]] = (said, recorded)
    assert number == 680
    of_two = ((10.0, 4.0), (10.0, 2.0))
    assert other == {"57H8uDw5kYEX2wFgvY8BN8": of_two, "ZgNXGB9wziYPnGFjqLzqVH": of_two}


@pytest.mark.parametrize(
    "text",
    [
        "Evaluation evidence: the second is vague.\nScore of Assistant 1: 8\nScore of Assistant 2: 6.5",
        "Score of the Assistant 1: 8\nScore of the Assistant 2: 6.5",
        "**Score of Assistant 1:** 8/10\n**Score of Assistant 2:** 6.5/10",
        "Score of Assistant 1: **8**\nScore of Assistant 2: **6.5**.",
        "score of assistant 1 = 80/100; score for assistant 2 is 65/100",
        "Score of Assistant 1: <8>\nScore of Assistant 2: <6.5>",
        "Score of Assistant 1: 2\nScore of Assistant 2: 2\nNo:\nScore of Assistant 1: 8\nScore of Assistant 2: 6.5",
        "8 6.5\nBoth of the 2 answers are fine.",
        "8, 6.5",
        "Scores: 8 and 6.5",
        "There are 3 dogs and 2 cats.\n\n(8, 6.5)",
        "The picture has 3 dogs.\nAssistant 1: 8\nAssistant 2: 6.5",
        "Assistant 1: 8 (all of it)\nAssistant 2: 6.5/10, since one is missing",
        "- Assistant 1: 8\n- Assistant 2: 6.5",
        "Assistant 1: 8, Assistant 2: 6.5.",
        "The points (2, 3) are right, so the scores are (8, 6.5) for them.",
        "Score of Assistant 1: 8\nScore of Assistant 2: 6.5\n\n- 2 dogs were missed",
        "Score of Assistant 1: 8\n- 2 dogs were missed\nScore of Assistant 2: 6.5\n1 - 3",
        "Score of Assistant 1: 4/5\nScore of Assistant 2: 3.25/5",
        "Score of Assistant 1: 4 out of 5\nScore of Assistant 2: 65 out of 100",
        "Assistant 1: 4 / 5, Assistant 2: 13/20.",
        "Scores of Assistant 1: 8\nScores of Assistant 2: 6.5",
        "Score of Assistant #1: 8\nScore of Assistant #2: 6.5",
        "Score of Assistant 1\uff1a8\nScore of Assistant 2\uff1a6.5",
        "Assistant #1: 8\nAssistant #2: 6.5",
    ],
)
def test_forms_of_a_verdict(text: str) -> None:
    assert scores(text) == (8.0, 6.5)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Assistant 1 is better.",
        "Score of Assistant 1: 8",
        "Score of Assistant 1: <number>\nScore of Assistant 2: <number>",
        "Score of Assistant 1: 1-10\nScore of Assistant 2: 1-10",
        "There are 3 dogs and 2 cats in it.",
        "Assistant 1: 3 dogs\nAssistant 2: 2 dogs",
        "Assistant 1:\n1. The first step is right.\nAssistant 2:\n2. The second is not.",
        "8/10",
        "1: 8\n2: 7",
        "1990 2005",
        "Score of Assistant 1: 85\nScore of Assistant 2: 70",
        "The scores are (85, 70).",
        "Score of Assistant 1: 8/5\nScore of Assistant 2: 7/5",
        "Score of Assistant 1: 4/5/6\nScore of Assistant 2: 3/5/6",
        "Score of Assistant 1: 0/0\nScore of Assistant 2: 0/0",
    ],
)
def test_what_is_no_verdict(text: str) -> None:
    assert scores(text) is None


def test_scores_are_clamped_to_the_scale_and_as_said_without() -> None:
    text = "Score of Assistant 1: 0\nScore of Assistant 2: 0.5"
    assert scores(text) == (1.0, 1.0)
    assert said_scores(text) == (0.0, 0.5)


@pytest.mark.parametrize("unit", [" ", "9", "8 ", "*", "- ", "\n", "score ", "score of assistant 1: ", "Assistant 1:"])
def test_endless_replies_take_no_time(unit: str) -> None:
    start = time.monotonic()
    scores(unit * 4000)
    assert time.monotonic() - start < 2


def test_a_verdict_flips_when_the_other_side_wins_or_nobody_does() -> None:
    assert not flips((9, 7), (6, 8))
    assert flips((9, 7), (9, 7))
    assert flips((9, 7), (8, 8))
    assert not flips((8, 8), (5, 5))


def test_difficulty_is_equation_6() -> None:
    assert difficulty(9, 7) == pytest.approx(3 / 9)
    assert difficulty(7, 9) == pytest.approx(3 / 9)
    assert difficulty(10, 8) == pytest.approx(0.3)
    assert difficulty(1, 1) == 1
    assert difficulty(10, 1) == 1
    assert difficulty(10, 10) == pytest.approx(0.1)


def test_what_counts_as_hard() -> None:
    comd, lion = IS_HARD["comd"], IS_HARD["lion"]
    assert comd(9, 7, TAU)
    assert comd(3, 3, TAU)
    assert not comd(9, 8, TAU)
    assert comd(10, 10, 0.0)
    assert comd(10, 1, 1.0)
    assert not comd(10, 2, 1.0)
    assert lion(8, 7, TAU)
    assert not lion(8, 7.5, TAU)
    assert not lion(7, 9, TAU)


def test_an_instruction_is_taken_as_it_is() -> None:
    assert instruction("  What stands behind the dog?\n", False, "What is it?") == "What stands behind the dog?"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "three words"),
        ("What is it?", "three words"),
        ("? what stands behind it", "punctuation"),
        ('"What stands behind the dog?"', "punctuation"),
        ("éclairs: how many are there?", "ASCII"),
        ("Created instruction: what stands there?", "given or created"),
        ("Unlike the given  instruction, count the dogs", "given or created"),
        ("What is in <image> behind the dog?", "<image>"),
        ("Is there a dog?", "once more"),
    ],
)
def test_what_is_no_instruction(text: str, reason: str) -> None:
    found = instruction(text, False, "Is there a dog?")
    assert isinstance(found, Rejected)
    assert reason in found.reason


def test_a_cut_instruction_is_dropped_and_its_bound_grows_with_the_seed() -> None:
    assert instruction("What stands behind the dog?", True, "What is it?") == Rejected("cut by length")
    assert instruction_budget("What is it?") == 32
    assert instruction_budget("word " * 20) == 80
