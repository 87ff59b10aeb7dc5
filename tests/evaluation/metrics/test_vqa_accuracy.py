"""VQA accuracy: the official rules, worked by hand and on real answers."""

import json

import pytest

from limbeck.evaluation.metrics.vqa import CONTRACTIONS, accuracy, mean_accuracy, normalise, strip_punctuation


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        ("Yes.", "yes"),
        ("  a red\tcar\n", "red car"),
        ("The Two dogs", "2 dogs"),
        ("none", "0"),
        ("dont know", "don't know"),
        ("couldnt've", "couldn't've"),
        ("Im", "im"),  # the official list holds "Im", but looks it up in lower case
        ("3.5", "3.5"),
        ("3.5.", "3.5"),
        ("u.s.a.", "usa"),
        ("red/blue", "red blue"),
        ("red / blue", "red blue"),
        ("t-shirt", "t shirt"),
        ("t-shirt - blue", "tshirt blue"),
        ("1,000", "1000"),
        ("1,000/2", "10002"),
        ("black, white", "black white"),
        ("black,white", "black white"),
        ("what?!", "what"),
        ("man's", "man's"),
        ("$5: yes; no", "$5: yes no"),
        ("a", ""),
    ],
)
def test_answers_are_normalised_as_officially(answer, normal):
    assert normalise(answer) == normal


def test_the_contraction_list_is_the_official_ones_length():
    assert len(CONTRACTIONS) == 118  # 121 entries, three of which map a word to itself
    assert CONTRACTIONS["somebody'd"] == "somebodyd"
    assert CONTRACTIONS["wouldn'tve"] == CONTRACTIONS["wouldnt've"] == "wouldn't've"
    assert CONTRACTIONS["twas"] == "'twas"


@pytest.mark.parametrize(
    ("agree", "score"),
    [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)],
)
def test_ten_annotators_are_left_out_one_at_a_time(agree, score):
    # with n of ten agreeing: n times min(1, (n - 1) / 3) and 10 - n times min(1, n / 3)
    answers = ["cat"] * agree + ["dog"] * (10 - agree)
    assert accuracy("cat", answers) == pytest.approx(score)


def test_people_lose_their_punctuation_only_when_they_disagree():
    assert accuracy("t-shirt", ["t-shirt"] * 10) == 0  # "t shirt" against "t-shirt"
    assert accuracy("t-shirt", ["t-shirt"] * 9 + ["shirt"]) == 1
    assert accuracy("two", ["2"] * 10) == 1
    assert accuracy("2", ["two"] * 9 + ["three"]) == 0  # number words of people stay


def test_fewer_than_ten_answers_are_compared_exactly():
    assert accuracy("The Red.", ["red"]) == 1
    assert accuracy("two", ["2"]) == 1
    assert accuracy("blue", ["red"]) == 0
    with pytest.raises(ValueError, match="no answer"):
        accuracy("red", [])


def test_means_are_in_percent_and_by_kind():
    overall, by_kind = mean_accuracy([("count", 1.0), ("count", 0.0), ("colour", 1.0), (None, 1.0)])
    assert overall == 75
    assert by_kind == {"colour": 100, "count": 50}
    with pytest.raises(ValueError, match="no questions"):
        mean_accuracy([])


def test_real_questions_score_as_worked_by_hand(real_data):
    with (real_data / "vqa_v2" / "with_images.jsonl").open() as lines:
        questions = {row["question_id"]: row for row in map(json.loads, lines)}
    bananas = questions[100667000]["answers"]
    assert accuracy("Yes", bananas) == 1
    assert accuracy("no", bananas) == 0
    giraffe = questions[25006]["answers"]  # what is it standing behind?
    trees = giraffe.count("tree")
    assert accuracy("a tree.", giraffe) == pytest.approx(min(1, (trees * min(3, trees - 1) + (10 - trees) * 3) / 30))
    assert accuracy("fallen tree", giraffe) == pytest.approx(0.3)


def test_the_majority_answer_scores_high_on_real_questions_and_a_stranger_nothing(real_data):
    with (real_data / "vqa_v2" / "text_only_test2962.jsonl").open() as lines:
        questions = [json.loads(line) for line in lines]
    right, by_type = mean_accuracy(
        (row["answer_type"], accuracy(row["multiple_choice_answer"], row["answers"])) for row in questions
    )
    assert set(by_type) == {"yes/no", "number", "other"}
    assert by_type["yes/no"] > by_type["other"]
    assert 80 < right < 100
    wrong, _ = mean_accuracy((None, accuracy("xyzzy", row["answers"])) for row in questions)
    assert wrong == 0


def test_marks_are_looked_for_in_the_answer_as_given():
    assert strip_punctuation("a/b ,c") == "a b c"
