"""From configs to rows and summary, with a real small model, and what a report reads of it."""

import json
import shutil
from collections.abc import Sequence

import pytest
from pydantic import TypeAdapter, ValidationError

from limbeck.config import Section
from limbeck.data.examples import DataError
from limbeck.data.scenes import ScenesConfig
from limbeck.evaluation.generative.answering import answers_to
from limbeck.evaluation.generative.benchmarks import (
    BENCHMARKS,
    AnyBenchmark,
    BenchmarkConfig,
    evaluate_generative,
    load_benchmark,
    recompute_generative,
    with_predictions,
)
from limbeck.evaluation.generative.captions import ScenesCaptionConfig
from limbeck.evaluation.generative.model import AnsweringConfig, GenerativeModel
from limbeck.evaluation.generative.source_questions import ScenesVqaConfig
from limbeck.evaluation.generative.yes_no import PopeConfig
from limbeck.report.runs import RunEntry, read_run

SCENES = ScenesConfig(source="builtin:scenes", split="test", count=4, size=32, questions=2)


@pytest.fixture(autouse=True)
def no_java(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    pytest.importorskip("resvg_py")


@pytest.fixture
def configs() -> Sequence[AnyBenchmark]:
    return (
        ScenesVqaConfig(benchmark="scenes_vqa", name="vqa", data=SCENES, max_new_tokens=4),
        ScenesCaptionConfig(benchmark="scenes_caption", name="captioning", data=SCENES, max_new_tokens=6),
        ScenesVqaConfig(benchmark="scenes_vqa", name="blind", data=SCENES, blind=True, limit=5, max_new_tokens=4),
    )


def evaluate(model, configs, folder):
    return evaluate_generative(model, configs, folder, answering=AnsweringConfig(batch_size=3), progress=False)


def rows_of(folder, name: str) -> list[dict]:
    return [json.loads(line) for line in (folder / "evaluation" / f"{name}.jsonl").read_text().splitlines()]


def test_rows_and_summary(vlm, configs, tmp_path):
    summary = evaluate(vlm, configs, tmp_path)
    assert json.loads((tmp_path / "evaluation" / "summary.json").read_text()) == summary
    assert list(summary) == ["vqa", "captioning", "blind"]
    items = load_benchmark(configs[0])
    rows = rows_of(tmp_path, "vqa")
    assert [row["prediction"] for row in rows] == answers_to(vlm, items, max_new_tokens=4)
    assert {row["benchmark"] for row in rows} == {"scenes_vqa"}
    assert summary["vqa"]["questions"] == len(rows) == 8
    assert summary["vqa"]["accuracy"] == pytest.approx(100 * sum(row["accuracy"] for row in rows) / 8)
    assert rows_of(tmp_path, "captioning")[0]["scores"].keys() >= {"CIDEr", "BLEU-4"}
    assert len(rows_of(tmp_path, "blind")) == 5


def test_the_summary_comes_again_from_rows_alone(vlm, configs, tmp_path):
    summary = evaluate(vlm, configs, tmp_path)
    path = tmp_path / "evaluation" / "vqa.jsonl"
    rows = [row | {"prediction": row["answers"][0], "accuracy": 0} for row in rows_of(tmp_path, "vqa")]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    again = recompute_generative(tmp_path)
    assert again["vqa"]["accuracy"] == 100
    assert again["captioning"] == summary["captioning"]
    assert json.loads((tmp_path / "evaluation" / "summary.json").read_text()) == again
    with pytest.raises(ValueError, match="no rows of a benchmark"):
        recompute_generative(tmp_path / "evaluation")


def test_a_second_call_answers_nothing_again(vlm, configs, tmp_path, monkeypatch):
    first = evaluate(vlm, configs, tmp_path)
    files = {path.name: path.read_bytes() for path in (tmp_path / "evaluation").iterdir()}
    monkeypatch.setattr(GenerativeModel, "write", None)
    assert evaluate(vlm, configs, tmp_path) == first
    assert {path.name: path.read_bytes() for path in (tmp_path / "evaluation").iterdir()} == files


def test_the_report_reads_it(vlm, configs, tmp_path):
    summary = evaluate(vlm, configs, tmp_path)
    run = read_run(RunEntry(role="plain", name="tiny", folder=tmp_path))
    assert run.metrics["VQA"] == summary["vqa"]["accuracy"]
    assert run.metrics["CIDEr"] == summary["captioning"]["CIDEr"]
    assert run.by_kind == summary["vqa"]["by_kind"]
    picture = rows_of(tmp_path, "captioning")[0]["id"]
    assert picture in run.predictions.captions
    assert [answer.question for answer in run.predictions.answers[picture]] == [
        row["question"] for row in rows_of(tmp_path, "vqa") if row["image_id"] == picture
    ]


def test_every_benchmark_has_a_config_and_the_other_way_round():
    class Recipe(Section):
        benchmarks: tuple[BenchmarkConfig, ...]

    kinds = (kind["properties"] for kind in Recipe.model_json_schema()["$defs"].values())
    known = {fields["benchmark"]["const"] for fields in kinds if "benchmark" in fields}
    assert known == set(BENCHMARKS)


def test_configs_are_strict():
    adapter = TypeAdapter(BenchmarkConfig)
    config = adapter.validate_python({"benchmark": "pope", "folder": "pope", "blind": True})
    assert isinstance(config, PopeConfig)
    with pytest.raises(ValidationError, match="does not match any of the expected tags"):
        adapter.validate_python({"benchmark": "pop"})
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        adapter.validate_python({"benchmark": "pope", "folder": "pope", "image": "."})
    with pytest.raises(ValidationError, match="name"):
        adapter.validate_python({"benchmark": "pope", "folder": "pope", "name": "../pope"})


def test_files_are_read_before_the_first_answer(vlm, configs, tmp_path, monkeypatch):
    monkeypatch.setattr(GenerativeModel, "write", None)
    missing = PopeConfig(benchmark="pope", folder="nowhere", blind=True)
    with pytest.raises(DataError, match=r"nowhere: no such folder \(benchmark pope, field folder\)"):
        evaluate(vlm, [*configs, missing], tmp_path)
    with pytest.raises(ValueError, match="different names, found vqa, vqa"):
        evaluate(vlm, [configs[0], configs[0]], tmp_path)


def test_answers_from_elsewhere_must_be_whole(configs):
    items = load_benchmark(configs[0])
    with pytest.raises(ValueError, match="no answer to 8 of 8 items"):
        with_predictions(items, {})
