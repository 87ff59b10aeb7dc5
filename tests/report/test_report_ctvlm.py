"""The page of CTVLM runs: both models as rows, what each stage did and its curves, answers beside their pictures."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from pages import report, section
from PIL import Image
from pydantic import ValidationError

from limbeck.recipe.ctvlm import CTVLMRecipe, CTVLMStageConfig
from limbeck.report import ReportError
from limbeck.report.stages import direction_of, method_of, read_story

CAPTIONS = {"source": "captions", "of": {"source": "builtin:scenes"}}
RECIPE: dict[str, Any] = {
    "method": "ctvlm",
    "output": "runs/laptop",
    "duet": {
        "eye": "limbeck:quickstart_teacher",
        "tiny": {"kind": "opt", "width": 96, "layers": 3, "heads": 4},
        "large": {"folder": "models/large"},
    },
    "tokenizer": {"tokenizer": "bpe"},
    "training": {"per_device_train_batch_size": 64, "learning_rate": 1e-3, "num_train_epochs": 2},
    "stages": [
        {"name": "language", "kind": "language", "data": [CAPTIONS]},
        {"name": "align_tiny", "kind": "align_tiny", "data": [CAPTIONS]},
        {"name": "align_large", "kind": "align_large", "data": [CAPTIONS]},
        {
            "name": "tune",
            "kind": "tune",
            "data": [{**CAPTIONS, "source": "instructions"}, CAPTIONS],
            "training": {"learning_rate": 5e-4, "max_steps": 1500},
        },
    ],
}
STEPS = (10, 20, 30)
TERMS = {
    "language": {"language/large": 3.0},
    "align_tiny": {"contrastive": 4.0, "matching": 0.6, "language/tiny": 3.5},
    "align_large": {"language/tiny": 2.5, "language/large": 2.75, "forward_kl": 0.4375},
    "tune": {"language/tiny": 2.0, "language/large": 1.5, "reverse_kl": 0.21875},
}
ACCURACY = {"tiny": 45.0, "large": 60.0}
TOWERS = {"eye": 2_600_000, "connectors": 40_000, "table": 230_000, "tiny": 900_000}
PREDICTIONS = {"tiny": ("blue", "a bee and a pear"), "large": ("pink", "a bee above two pears")}


def write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_model(folder: Path, role: str, better: float) -> None:
    """Evaluation, profile and gallery of one model, as the run writes them."""
    accuracy, (answer, caption) = ACCURACY[role] + better, PREDICTIONS[role]
    summary = {
        "vqa": {"questions": 80, "accuracy": accuracy, "by_kind": {"colour": accuracy, "where": 12.5}},
        "captioning": {"pictures": 20, "BLEU-1": 50.0, "BLEU-4": 20.0, "CIDEr": 90.0, "tokenizer": "ptb-java"},
        "pope": {"questions": 9, "F1": 81.25, "accuracy": 83.5, "by_split": {"random": {"F1": 87.125}}},
        "mme": {"questions": 4, "perception": 1510.75, "by_task": {"count": {"score": 140.0}}},
    }
    write(folder / "evaluation" / "summary.json", summary)
    question = {"image_id": "scene-1", "kind": "colour", "question": "which colour is behind?", "answers": ["pink"]}
    graded = {"prediction": answer, "benchmark": "scenes_vqa", "accuracy": float(answer == "pink")}
    write_lines(folder / "evaluation" / "vqa.jsonl", [{"id": "scene-1/0", **question, **graded}])
    written = {"references": ["a bee over two pears"], "prediction": caption, "benchmark": "scenes_caption"}
    write_lines(folder / "evaluation" / "captioning.jsonl", [{"id": "scene-1", **written}])
    secret = {"id": "7", "question": "is there a hat?", "prediction": f"says {role}", "benchmark": "vqa_v2"}
    write_lines(folder / "evaluation" / "secret.jsonl", [secret])
    towers = TOWERS | ({"large": 5_700_000} if role == "large" else {})
    scale = 4 if role == "large" else 1
    write(
        folder / "profile.json",
        {
            "parameters": sum(towers.values()),
            "parameters_by_tower": towers,
            "macs": 88_000_000 * scale,
            "macs_with_attention": 91_000_000 * scale,
            "macs_by_part": {"first_token": 88_000_000 * scale, "next_token": 1_500_000 * scale},
            "macs_with_attention_by_part": {"first_token": 91_000_000 * scale, "next_token": 1_600_000 * scale},
            "latency_ms": {"first_token": 10.0 * scale, "next_token": 2.0 * scale, "whole": 40.0 * scale},
            "tokens_per_second": 400.0 / scale,
            "peak_memory_mib": 16.0 * scale,
            "batch_size": 1,
            "words": 16,
            "prompt_tokens": 58,
            "new_tokens": 16,
            "image_size": 336,
            "device": "cpu",
            "dtype": "float32",
            "threads": 2,
        },
    )
    asked = {"text": question["question"], "answers": ["pink"], "rows": "vqa", "id": "scene-1/0"}
    unknown = {"text": "is there a hat?", "answers": [], "rows": "secret", "id": "7"}
    entry = {"id": "vqa/scene-1/0", "file": "0.png", "captions": ["a bee over two pears"]}
    entry |= {"written": {"rows": "captioning", "id": "scene-1"}, "questions": [asked, unknown]}
    write(folder / "gallery" / "gallery.json", [entry])
    Image.new("RGB", (48, 32), "pink").save(folder / "gallery" / "0.png")


def write_run(folder: Path, *, stages: dict[int, dict[str, Any]] | None = None, better: float = 0.0) -> Path:
    """A finished run folder of `RECIPE` with these changes of its stages, by their place."""
    changed = [stage | (stages or {}).get(place, {}) for place, stage in enumerate(RECIPE["stages"])]
    recipe = CTVLMRecipe.model_validate_json(json.dumps(RECIPE | {"stages": changed}))
    folder.mkdir()
    (folder / "recipe.yaml").write_text(yaml.safe_dump(json.loads(recipe.model_dump_json()), sort_keys=False))
    write(folder / "environment.json", {"versions": {"torch": "2.13.0"}, "machine": {"cpu": "Example"}, "seconds": 61})
    rows = [
        {
            "stage": stage,
            "step": step,
            "loss": sum(terms.values()) / step,
            "learning_rate": 1e-3 / step,
            "samples_per_second": 40.0,
            "terms": {term: value / step for term, value in terms.items()},
            "weights": dict.fromkeys(terms, 1.0),
            "state": {},
        }
        for stage, terms in TERMS.items()
        for step in STEPS
    ]
    write_lines(folder / "log.jsonl", rows)
    write_model(folder, "large", better)
    write_model(folder / "tiny", "tiny", better)
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "laptop")


def test_one_run_is_a_row_for_each_of_its_models(run, tmp_path):
    _, page, models = report(tmp_path / "out", run)
    assert [(model["role"], model["name"]) for model in models] == [("tiny", "tiny"), ("large", "large")]
    tiny, large = models
    assert (tiny["metrics"]["VQA"], large["metrics"]["CIDEr"]) == (45.0, 90.0)
    assert (tiny["parameters"], large["macs"], large["latency_ms"]) == (3_770_000, 352_000_000, 160.0)
    assert large["parameters_by_tower"] == TOWERS | {"large": 5_700_000}
    assert (tiny["first_token_ms"], tiny["next_token_ms"], tiny["tokens_per_second"]) == (10.0, 2.0, 400.0)
    assert "The tiny model keeps 88% of the large one" in page
    assert "40% of the parameters, 25% of the MACs and 4.0\N{MULTIPLICATION SIGN} the speed" in page


def test_every_benchmark_of_the_summary_has_its_figures(run, tmp_path):
    paths, page, models = report(tmp_path / "out", run)
    assert models[0]["metrics"].items() >= {"pope": 83.5, "pope F1": 81.25, "mme perception": 1510.75}.items()
    assert not [name for name in models[0]["metrics"] if "questions" in name], "counts are no quality"
    table = section(page, "table")
    assert ">1510.8<" in table
    assert "pope by_split random F1</th><td>87.125</td>" in table
    assert "captioning BLEU-1</th><td>50</td>" in table
    assert "| mme perception |" in paths.markdown.read_text()
    assert "colour" in section(page, "words")


def test_costs_stand_by_tower_and_by_token(run, tmp_path):
    table = section(report(tmp_path / "out", run)[1], "table")
    assert "Parameters, eye</th><td>2.6 M</td><td>2.6 M</td>" in table
    assert "Parameters, large</th><td>\N{EM DASH}</td><td>5.7 M</td>" in table
    assert "MACs for each further token</th><td>1.5 M</td><td>6 M</td>" in table
    assert "Time to the first token</th><td>10 ms</td><td>40 ms</td>" in table
    assert "Tokens per second</th><td>400</td><td>100</td>" in table
    assert "58 tokens with the picture" in table


def test_stages_say_what_trained_and_who_taught_whom(run, tmp_path):
    paths, page, _ = report(tmp_path / "out", run)
    stages = section(page, "stages")
    rows = {row.partition("<")[0]: row for row in stages.split('<th scope="row">')[1:]}
    assert list(rows) == list(TERMS)
    assert "no divergence" in rows["align_tiny"]
    assert "stage I-a" in rows["align_tiny"]
    assert "the connector to the large model, and nothing else" in rows["align_large"]
    assert "the tiny model teaches the large one: forward KL, KL(tiny \N{PARALLEL TO} large)" in rows["align_large"]
    assert "the large model teaches the tiny one: reverse KL, KL(tiny \N{PARALLEL TO} large)" in rows["tune"]
    assert "<td>0.3</td>" in rows["tune"]
    assert "instructions of builtin:scenes" in rows["tune"]
    assert "learning rate 0.0005, batch 64, 1,500 steps" in rows["tune"]
    assert "learning rate 0.001, batch 64, 2 epochs" in rows["language"]
    assert "tiny: opt, 96 wide, 3 layers; large: models/large; fusion prefix+cross, features I+T" in stages
    assert "- tune (II): trains the tiny model" in paths.markdown.read_text()


def test_what_a_recipe_changes_is_told(tmp_path):
    changed = {"kd": "forward", "lambda": 0.7, "on_policy": True, "temperature": 2.0}
    folder = write_run(tmp_path / "changed", stages={3: changed, 2: {"trainable": ["duet.connector.0.*"]}})
    tune = read_story(folder, "changed", "other-1").stages[3]
    assert tune.teaches.startswith("the large model teaches the tiny one: forward KL, KL(large \N{PARALLEL TO} tiny)")
    assert "temperature 2" in tune.teaches
    assert "own answers" in tune.teaches
    assert tune.share == 0.7
    assert read_story(folder, "changed", "other-1").stages[2].trains == "duet.connector.0.*"
    alone = write_run(tmp_path / "alone", stages={3: {"models": "tiny"}})
    stage = read_story(alone, "alone", "other-1").stages[3]
    assert (stage.trains, stage.teaches, stage.share) == ("the tiny model alone", "no divergence", None)


def test_the_page_takes_the_recipes_word_for_the_divergence():
    tried = 0
    kinds, ways, models = ("language", "align_tiny", "align_large", "tune"), (None, "none", "forward"), ("both", "tiny")
    for kind, kd, which in itertools.product(kinds, ways, models):
        values = {"name": "a", "kind": kind, "kd": kd, "models": which, "data": [CAPTIONS]}
        try:
            config = CTVLMStageConfig.model_validate_json(json.dumps(values))
        except ValidationError:
            continue
        assert direction_of(kind, kd, which) == config.direction
        tried += 1
    assert tried > 8


def test_each_stage_has_its_curves_with_every_term_and_divergence(run, tmp_path):
    training = section(report(tmp_path / "out", run)[1], "training")
    parts = {part.partition("</h3>")[0]: part for part in training.split("<h3>")[1:]}
    assert list(parts) == [*TERMS, "All stages, one after the other"]
    for stage, terms in TERMS.items():
        captions = [part.partition("<")[0] for part in parts[stage].split("<figcaption>")[1:]]
        assert captions == ["loss", *terms]
    assert "reverse_kl over training steps: laptop from 0.02187 to 0.007292." in parts["tune"]
    assert "Pictures per second" in parts["All stages, one after the other"]


def test_answers_of_both_models_stand_beside_their_picture(run, tmp_path):
    words = section(report(tmp_path / "out", run)[1], "words")
    assert words.count('<article class="case">') == 1
    assert words.count('href="#picture-1"') == 1
    for caption in ("a bee and a pear", "a bee above two pears"):
        assert caption in words
    wrong, right = words.index("> blue"), words.index("> pink")
    assert '<dd><span class="sign" role="img" aria-label="wrong">' in words[wrong - 80 : wrong]
    assert 'class="right"' in words[right - 100 : right]
    assert "(right: pink)" in words
    assert "<dd>says tiny</dd>" in words, "an answer that nobody can grade has no sign"


def test_runs_stand_side_by_side_by_role(run, tmp_path):
    better = write_run(tmp_path / "with-kl", better=10.0)
    _, page, models = report(tmp_path / "out", run, better)
    names = ["laptop tiny", "with-kl tiny", "laptop large", "with-kl large"]
    assert [model["name"] for model in models] == names
    bold = [row.partition("</tr>")[0] for row in section(page, "table").split('<tr class="tone-')[1:]]
    assert ["<b>55.0</b>" in bold[1], "<b>70.0</b>" in bold[3]] == [True, True], "the best of its role"
    assert not ["" for row in (bold[0], bold[2]) if "<b>" in row]
    tones = [row.partition('"')[0] for row in bold]
    assert len(set(tones)) == 4
    assert section(page, "stages").count('<table class="stages">') == 2
    tune = section(page, "training").partition("<h3>tune</h3>")[2].partition("<h3>")[0]
    assert "loss over training steps: laptop from 0.3719 to 0.124; with-kl from" in tune


def test_runs_of_one_name_stand_side_by_side(run, tmp_path):
    (tmp_path / "seed1").mkdir()
    other = write_run(tmp_path / "seed1" / run.name, better=5.0)
    _, page, models = report(tmp_path / "out", run, other)
    names = [f"{tmp_path.name}/{run.name}", f"seed1/{run.name}"]
    assert [model["name"] for model in models] == [f"{name} {role}" for role in ("tiny", "large") for name in names]
    assert all(name in section(page, "training") for name in names)


def test_the_page_is_one_file_that_fetches_nothing(run, tmp_path):
    paths, page, _ = report(tmp_path / "out", run)
    assert {path.name for path in paths.html.parent.iterdir()} == {"report.html", "report.md", "report.json"}
    addresses = [part.partition('"')[0] for key in ("src", "href") for part in page.split(f' {key}="')[1:]]
    assert addresses
    assert not [address for address in addresses if not address.startswith(("data:", "#"))]
    assert "url(" not in page
    assert "OpenMoji" in page, "whoever shows built-in scenes credits their makers"


def test_no_sections_that_a_model_which_writes_cannot_fill(run, tmp_path):
    page = report(tmp_path / "out", run)[1]
    assert 'id="retrieval"' not in page
    assert 'id="attention"' not in page
    assert 'class="absent"' not in page
    assert "share of the teacher" not in page


def test_what_is_not_there_yet_is_said(run, tmp_path):
    for gone in ("evaluation/summary.json", "profile.json", "gallery/gallery.json", "log.jsonl"):
        (run / gone).unlink()
    _, page, models = report(tmp_path / "out", run)
    assert models[1]["metrics"] == {}
    assert models[1]["parameters"] is None
    assert models[0]["metrics"]["VQA"] == 45.0
    assert "No run holds a training log." in section(page, "training")
    origins = section(page, "run")
    assert "Not in its folder: evaluation/summary.json, profile.json, gallery/gallery.json." in origins
    assert "Not in its folder: log.jsonl." in origins


def test_a_run_that_has_just_begun_has_no_tiny_row(tmp_path):
    run = write_run(tmp_path / "young")
    (run / "tiny").rename(tmp_path / "away")
    assert [model["role"] for model in report(tmp_path / "out", run)[2]] == ["large"]


def test_another_model_that_was_tried_on_the_benchmarks_joins_them(run, tmp_path):
    write_model(tmp_path / "llava", "large", better=5.0)
    _, page, models = report(tmp_path / "out", run, tmp_path / "llava")
    assert [(model["role"], model["name"]) for model in models][-1] == ("model", "llava")
    assert models[-1]["metrics"]["VQA"] == 65.0
    assert section(page, "stages").count('<table class="stages">') == 1


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("recipe.yaml", "method: [", r"laptop/recipe\.yaml: not YAML"),
        ("recipe.yaml", "- 1\n", r"recipe\.yaml: wanted a YAML object, found list"),
        (
            "recipe.yaml",
            "method: ctvlm\nstages: [{kind: tune}]\n",
            r"recipe\.yaml, stages, 0, name: wanted a text, found nothing",
        ),
        (
            "tiny/profile.json",
            '{"tokens_per_second": "fast"}',
            r"tiny/profile\.json, tokens_per_second: wanted a number",
        ),
        ("evaluation/summary.json", '{"pope": 3}', r"summary\.json, pope: wanted an object, found int '3'"),
        ("tiny/evaluation/vqa.jsonl", '{"id": "scene-1/0"}\n', r"tiny/evaluation/vqa\.jsonl line 1, prediction"),
        ("log.jsonl", '{"stage": "tune"}\n', r"log\.jsonl line 1, step: wanted a number, found nothing"),
        (
            "gallery/gallery.json",
            '[{"id": 1, "file": "0.png", "written": {"rows": "../vqa", "id": 1}}]',
            r"wanted the name of a file of rows, found '\.\./vqa'",
        ),
    ],
)
def test_a_mistake_names_its_file_and_place(run, tmp_path, file, text, message):
    (run / file).write_text(text)
    with pytest.raises(ReportError, match=message):
        report(tmp_path / "out", run)


def test_markup_in_a_run_stays_text(run, tmp_path):
    evil = "</script><script>alert(1)</script>"
    recipe = run / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("name: tune", f"name: '{evil}'"))
    log = run / "log.jsonl"
    log.write_text(log.read_text().replace("reverse_kl", evil))
    assert "<script>alert" not in report(tmp_path / "out", run)[1]


def test_other_runs_have_no_method_of_this_kind(tmp_path):
    assert method_of(tmp_path) is None
    (tmp_path / "recipe.yaml").write_text("method: {name: dlip}\n")
    assert method_of(tmp_path) is None
