"""The table's numbers, in all three files."""

import json
from pathlib import Path

import pytest

from limbeck.report import RunEntry, make_report
from limbeck.report.headline import make_headline
from limbeck.report.runs import read_run
from limbeck.report.table import NONE, as_json, make_table, millions, operations


def read(entries: list[RunEntry]):
    return [read_run(entry) for entry in entries]


def cell(entries: list[RunEntry], name: str, column: str):
    table = make_table(read(entries))
    row = next(row for row in table.rows if row.name == name)
    return row.cells[[one.key for one in table.columns].index(column)]


def test_json_is_a_list_of_models_with_what_was_measured(runs, tmp_path):
    models = json.loads(make_report(tmp_path / "out", runs, "t", "").json.read_text())
    assert [model["role"] for model in models] == ["teacher", "plain", "distilled"]
    distilled = models[2]
    assert distilled["metrics"]["TR@1"] == 57.0
    assert distilled["metrics"]["VQA"] == 67.0
    assert (distilled["parameters"], distilled["macs"], distilled["latency_ms"]) == (1_900_000, 200_000_000, 7.5)
    assert distilled["share_of_teacher"]["CIDEr"] == pytest.approx(0.95)
    assert models[0]["share_of_teacher"] is None


def test_a_student_cell_shows_its_share_of_the_teacher(runs):
    assert cell(runs, "distilled", "CIDEr").text == "114.0"
    assert cell(runs, "distilled", "CIDEr").share == "95%"
    assert cell(runs, "plain", "latency_ms").share == "38%"
    assert cell(runs, "teacher", "CIDEr").share is None


def test_best_is_the_student_that_is_ahead_and_never_the_teacher_or_a_tie(runs):
    assert cell(runs, "distilled", "TR@1").best
    assert not cell(runs, "plain", "TR@1").best
    assert not cell(runs, "teacher", "TR@1").best
    assert not cell(runs, "distilled", "parameters").best


def test_the_cheaper_student_is_best_in_cost(runs):
    profile = runs[1].folder / "profile.json"
    profile.write_text(profile.read_text().replace('"parameters": 1900000', '"parameters": 1500000'))
    assert cell(runs, "plain", "parameters").best
    assert not cell(runs, "distilled", "parameters").best


def test_what_was_not_measured_is_a_dash_and_null_and_never_zero(runs, bare_run, tmp_path):
    entries = [*runs, bare_run("distilled")]
    for column in ("TR@1", "VQA", "parameters", "latency_ms"):
        assert cell(entries, "bare-distilled", column).text == NONE
    model = json.loads(make_report(tmp_path / "out", entries, "t", "").json.read_text())[-1]
    assert model["metrics"] == {}
    assert model["parameters"] is None


def test_a_metric_that_is_not_finite_counts_as_not_measured(runs, tmp_path):
    path = runs[2].folder / "evaluation" / "summary.json"
    path.write_text(path.read_text().replace('"CIDEr": 114.0', '"CIDEr": NaN'))
    assert cell(runs, "distilled", "CIDEr").text == NONE
    assert "NaN" not in make_report(tmp_path / "out", runs, "t", "").json.read_text()


def test_a_column_that_nobody_measured_is_left_out(runs):
    assert "SPICE" not in [column.key for column in make_table(read(runs)).columns]


def test_without_a_teacher_there_are_no_shares_and_a_plain_headline(runs):
    assert cell(runs[1:], "distilled", "TR@1").share is None
    assert make_headline(read(runs[1:])).sentence == "Quality and cost of 2 models."


def test_headline_gives_the_mean_share_the_least_and_the_costs(runs):
    headline = make_headline(read(runs))
    assert headline.sentence.startswith("The distilled student keeps 95% of its teacher")
    assert headline.sentence.endswith("with 24% of the parameters, 22% of the MACs and 2.7× the speed.")  # noqa: RUF001
    assert "mean of TR@1, IR@1, CIDEr and VQA; least: TR@1, 95%" in headline.facts[0].detail
    assert headline.facts[-1].value == "11 of 11"


@pytest.mark.parametrize("parameters", [8_000_000, None])
def test_another_size_is_no_plain_student(runs, parameters):
    profile = runs[1].folder / "profile.json"
    profile.write_text(json.dumps(json.loads(profile.read_text()) | {"parameters": parameters}))
    assert "plain student" not in " ".join(fact.what for fact in make_headline(read(runs)).facts)


def test_a_recipe_with_another_student_is_no_plain_student(runs):
    for entry, width in zip(runs[1:], (96, 24)):
        (entry.folder / "recipe.yaml").write_text(f"student: {{vision: {{width: {width}}}}}\n")
    assert "plain student" not in " ".join(fact.what for fact in make_headline(read(runs)).facts)
    (runs[1].folder / "recipe.yaml").unlink()
    assert make_headline(read(runs)).facts[-1].what == "metrics above the plain student"


def test_there_is_no_share_of_what_is_shown_as_nothing(runs):
    path = runs[0].folder / "evaluation" / "summary.json"
    path.write_text(path.read_text().replace('"BLEU-4": 30.0', '"BLEU-4": 2.2e-15'))
    assert cell(runs, "teacher", "BLEU-4").text == "0.0"
    assert cell(runs, "distilled", "BLEU-4").share is None
    assert "BLEU-4" not in as_json(read(runs))[2]["share_of_teacher"]


def test_markdown_table_has_one_cell_for_each_column_even_with_bars_in_names(runs, tmp_path):
    odd = RunEntry(role="distilled", name="a|b *c*", folder=runs[2].folder)
    text = make_report(tmp_path / "out", [*runs[:2], odd], "t", "Thanks to Jane.").markdown.read_text()
    lines = [line.replace("\\|", "") for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 5
    assert len({line.count("|") for line in lines}) == 1
    assert "**57.0** (95%)" in lines[-1]
    assert r"a\|b \*c\*" in text
    assert "Thanks to Jane." in text


@pytest.mark.parametrize(
    ("value", "text"), [(1_900_000, "1.9 M"), (222_900_000, "223 M"), (1.3e9, "1.3 G"), (999_600_000, "1 G")]
)
def test_parameters_are_shown_in_millions(value, text):
    assert millions(value) == text


@pytest.mark.parametrize(("value", "text"), [(16.86e9, "16.9 G"), (0.32e9, "0.32 G"), (53e6, "53 M")])
def test_macs_are_shown_in_giga_or_mega(value, text):
    assert operations(value) == text


def test_every_expected_file_that_is_missing_is_named(bare_run, tmp_path):
    text = make_report(tmp_path / "out", [bare_run("plain")], "t", "").markdown.read_text()
    assert "Not there: recipe.yaml, environment.json, log.jsonl" in text


def test_files_are_written_where_they_are_said_to_be(runs, tmp_path):
    paths = make_report(tmp_path / "deep" / "out", runs, "t", "")
    assert {path.name for path in Path(tmp_path / "deep" / "out").iterdir()} == {
        "report.html",
        "report.md",
        "report.json",
    }
    assert paths.html.parent == tmp_path / "deep" / "out"
