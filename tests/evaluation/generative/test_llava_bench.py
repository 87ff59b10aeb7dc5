"""LLaVA's open-ended benchmarks: official files and prompts, the figures of recorded GPT-4 reviews, a judge at work."""

import json
from collections.abc import Container, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from positions import with_positions

from limbeck.competition.asking import EndpointGone, Refusal, Reply, Request
from limbeck.data.examples import DataError
from limbeck.evaluation.generative.asker import LocalAsker
from limbeck.evaluation.generative.benchmarks import (
    BENCHMARKS,
    evaluate_generative,
    load_benchmark,
    recompute_generative,
    score,
    with_predictions,
)
from limbeck.evaluation.generative.judging import JudgedConfig, review_all
from limbeck.evaluation.generative.llava_bench import (
    COCO_RULE,
    WILD_RULE,
    LlavaBenchCocoConfig,
    LlavaBenchWildConfig,
    coco_review,
)
from limbeck.evaluation.generative.model import AnsweringConfig, GenerativeModel

PUBLISHED = {
    "llava-v1.5-13b": (72.8, 72.7, 72.1),
    "llava-v1.5-7b": (64.8, 65.3, 66.3),
}


@dataclass
class Scripted:
    """A judge that reads its replies from a table, by question and attempt, and can go away."""

    replies: dict[tuple[str, int], str | None]
    name: str = "scripted"
    fingerprint: str = "1"
    last: int | None = None
    asked: list[Request] = field(default_factory=list)

    def ask(
        self, requests: Sequence[Request], *, temperature: float, done: Container[str] = ()
    ) -> Generator[tuple[Request, Reply | Refusal], None, None]:
        assert temperature == 0.2
        for request in reversed([request for request in requests if request.id not in done]):
            if self.last is not None and len(self.asked) == self.last:
                raise EndpointGone("gone for good")
            self.asked.append(request)
            text = self.replies[request.id, sum(each.id == request.id for each in self.asked)]
            if text is None:
                yield request, Refusal(reason="400: too long")
            else:
                yield request, Reply(text=text, cut=False, prompt_tokens=9, new_tokens=3, seconds=0.5)


def coco(real_data: Path, **fields) -> LlavaBenchCocoConfig:
    folder = real_data / "llava_bench" / "coco"
    return LlavaBenchCocoConfig(
        benchmark="llava_bench_coco",
        questions=str(folder / "qa90_questions.jsonl"),
        references=str(folder / "qa90_gpt4_answer.jsonl"),
        context=str(folder / "caps_boxes_coco2014_val_80.jsonl"),
        blind=True,
        **fields,
    )


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_rules_are_llavas(real_data):
    rules = json.loads((real_data / "llava_bench" / "vicuna80_text" / "rule.json").read_text())
    for kind in ("conv", "detail", "complex"):
        assert rules[kind] == {"role": "Assistant", "prompt": COCO_RULE}
        assert rules[f"llava_bench_{kind}"] == {"role": "Assistant", "prompt": WILD_RULE}


def test_the_coco_test_set(real_data):
    items = load_benchmark(coco(real_data))
    assert [item.id for item in items] == [str(number) for number in range(90)]
    assert [item.row["kind"] for item in items[:3]] == ["conv", "detail", "complex"]
    assert len({item.row["image_id"] for item in items}) == 30
    [row] = with_predictions(items[:1], {"0": "Black."})
    [context] = [
        record
        for record in lines(real_data / "llava_bench" / "coco" / "caps_boxes_coco2014_val_80.jsonl")
        if record["image"] == "000000441147.jpg"
    ]
    boxes = "\n".join(f"{each['category']}: {each['bbox']}" for each in context["instances"])
    captions = "\n".join(context["captions"])
    reference = lines(real_data / "llava_bench" / "coco" / "qa90_gpt4_answer.jsonl")[0]["text"]
    assert coco_review(row) == (
        f"[Context]\n{captions}\n\n{boxes}\n\n[Question]\nWhat is the color of the two suitcases in the image?\n\n"
        f"[Assistant 1]\n{reference}\n\n[End of Assistant 1]\n\n[Assistant 2]\nBlack.\n\n[End of Assistant 2]\n\n"
        f"[System]\n{COCO_RULE}\n\n"
    )


@pytest.mark.parametrize("model", PUBLISHED)
def test_recorded_reviews_give_the_recorded_figures(real_data, model):
    for run, published in enumerate(PUBLISHED[model], start=1):
        file = real_data / "llava_bench" / "llava_bench_in_the_wild" / "reviews" / f"{model}-eval{run}.jsonl"
        reviews = lines(file)
        rows = [
            {
                "id": str(review["question_id"]),
                "kind": review["category"].removeprefix("llava_bench_"),
                "judge": "gpt-4-0314",
                "review": review["content"],
            }
            for review in reviews
        ]
        summary = score("llava_bench_wild", rows)
        assert summary["reviews"] == {"scored": 60, "unscored": 0}
        assert summary["judge"] == "gpt-4-0314"
        assert round(summary["relative_score"], 1) == published
        for kind, relative in summary["by_kind"].items():
            pairs = [review["tuple"] for review in reviews if review["category"] == f"llava_bench_{kind}"]
            assert relative == pytest.approx(
                100 * sum(second for _, second in pairs) / sum(first for first, _ in pairs)
            )
        graded = BENCHMARKS["llava_bench_wild"].score(rows).grades
        assert [grade["scores"] for grade in graded] == [review["tuple"] for review in reviews]


def test_pictures_in_the_wild(tmp_path):
    files = {
        "questions": {"question_id": 7, "image": "001.jpg", "text": "What is it?", "category": "conv"},
        "references": {"question_id": 7, "text": "Diamond Head."},
        "context": {"id": "001", "image": "001.jpg", "caption": "An aerial view."},
    }
    for name, record in files.items():
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(record) + "\n")
    fields = {name: f"{name}.jsonl" for name in files}
    config = LlavaBenchWildConfig(benchmark="llava_bench_wild", blind=True, **fields)
    [item] = load_benchmark(config, tmp_path)
    review = BENCHMARKS["llava_bench_wild"].review
    assert review is not None
    assert review({**item.row, "prediction": "A crater."}).startswith(
        "[Context]\nAn aerial view.\n\n[Question]\nWhat is it?\n\n[Assistant 1]\nDiamond Head.\n\n"
    )
    (tmp_path / "context.jsonl").write_text(json.dumps(files["context"] | {"image": "002.jpg"}))
    with pytest.raises(DataError, match=r"questions.jsonl:1: context has nothing about 001.jpg"):
        load_benchmark(config, tmp_path)
    (tmp_path / "questions.jsonl").write_text(json.dumps(files["questions"] | {"category": "poem"}))
    with pytest.raises(DataError, match="wanted one of conv, detail, complex, found 'poem'"):
        load_benchmark(config, tmp_path)


def test_without_a_judge_nothing_is_answered(vlm, real_data, tmp_path, monkeypatch):
    monkeypatch.setattr(GenerativeModel, "write", None)
    with pytest.raises(ValueError, match="llava_bench_coco wants a judge and there is none"):
        evaluate_generative(vlm, [coco(real_data)], tmp_path, progress=False)
    rows = with_predictions(load_benchmark(coco(real_data, limit=2)), {"0": "a", "1": "b"})
    with pytest.raises(ValueError, match=r"no review of 2 of 2 answers, the first \['0', '1'\]"):
        score("llava_bench_coco", rows)


def rows_of(count: int) -> list[dict]:
    return [{"id": f"q{number}", "kind": "conv", "prediction": "a"} for number in range(count)]


def review(judge, rows, path) -> list[dict]:
    return review_all(judge, rows, lambda row: f"judge {row['id']}", path, JudgedConfig(), progress=False)


def test_reviews_without_scores_are_asked_for_again(tmp_path):
    replies = {
        ("q0", 1): "8 4\nfine",
        ("q1", 1): "I cannot say.",
        ("q1", 2): "10 5",
        ("q2", 1): "no",
        ("q2", 2): "no",
        ("q2", 3): "never",
        ("q3", 1): None,
    }
    judge = Scripted(replies)
    reviewed = review(judge, rows_of(4), tmp_path / "reviews.jsonl")
    assert [row["review"] for row in reviewed] == ["8 4\nfine", "10 5", "never", None]
    assert reviewed[3]["refused"] == "400: too long"
    assert {row["judge"] for row in reviewed} == {"scripted"}
    assert len({request.seed for request in judge.asked}) == len(judge.asked) == 7
    summary = score("llava_bench_coco", reviewed)
    assert summary["reviews"] == {"scored": 2, "unscored": 2}
    assert summary["relative_score"] == pytest.approx(50)
    assert summary["mean_scores"] == {"reference": 9, "candidate": 4.5}
    kept = lines(tmp_path / "reviews.jsonl")
    assert [(each["id"], each["attempt"]) for each in kept] == [
        ("q0", 1),
        ("q1", 1),
        ("q1", 2),
        ("q2", 1),
        ("q2", 2),
        ("q2", 3),
    ]
    assert kept[0].items() >= {"prompt_tokens": 9, "new_tokens": 3, "seconds": 0.5}.items()


def test_a_second_call_asks_only_for_what_is_missing(tmp_path):
    path = tmp_path / "reviews.jsonl"
    replies = {("q0", 1): "what?", ("q0", 2): "8 8", ("q1", 1): "6 3", ("q2", 1): "5 5"}
    whole = tmp_path / "whole.jsonl"
    review(Scripted(dict(replies)), rows_of(3), whole)
    with pytest.raises(EndpointGone):
        review(Scripted(dict(replies), last=2), rows_of(3), path)
    assert len(lines(path)) == 2
    path.write_text(path.read_text() + '{"id": "q0"')
    rest = Scripted({("q0", 1): "what?", ("q0", 2): "8 8"})
    review(rest, rows_of(3), path)
    assert [request.id for request in rest.asked] == ["q0", "q0"]
    assert path.read_bytes() == whole.read_bytes()
    review(Scripted({}), rows_of(3), path)
    another = Scripted({(f"q{number}", 1): "1 1" for number in range(3)}, fingerprint="2")
    review(another, rows_of(3), path)
    assert len(another.asked) == 3


def evaluate(model, config, judge, folder) -> dict:
    return evaluate_generative(
        model, [config], folder, answering=AnsweringConfig(batch_size=2), judge=judge, progress=False
    )


def test_answers_are_reviewed_and_kept(vlm, real_data, tmp_path, monkeypatch):
    config = coco(real_data, name="test_set", limit=3, max_new_tokens=3)
    judge = Scripted({("0", 1): "8 6\nwell", ("1", 1): "9 3", ("2", 1): "7 9"})
    summary = evaluate(vlm, config, judge, tmp_path)
    assert summary["test_set"] == {
        "questions": 3,
        "judge": "scripted",
        "reviews": {"scored": 3, "unscored": 0},
        "relative_score": 75,
        "by_kind": {"conv": 75, "detail": pytest.approx(100 / 3), "complex": pytest.approx(900 / 7)},
        "mean_scores": {"reference": 8, "candidate": 6},
    }
    rows = lines(tmp_path / "evaluation" / "test_set.jsonl")
    assert [row["scores"] for row in rows] == [[8, 6], [9, 3], [7, 9]]
    assert all(f"[Assistant 2]\n{row['prediction']}\n\n" in judge.asked[2 - int(row["id"])].prompt for row in rows)
    files = {path.name: path.read_bytes() for path in (tmp_path / "evaluation").iterdir()}
    assert set(files) == {"test_set.jsonl", "test_set_reviews.jsonl", "summary.json"}
    monkeypatch.setattr(GenerativeModel, "write", None)
    assert evaluate(vlm, config, Scripted({}), tmp_path) == summary == recompute_generative(tmp_path)
    assert {path.name: path.read_bytes() for path in (tmp_path / "evaluation").iterdir()} == files


def test_a_local_model_can_judge(vlm, another_vlm, real_data, tmp_path, monkeypatch):
    config = coco(real_data, limit=3, max_new_tokens=3, judge_new_tokens=4, judge_temperature=0)
    judge = LocalAsker(with_positions(another_vlm, 8192), "a random model", 2)
    summary = evaluate(vlm, config, judge, tmp_path)
    assert summary["llava_bench_coco"].keys() == {"questions", "judge", "reviews"}
    assert summary["llava_bench_coco"]["reviews"]["unscored"] == 3
    reviews = lines(tmp_path / "evaluation" / "llava_bench_coco_reviews.jsonl")
    assert [review["new_tokens"] for review in reviews] == [4, 4, 4]
    monkeypatch.setattr(GenerativeModel, "write_tokens", None)
    assert evaluate(vlm, config, judge, tmp_path) == summary


def test_a_benchmark_has_a_temperature_of_its_own(vlm, real_data, tmp_path):
    plain, sampled = coco(real_data, name="plain", limit=3), coco(real_data, name="sampled", limit=3, temperature=2.0)
    judge = Scripted({(str(number), attempt): "1 1" for number in range(3) for attempt in (1, 2)})
    evaluate_generative(
        vlm,
        [config.model_copy(update={"max_new_tokens": 5}) for config in (plain, sampled)],
        tmp_path,
        judge=judge,
        progress=False,
    )
    first, second = (lines(tmp_path / "evaluation" / f"{name}.jsonl") for name in ("plain", "sampled"))
    assert [row["prediction"] for row in first] != [row["prediction"] for row in second]
