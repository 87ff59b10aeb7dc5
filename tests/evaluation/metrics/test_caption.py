"""Caption metrics against the figures of the official code."""

import json
import shutil

import pytest

from limbeck.evaluation.metrics.caption import caption_scores
from limbeck.evaluation.metrics.ptb import best_tokenizer

OFFICIAL = {"BLEU-1": "Bleu_1", "BLEU-2": "Bleu_2", "BLEU-3": "Bleu_3", "BLEU-4": "Bleu_4", "ROUGE-L": "ROUGE_L"}
OFFICIAL |= {"CIDEr": "CIDEr"}


@pytest.fixture(params=["fallback", "ptb-java"])
def tokenizer(request):
    if request.param == "ptb-java" and best_tokenizer() != "ptb-java":
        pytest.skip("no Java here")
    return request.param


@pytest.mark.parametrize("name", ["fakecap126", "human_loo1000"])
def test_the_published_figures_come_out_to_the_last_digit(real_data, name, tokenizer):
    folder = real_data / "coco_caption_eval"
    expected = json.loads((folder / f"{name}_expected.json").read_text())
    references = json.loads((folder / f"{name}_references.json").read_text())
    results = json.loads((folder / f"{name}_results.json").read_text())
    captions = {str(result["image_id"]): result["caption"] for result in results}
    order = [str(picture) for picture in expected["image_order"]]
    scores = caption_scores(
        {picture: captions[picture] for picture in order}, references, tokenizer=tokenizer, java_metrics=False
    )
    assert scores.tokenizer == tokenizer
    for ours, theirs in OFFICIAL.items():
        assert round(scores.corpus[ours] / 100, 6) == expected["corpus"][theirs]
        by_picture = [scores.pictures[picture][ours] / 100 for picture in order]
        assert by_picture == pytest.approx(expected["per_image"][theirs], abs=6e-7)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("java") is None, reason="no Java here")
def test_meteor_comes_out_where_java_runs(real_data):
    folder = real_data / "coco_caption_eval"
    expected = json.loads((folder / "fakecap126_expected.json").read_text())
    references = json.loads((folder / "fakecap126_references.json").read_text())
    results = json.loads((folder / "fakecap126_results.json").read_text())
    scores = caption_scores({str(result["image_id"]): result["caption"] for result in results}, references)
    assert scores.corpus["METEOR"] / 100 == pytest.approx(expected["corpus"]["METEOR"], abs=1e-6)


def test_the_printed_figures_of_two_readmes_come_out(real_data, tokenizer):
    examples = json.loads((real_data / "coco_caption_eval" / "published_examples.json").read_text())
    for name in ("clipscore_good", "clipscore_bad"):
        example = examples[name]
        scores = caption_scores(example["cands"], example["refs"], tokenizer=tokenizer, java_metrics=False)
        for ours, theirs in OFFICIAL.items():
            assert round(scores.corpus[ours] / 100, 4) == pytest.approx(example["published"][theirs], abs=1e-4)


@pytest.mark.slow
def test_flickr8k_experts_agree_as_published(real_data, tokenizer):
    from scipy.stats import kendalltau

    expected = json.loads((real_data / "coco_caption_eval" / "flickr8k_expert_expected.json").read_text())
    with (real_data / "photos_captions" / "human_judgements_expert.jsonl").open() as lines:
        judged = [row for row in map(json.loads, lines) if not row["matching"]]
    predictions = {str(index): row["caption"] for index, row in enumerate(judged)}
    references = {str(index): row["references"] for index, row in enumerate(judged)}
    scores = caption_scores(predictions, references, tokenizer=tokenizer, java_metrics=False)
    human = [score for row in judged for score in row["scores_1_to_4"]]
    for ours, theirs in OFFICIAL.items():
        ours_by_row = [scores.pictures[picture][ours] for picture in predictions for _ in range(3)]
        tau = 100 * kendalltau(ours_by_row, human, variant="c").statistic
        assert round(tau, 2) == expected["computed_here_tau_c"][theirs]


def test_a_reference_repeated_is_perfect_and_other_words_are_worth_nothing():
    references = {"1": ["a red dog runs on grass"], "2": ["two cats sleep in the warm sun"]}
    perfect = caption_scores(
        {"1": "A red dog runs on grass.", "2": "two cats sleep in the warm sun"}, references, java_metrics=False
    )
    assert perfect.corpus["BLEU-4"] == pytest.approx(100)
    assert perfect.corpus["CIDEr"] == pytest.approx(1000)
    nothing = caption_scores({"1": "zzz", "2": "yyy"}, references, java_metrics=False)
    assert nothing.corpus["CIDEr"] == 0
    assert nothing.corpus["ROUGE-L"] == 0


def test_pictures_that_do_not_match_are_named():
    with pytest.raises(ValueError, match="'2'"):
        caption_scores({"1": "a"}, {"1": ["a"], "2": ["b"]})
    with pytest.raises(ValueError, match=r"without a reference: \['1'\]"):
        caption_scores({"1": "a"}, {"1": []})
    with pytest.raises(ValueError, match="no captions"):
        caption_scores({}, {})
