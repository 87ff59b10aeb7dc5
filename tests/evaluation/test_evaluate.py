"""All tasks by one config: what is written, and what cannot be done is said before it is tried."""

import json

import pytest

from limbeck.evaluation.evaluate import EvaluationConfig, evaluate, load_tasks, recompute

ASKED = {
    "retrieval": {"k_test": 4},
    "captioning": {"java_metrics": False, "tokenizer": "fallback"},
    "vqa": {"mode": "rank"},
}


def test_a_summary_and_the_rows_of_every_task_are_left(blip, tokenizer, examples, tmp_path, cpu):
    config = EvaluationConfig.model_validate_json(json.dumps(ASKED))
    given = dict.fromkeys(config.tasks, examples)
    summary = evaluate(
        blip, tokenizer, config, given, folder=tmp_path, device=cpu, answers=["red", "blue"], progress=False
    )
    assert list(summary) == ["retrieval", "captioning", "vqa"]
    assert {"TR@1", "IR@10", "R-mean"} <= summary["retrieval"].keys()
    assert summary["captioning"]["tokenizer"] == "fallback"
    assert 0 <= summary["vqa"]["accuracy"] <= 100
    assert json.loads((tmp_path / "evaluation" / "summary.json").read_text()) == summary
    for task in ASKED:
        assert len((tmp_path / "evaluation" / f"{task}.jsonl").read_text().splitlines()) == len(examples)


def test_the_summary_comes_out_again_without_the_model(clip, tokenizer, examples, tmp_path, cpu):
    config = EvaluationConfig.model_validate_json(json.dumps({"retrieval": {}}))
    summary = evaluate(clip, tokenizer, config, {"retrieval": examples}, folder=tmp_path, device=cpu, progress=False)
    (tmp_path / "evaluation" / "summary.json").unlink()
    assert recompute(tmp_path) == summary
    assert (tmp_path / "evaluation" / "summary.json").is_file()
    with pytest.raises(ValueError, match="no rows"):
        recompute(tmp_path / "elsewhere")


def test_an_answer_file_is_read_and_checked(blip, tokenizer, examples, tmp_path, cpu):
    (tmp_path / "answers.json").write_text('["yellow"]')
    config = EvaluationConfig.model_validate_json(json.dumps({"vqa": {"answers": "answers.json"}}))
    given = {"vqa": examples}
    summary = evaluate(blip, tokenizer, config, given, folder=tmp_path, device=cpu, base=tmp_path, progress=False)
    assert summary["vqa"]["accuracy"] == pytest.approx(100 / 6)
    (tmp_path / "answers.json").write_text('{"a": 1}')
    with pytest.raises(ValueError, match="list of answers, found dict"):
        evaluate(blip, tokenizer, config, given, folder=tmp_path, device=cpu, base=tmp_path, progress=False)


def test_a_task_that_the_model_has_no_part_for_stops_before_the_first(clip, albef, tokenizer, examples, tmp_path, cpu):
    config = EvaluationConfig.model_validate_json(json.dumps(ASKED))
    given = dict.fromkeys(config.tasks, examples)
    for model, message in ((clip, r"captioning: the model \(clip\) has no decoder"), (albef, "no decoder")):
        with pytest.raises(ValueError, match=message):
            evaluate(model, tokenizer, config, given, folder=tmp_path, device=cpu, progress=False)
    assert not (tmp_path / "evaluation").exists()


def test_data_is_loaded_once_per_source_and_missing_data_is_named():
    source = [{"source": "builtin:scenes", "split": "test"}]
    config = EvaluationConfig.model_validate_json(
        json.dumps({"data": source, "retrieval": {}, "vqa": {"mode": "generate"}})
    )
    tasks = load_tasks(config)
    assert tasks["retrieval"] is tasks["vqa"]
    with pytest.raises(ValueError, match=r"evaluation\.captioning\.data"):
        load_tasks(EvaluationConfig.model_validate_json(json.dumps({"captioning": {}})))
