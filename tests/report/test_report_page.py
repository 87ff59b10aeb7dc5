"""The page: complete, self-contained, escaped, and honest about what is missing."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from pages import report

from limbeck.report import ReportError, RunEntry, make_report
from limbeck.report import cases as cases_module
from limbeck.report.cases import make_cases
from limbeck.report.examples import Picture
from limbeck.report.runs import read_run


class Page(HTMLParser):
    """Elements, their addresses, and the text outside scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def addresses(self) -> list[str]:
        return [
            value or ""
            for _, attrs in self.tags
            for key, value in attrs.items()
            if key in ("src", "href", "srcset", "poster", "data")
        ]


def page_of(entries, tmp_path, notes="") -> Page:
    return Page(make_report(tmp_path / "out", entries, "A title", notes).html.read_text(encoding="utf-8"))


def test_page_fetches_nothing(runs, tmp_path):
    text = make_report(tmp_path / "out", runs, "A title", "See https://openmoji.org.").html.read_text()
    assert all(address.startswith(("data:", "#")) for address in Page(text).addresses())
    assert "@import" not in text
    assert "url(" not in text
    assert not [attrs for tag, attrs in Page(text).tags if tag in ("iframe", "link") and attrs.get("rel") != "icon"]


def test_page_is_light(runs, tmp_path):
    assert make_report(tmp_path / "out", runs, "A title", "").html.stat().st_size < 400_000


def test_page_shows_every_section(runs, tmp_path):
    page = page_of(runs, tmp_path, "First note.\n\nSecond note.")
    ids = {attrs.get("id") for _, attrs in page.tags}
    assert {"table", "trade-off", "training", "retrieval", "words", "attention", "run"} <= ids
    for text in (
        "114.0",
        "First right caption at rank 12.",
        "a thing",
        "how many",
        "First note.",
        "learning_rate: 0.001",
    ):
        assert text in page.text
    assert "4 min 12 s" in page.text
    assert "2.13.0" in page.text
    assert not [attrs for _, attrs in page.tags if attrs.get("class") == "absent"]


def test_every_picture_chart_and_table_tells_what_it_shows(runs, tmp_path):
    page = page_of(runs, tmp_path)
    drawings = [attrs for tag, attrs in page.tags if tag == "svg" and attrs.get("aria-hidden") != "true"]
    assert drawings
    assert all(attrs.get("aria-label") for attrs in drawings)
    tags = [tag for tag, _ in page.tags]
    assert tags.count("caption") == tags.count("table") == 2
    assert tags.count("h1") == 1


def test_picture_is_embedded_once_however_often_it_is_shown(runs, tmp_path):
    page = page_of(runs, tmp_path)
    uses = [attrs["href"] for tag, attrs in page.tags if tag == "use"]
    assert uses.count("#picture-1") == 1 + 1 + 1 + 2 * 3
    assert [attrs.get("id") for tag, attrs in page.tags if tag == "image" and attrs.get("id")] == [
        "picture-1",
        "picture-2",
    ]


def test_data_cannot_write_markup_or_end_a_script(runs, tmp_path):
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'"
    folder = runs[2].folder
    gallery = json.loads((folder / "gallery" / "gallery.json").read_text())
    gallery[0] |= {"captions": [evil], "questions": [{"text": evil, "answers": [evil]}]}
    for entry in runs:
        (entry.folder / "gallery" / "gallery.json").write_text(json.dumps(gallery))
        log = entry.folder / "log.jsonl"
        log.write_text(log.read_text().replace('"contrastive"', json.dumps(evil)))
    (folder / "recipe.yaml").write_text(f"name: {evil}\n")
    evil_run = RunEntry(role=evil, name=evil, folder=folder)
    text = make_report(tmp_path / "out", [*runs[:2], evil_run], evil, evil).html.read_text()
    assert "<script>alert" not in text
    assert "<img" not in text
    page = Page(text)
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert not [attrs for _, attrs in page.tags if any(key.startswith("on") for key in attrs)]
    assert evil in page.text
    charts = [json.loads(attrs["data-lines"] or "") for _, attrs in page.tags if "data-lines" in attrs]
    assert any(line["label"] == evil for chart in charts for line in chart["lines"])


def test_an_empty_run_gives_a_page_that_says_so(bare_run, tmp_path):
    page = page_of([bare_run("teacher")], tmp_path)
    assert [attrs.get("class") for _, attrs in page.tags].count("absent") == 7
    assert "No run holds a training log." in page.text
    assert "Not in its folder: recipe.yaml" in page.text
    assert not [attrs for _, attrs in page.tags if "data-lines" in attrs]


def test_runs_with_different_pieces_stand_side_by_side(runs, bare_run, tmp_path):
    (runs[1].folder / "evaluation" / "retrieval.jsonl").unlink()
    page = page_of([*runs, bare_run("extra")], tmp_path)
    assert "Not evaluated on this picture." in page.text
    assert "tone-other-1" in " ".join(attrs.get("class") or "" for _, attrs in page.tags)


def test_values_that_are_not_finite_leave_a_gap_and_no_nan_in_the_page(runs, tmp_path):
    log = runs[2].folder / "log.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    lines[3]["loss"] = float("nan")
    lines[4]["terms"]["language"] = float("inf")
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = make_report(tmp_path / "out", runs, "t", "").html.read_text()
    assert not re.search(r"\b(nan|NaN|Infinity|inf)\b", text)


def test_pictures_past_the_budget_are_left_out_and_counted(runs, monkeypatch, tmp_path):
    monkeypatch.setattr(cases_module, "BUDGET", 400)
    cases = make_cases([read_run(entry) for entry in runs])
    assert (len(cases.shown), cases.left_out) == (1, 1)
    assert "1 more pictures" in page_of(runs, tmp_path).text


def test_names_must_differ_and_there_must_be_a_run(runs, tmp_path):
    with pytest.raises(ReportError, match="'teacher' more than once"):
        make_report(tmp_path, [runs[0], runs[0]], "t", "")
    with pytest.raises(ReportError, match="at least one run"):
        make_report(tmp_path, [], "t", "")


def test_report_loads_neither_torch_nor_models():
    code = "import sys, limbeck.report; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_distilled_run_is_known_by_its_recipe_before_its_teacher_is_evaluated(runs, tmp_path):
    folders = [entry.folder for entry in runs[1:]]
    (folders[1] / "recipe.yaml").write_text("method: dlip\nteacher: {folders: [big]}\n")
    (folders[0] / "recipe.yaml").write_text("method: dlip\nteacher: null\n")
    models = report(tmp_path / "out", *folders)[2]
    assert [(model["role"], model["name"]) for model in models] == [("plain", "plain"), ("distilled", "distilled")]


def test_answers_to_questions_that_nobody_has_answered_are_shown_without_a_verdict(runs, tmp_path):
    for entry in runs:
        path = entry.folder / "evaluation" / "vqa.jsonl"
        rows = [json.loads(line) | {"answers": [], "prediction": "a pear"} for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps({k: v for k, v in row.items() if k != "accuracy"}) + "\n" for row in rows))
    page = page_of(runs, tmp_path)
    assert "a pear" in page.text
    assert "(right:" not in page.text


def test_the_pictures_budget_counts_what_is_kept(runs, monkeypatch):
    read = [read_run(entry) for entry in runs]
    sizes = iter([120, 60])
    monkeypatch.setattr(cases_module, "embed", lambda file: Picture(width=1, height=1, address="x" * next(sizes)))
    monkeypatch.setattr(cases_module, "BUDGET", 100)
    shown = make_cases(read).shown
    assert [len(case.picture.address) for case in shown] == [60]
