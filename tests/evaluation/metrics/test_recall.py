"""Recall from a matrix of scores, worked by hand."""

import pytest
import torch

from limbeck.evaluation.metrics.retrieval import picture_ranks, recalls, text_ranks

# three pictures; texts 0, 1 describe picture 0, text 2 picture 1, texts 3, 4 picture 2
OWN = torch.tensor([[1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 1, 1]], dtype=torch.bool)
SCORES = torch.tensor(
    [
        [0.1, 0.9, 0.5, 0.2, 0.0],
        [0.7, 0.3, 0.6, 0.8, 0.1],
        [0.9, 0.2, 0.3, 0.4, 0.5],
    ]
)


def test_a_picture_is_found_by_the_best_of_its_texts():
    assert text_ranks(SCORES, OWN).tolist() == [0, 2, 1]


def test_a_text_has_one_picture():
    assert picture_ranks(SCORES, OWN).tolist() == [2, 0, 0, 1, 0]


def test_pictures_that_share_a_text_do_not_stand_in_each_others_way():
    shared = OWN.clone()
    shared[0, 3] = True
    assert text_ranks(SCORES, shared).tolist() == [0, 2, 1]
    assert picture_ranks(SCORES, shared).tolist() == [2, 0, 1, 0, 1, 0], "picture 0's texts 0, 1 and 3 first"
    everyone = torch.ones_like(OWN)
    assert text_ranks(SCORES, everyone).tolist() == [0] * 3
    assert picture_ranks(SCORES, everyone).tolist() == [0] * 15


def test_recalls_are_percent_and_rmean_is_their_mean():
    found = recalls([0, 2, 1], [2, 0, 0, 1, 0])
    assert found["TR@1"] == pytest.approx(100 / 3)
    assert found["TR@5"] == 100
    assert found["IR@1"] == 60
    assert found["R-mean"] == pytest.approx((100 / 3 + 100 + 100 + 60 + 100 + 100) / 6)


def test_a_model_that_scores_everything_alike_finds_nothing():
    same = torch.zeros(3, 5)
    assert text_ranks(same, OWN).tolist() == [3, 4, 3]
    assert picture_ranks(same, OWN).tolist() == [2] * 5


def test_broken_scores_and_pictures_without_text_are_errors():
    with pytest.raises(ValueError, match="NaN"):
        text_ranks(SCORES.log(), OWN)
    with pytest.raises(ValueError, match="NaN"):
        picture_ranks(SCORES.log(), OWN)
    with pytest.raises(ValueError, match=r"rows \[2\]"):
        text_ranks(SCORES, OWN & (torch.arange(3) < 2)[:, None])
