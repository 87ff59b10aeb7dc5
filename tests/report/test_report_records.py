"""A run's files: read as they are written, and a mistake names its place."""

import pytest

from limbeck.report import ReportError, RunEntry
from limbeck.report.curves import timeline
from limbeck.report.runs import read_run


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("profile.json", "{", r"profile\.json: not JSON"),
        ("profile.json", "[1]", r"profile\.json: wanted a JSON object, found list"),
        ("profile.json", '{"parameters": "many"}', r"profile\.json, parameters: wanted a number, found str 'many'"),
        (
            "log.jsonl",
            '{"stage": "a", "step": 1}\n{"stage": "a"}\n',
            r"log\.jsonl line 2, step: wanted a number, found nothing",
        ),
        ("log.jsonl", '{"stage": "a", "step": 1, "terms": 3}\n', r"line 1, terms: wanted an object, found int '3'"),
        ("evaluation/vqa.jsonl", '{"id": "q"}\n', r"vqa\.jsonl line 1, question: wanted a text, found nothing"),
        ("gallery/gallery.json", '[{"id": 1, "file": "../secret.png"}]', r"wanted the name of a picture"),
        (
            "gallery/gallery.json",
            '[{"id": 1, "file": "scene-1.png", "image_attention": [[1, 2], [3]]}]',
            r"equal length",
        ),
    ],
)
def test_a_mistake_in_a_file_names_file_place_and_finding(runs, file, text, message):
    (runs[0].folder / file).write_text(text)
    with pytest.raises(ReportError, match=message):
        read_run(runs[0])


def test_a_run_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ReportError, match=r"'big' \(teacher\): there is no folder"):
        read_run(RunEntry(role="teacher", name="big", folder=tmp_path / "nowhere"))


def test_a_line_torn_by_a_kill_is_left_out_and_a_repeated_step_counts_once(bare_run):
    entry = bare_run("plain")
    (entry.folder / "log.jsonl").write_text(
        '{"stage": "a", "step": 1, "loss": 3}\n{"stage": "a", "step": 2, "loss": 9}\n'
        '{"stage": "a", "step": 2, "loss": 2}\n{"stage": "a", "st'
    )
    assert [(row.step, row.loss) for row in read_run(entry).log] == [(1, 3.0), (2, 2.0)]


def test_steps_of_a_later_stage_follow_those_of_the_first(runs):
    placed, begins = timeline(read_run(runs[0]).log)
    assert [step for step, _ in placed] == list(range(10, 501, 10))
    assert begins == [400]


def test_predictions_are_read_as_evaluation_writes_them(runs):
    plain = read_run(runs[1])
    assert plain.predictions.retrieved["scene-1"].rank == 12
    assert plain.predictions.captions["scene-2"] == "a thing"
    assert [answer.accuracy for answer in plain.predictions.answers["scene-1"]] == [0.0, 1.0]
    assert plain.metrics["VQA"] == 54.0
    assert plain.by_kind["what"] == 64.0
    assert plain.tokenizer == "fallback"
