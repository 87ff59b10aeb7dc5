"""The page of CoMD runs: score by tuning, difficulty, the pool, the assessor, examples, answers by tuning, cost."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from pages import report, section
from PIL import Image

from limbeck.competition.account import account
from limbeck.competition.pool import Pool
from limbeck.competition.pool_records import (
    Answer,
    Assessment,
    Augmentation,
    Author,
    Cost,
    Decision,
    Order,
    Pair,
    Picture,
    Refused,
    Round,
    Seed,
    Written,
)
from limbeck.recipe.comd import CoMDRecipe, tuning_name
from limbeck.report import ReportError
from limbeck.report.read_competition import read_competition
from limbeck.report.round_charts import Bin, histogram_panels, round_panel
from limbeck.report.stages import read_story

TUNINGS = 3
SOURCE = {"source": "scene_instructions", "of": {"source": "builtin:scenes"}}
RECIPE: dict[str, Any] = {
    "method": "comd",
    "output": "runs/laptop",
    "student": {"eye": "limbeck:quickstart_teacher", "language": {"width": 64, "layers": 2, "heads": 2}},
    "tokenizer": {"tokenizer": "bpe"},
    "teacher": {"folder": "models/teacher"},
    "augmentor": {"endpoint": "http://localhost:8000/v1", "model": "writer-13b"},
    "training": {"per_device_train_batch_size": 16, "learning_rate": 1e-3, "num_train_epochs": 1},
    "stages": [{"name": "connect", "kind": "connect", "data": [SOURCE]}],
    "competition": {"tunings": TUNINGS, "data": [SOURCE], "tuning": {"training": {"max_steps": 300}}},
}
SCORES = {1: 40.0, 2: 55.0, 3: 62.5}
SAID = {1: "a bear", 2: "a cat", 3: "a bee"}
AUTHOR = Author("model", "prompt")
EVIL = "</script><script>alert(1)</script>"


def write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def draw(path: Path, shade: int) -> None:
    Image.new("RGB", (48, 32), (shade, 90, 60)).save(path)


def write_evaluation(folder: Path, accuracy: float, said: str) -> None:
    """A model on two benchmarks, as the run writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    summary = {
        "scenes_vqa": {"questions": 8, "accuracy": accuracy, "by_kind": {"what": accuracy}},
        "llava_bench_coco": {"questions": 3, "judge": "big", "relative_score": accuracy + 20, "reviews": {"scored": 3}},
    }
    write(folder / "summary.json", summary)
    row = {"id": "1", "question": "what is it?", "prediction": said, "accuracy": float(said == "a bee")}
    write_lines(folder / "scenes_vqa.jsonl", [row])
    write_lines(folder / "llava_bench_coco.jsonl", [{"id": "7", "question": "tell me more", "prediction": f"{said}!"}])


def write_gallery(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    asked = [
        {"text": "what is it?", "answers": ["a bee"], "rows": "scenes_vqa", "id": "1"},
        {"text": "tell me more", "answers": [], "rows": "llava_bench_coco", "id": "7"},
    ]
    write(
        folder / "gallery.json", [{"id": "vqa/1", "file": "0.png", "captions": [], "written": None, "questions": asked}]
    )
    draw(folder / "0.png", 80)


def write_profile(folder: Path, parameters: int) -> None:
    profile = {"parameters": parameters, "latency_ms": {"whole": 40.0}, "tokens_per_second": 100.0, "batch_size": 1}
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "profile.json", profile)


def play(file: Path, rounds: int = TUNINGS - 1, *, readable: bool = True) -> dict[str, Any]:
    """The account of a real pool: in each round the first seed is hard, and something new is written from it."""
    with Pool.open(file, create=True) as pool:
        pool.add_model("model", "big")
        pool.add_prompt("prompt", "answer", "say")
        pool.add_seeds(
            [Seed(name=f"s{n}", picture=Picture(id=f"{n}.jpg", path=None), text=f"what is {n}?") for n in (1, 2, 3)]
        )
        for number in range(1, rounds + 1):
            play_round(pool, number, readable=readable)
        return account(pool)


def play_round(pool: Pool, number: int, *, readable: bool) -> None:
    cost = Cost(prompt_tokens=100, new_tokens=10, seconds=2.5)
    everything = pool.instructions(before=number)
    said = {each.id: f"teacher on {each.id}" for each in everything}
    for each in everything:
        if each.round == number - 1:
            pool.add(
                Answer(
                    instruction=each.id,
                    role="teacher",
                    round=0,
                    author=AUTHOR,
                    text=said[each.id],
                    cut=False,
                    cost=cost,
                )
            )
        learner = f"student {number} on {each.id}"
        pool.add(
            Answer(instruction=each.id, role="student", round=number, author=AUTHOR, text=learner, cut=False, cost=cost)
        )
        about = Pair(instruction=each, teacher=said[each.id], student=learner).about
        orders: tuple[tuple[Order, tuple[float, float]], ...] = (("teacher_first", (9, 3)), ("student_first", (6, 5)))
        for order, scores in orders:
            given = {"round": number, "instruction": each.id, "order": order, "about": about, "attempt": 0}
            read = scores if readable and each.id < 3 else None
            pool.add(Assessment(**given, author=AUTHOR, text="scores", scores=read, cost=cost))
    first, second = everything[0].id, everything[1].id
    for seed in (first, second):
        pool.add(
            Augmentation(
                round=number, instruction=seed, attempt=0, author=AUTHOR, text=f"new {number}", verdict=None, cost=cost
            )
        )
    pool.add(Refused(role="augmentor", round=number, instruction=first, author=AUTHOR, reason="gone", attempt=1))
    pool.close_round(
        Round(
            round=number,
            settings={"difficulty": "comd", "tau": 0.33},
            decisions=tuple(
                Decision(
                    round=number,
                    instruction=each.id,
                    difficulty=(0.6 if each.id == first else 0.2) if readable and each.id < 3 else None,
                    kind=("hard" if each.id == first else "easy") if readable and each.id < 3 else "unparsed",
                    chosen=each.id in (first, second),
                )
                for each in everything
            ),
            accepted=(Written(seed=first, attempt=0, author=AUTHOR, text=f"new {number} <b>"),),
            rejected={(second, 0, AUTHOR): "like another one"},
        )
    )


def write_recipe(folder: Path, **changes: Any) -> None:
    """As a run keeps it, with all that was left to defaults."""
    recipe = CoMDRecipe.model_validate_json(json.dumps(RECIPE | changes))
    folder.mkdir(exist_ok=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(json.loads(recipe.model_dump_json()), sort_keys=False))


def write_run(folder: Path, told: dict[str, Any] | None = None) -> Path:
    """A finished run folder of `RECIPE`."""
    write_recipe(folder)
    write(folder / "environment.json", {"versions": {"torch": "2.13.0"}, "machine": {"cpu": "Example"}, "seconds": 61})
    stages = ("connect", *map(tuning_name, range(1, TUNINGS + 1)))
    rows = [
        {"stage": stage, "step": step, "loss": 3 / step, "learning_rate": 1e-3, "terms": {"language": 3 / step}}
        for stage, step in itertools.product(stages, (10, 20))
    ]
    write_lines(folder / "log.jsonl", rows)
    for number, accuracy in SCORES.items():
        write_evaluation(folder / "rounds" / str(number) / "evaluation", accuracy, SAID[number])
    write_evaluation(folder / "evaluation", SCORES[TUNINGS], SAID[TUNINGS])
    write_evaluation(folder / "teacher" / "evaluation", 80.0, "a bee")
    for place, parameters in ((folder, 1_000_000), (folder / "teacher", 4_000_000)):
        write_profile(place, parameters)
        write_gallery(place / "gallery")
    told = told or play(folder / "pool.sqlite")
    for each in (each for played in told["rounds"] for each in played["examples"]):
        each["picture"] = f"gallery/instruction-{each['instruction']}.png"
        draw(folder / each["picture"], 40 + 10 * each["instruction"])
    write(folder / "competition.json", told)
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "laptop")


def part(page: str, heading: str) -> str:
    """One part of the competition's section, without runs of blanks."""
    return " ".join(section(page, "competition").partition(f"<h3>{heading}")[2].partition("<h3>")[0].split())


def test_teacher_and_student_are_rows(run, tmp_path):
    _, page, models = report(tmp_path / "out", run)
    assert [(model["role"], model["name"]) for model in models] == [("teacher", "teacher"), ("student", "student")]
    assert [model["metrics"]["scenes_vqa"] for model in models] == [80.0, 62.5]
    assert (
        "The student keeps 80% of its teacher\N{RIGHT SINGLE QUOTATION MARK}s quality with 25% of the parameters"
        in page
    )


def test_scores_stand_by_tuning_beside_the_teachers(run, tmp_path):
    paths, page, models = report(tmp_path / "out", run)
    scores = part(page, "Score by tuning")
    captions = [each.partition("<")[0] for each in scores.split("<figcaption>")[1:]]
    assert captions == ["scenes_vqa", "llava_bench_coco relative_score"]
    assert "scenes_vqa by tuning, from 1 to 3: student 40.0, 55.0, 62.5; teacher 80.0." in scores
    assert scores.count('class="level"') == 2
    assert 'data-tip="scenes_vqa, student: 55.0, tuning 2"' in scores
    assert '<tr><th scope="row">2</th><td>55.0</td><td>75.0</td></tr>' in scores
    assert "| 3 | 62.5 | 82.5 |" in paths.markdown.read_text()
    competition = models[1]["competition"]
    assert competition["tunings"]["1"] == {"scenes_vqa": 40.0, "llava_bench_coco relative_score": 60.0}
    assert competition["teacher"]["scenes_vqa"] == 80.0
    assert "competition" not in models[0]


def test_difficulty_is_a_histogram_of_each_round_with_tau(run, tmp_path):
    shown = part(report(tmp_path / "out", run)[1], "Difficulty by round")
    assert [each.partition("<")[0] for each in shown.split("<figcaption>")[1:]] == ["round 1", "round 2"]
    assert "round 1: 1 from 0.2 to 0.3 (50%); 1 from 0.6 to 0.7 (50%). Tau is 0.33." in shown
    assert shown.count('class="rule"') == 2
    assert "The dotted upright is tau, 0.33: hard from there on." in shown


def test_lions_rule_has_no_tau(run, tmp_path):
    told = json.loads((run / "competition.json").read_text())
    for played in told["rounds"]:
        played["settings"]["difficulty"] = "lion"
    write(run / "competition.json", told)
    shown = part(report(tmp_path / "out", run)[1], "Difficulty by round")
    assert "tau" not in shown.lower()
    assert 'class="rule"' not in shown


def test_the_pool_grows_by_what_each_round_accepts(run, tmp_path):
    paths, page, models = report(tmp_path / "out", run)
    grown = part(page, "How the pool grew")
    row = "".join(f"<td>{count}</td>" for count in (4, 1, 1, 2, 2, 2, 1))
    assert f'<tr><th scope="row">2</th>{row} <td>5</td> <td>1 like another one</td></tr>' in grown
    assert "instructions 3, 4, 5" in grown
    assert "| 1 | 3 | 1 | 1 | 1 | 2 | 2 | 1 | 1 like another one |" in paths.markdown.read_text()
    assert [each["total"] for each in models[1]["competition"]["pool"]] == [3, 4, 5]
    assert "2 of 2 rounds between 3 tunings are closed; the pool has grown from 3 to 5 instructions." in page


def test_a_round_that_wrote_nothing_new_is_told_as_the_end(run, tmp_path):
    assert report(tmp_path / "held", run)[2][1]["competition"]["ended_by_round"] is None
    empty = run / "rounds" / "3" / "data.jsonl"
    empty.parent.mkdir(parents=True, exist_ok=True)
    empty.write_text("")
    _, page, models = report(tmp_path / "out", run)
    assert "3 tunings are closed; round 2 wrote nothing new, which ended the competition; the pool has grown" in page
    assert models[1]["competition"]["ended_by_round"] == 2


def test_the_assessors_scores_and_bias_stand_by_round(run, tmp_path):
    shown = part(report(tmp_path / "out", run)[1], "The assessor")
    cells = "".join(f"<td>{cell}</td>" for cell in ("7.0", "4.5"))
    bias = "".join(f"<td>{cell}</td>" for cell in ("100%", "100%", "0%"))
    assert f'<tr><th scope="row">1</th>{cells} {bias} <td>4 of 6</td></tr>' in shown
    assert "Position bias, % by round, from 1 to 2: verdict flips with the order 100, 100" in shown


def test_what_was_difficult_stands_beside_its_picture_with_what_came_of_it(run, tmp_path):
    _, page, models = report(tmp_path / "out", run)
    shown = part(page, "What was difficult")
    assert shown.count('<article class="case">') == 2
    assert "Instruction 1, difficulty 0.60, hard" in shown
    for text in ("what is 1?", "teacher on 1", "student 2 on 1", "new 2 &lt;b&gt;"):
        assert f">{text}</p>" in shown
    assert shown.count('href="#instruction-1-1"') == 2, "a picture is embedded once"
    assert page.count('<image id="instruction-1-') == 1
    example = models[1]["competition"]["rounds"][0]["examples"][0]
    assert (example["kind"], example["scores"], example["written"]) == ("hard", [7.0, 4.5], "new 1 <b>")
    assert "picture" not in example


def test_a_question_is_answered_tuning_by_tuning_beside_its_picture(run, tmp_path):
    _, page, _ = report(tmp_path / "out", run)
    shown = part(page, "Answers by tuning")
    places = [shown.index(text) for text in ("tuning 1<", "tuning 2<", "tuning 3<", "teacher<", "✗</span> a bear")]
    assert places == sorted(places)
    assert '<td class="right"><span class="sign" role="img" aria-label="right">✓</span> a bee</td>' in shown
    assert "<td>a bear!</td>" in shown, "an answer that has no grade has no sign"
    assert 'href="#picture-1"' in shown
    words = section(page, "words")
    assert "<article" not in words
    assert 'href="#competition"' in words


def test_cost_stands_by_role_and_round_and_in_all(run, tmp_path):
    paths, page, models = report(tmp_path / "out", run)
    shown = part(page, "What the roles cost")
    cells = "".join(f"<td>{cell}</td>" for cell in (1, 6, 600, 60, "15.0 s"))
    assert f'<tr><th scope="row">assessor</th>{cells}</tr>' in shown
    cells = "".join(f"<td>{cell}</td>" for cell in ("all", 14, "1,400", 140, "35.0 s"))
    assert f'<tr class="total"><th scope="row">assessor</th>{cells}</tr>' in shown
    assert "Calls of the augmentor without a reply, round 2: 1, such as: gone" in shown
    assert "| assessor | all | 14 | 1400 | 140 | 35.0 |" in paths.markdown.read_text()
    assert {k: models[1]["competition"]["cost"][2][k] for k in ("role", "round")} == {"role": "assessor", "round": 1}


def test_stages_say_what_each_tuning_learns(run, tmp_path):
    _, page, _ = report(tmp_path / "out", run)
    stages = read_story(run, "laptop", "other-1").stages
    assert [stage.name for stage in stages] == ["connect", "tune-1", "tune-2", "tune-3"]
    assert stages[0].trains == "the connector, and nothing else"
    assert stages[1].data == "the first pool: scene_instructions of builtin:scenes"
    assert stages[2].data == "what round 1 has written"
    assert stages[2].settings == "learning rate 0.001, batch 16, 300 steps"
    shown = section(page, "stages")
    assert "teacher: models/teacher; assessor: the teacher; augmentor: writer-13b, by a server; judge: none." in shown
    assert "Divergence" not in shown
    assert "tune-3" in section(page, "training")


def test_a_tuning_on_everything_so_far_is_told_as_that(tmp_path):
    folder = tmp_path / "all"
    competition = RECIPE["competition"]
    write_recipe(folder, competition={**competition, "tuning": {**competition["tuning"], "pool": "cache"}})
    stages = read_story(folder, "laptop", "other-1").stages
    assert stages[2].data == "all instructions up to what round 1 has written"


def test_only_what_there_is_to_say_of_a_run_that_has_just_begun(tmp_path):
    folder = tmp_path / "young"
    write_recipe(folder)
    paths, page, models = report(tmp_path / "out", folder)
    assert [model["role"] for model in models] == ["student"]
    assert "0 of 2 rounds between 3 tunings are closed." in page
    for heading in ("Score", "Difficulty", "How the pool", "The assessor", "What was", "Answers", "What the roles"):
        assert 'class="absent"' in part(page, heading), heading
    assert "competition.json" in section(page, "run")
    assert "No round is closed yet." in paths.markdown.read_text()


def test_rounds_without_scores_are_told_without_them(tmp_path):
    run = write_run(tmp_path / "mute", play(tmp_path / "pool.sqlite", 1, readable=False))
    page = report(tmp_path / "out", run)[1]
    assert "No round has an instruction whose scores could be read." in part(page, "Difficulty")
    assert "<td>—</td><td>—</td> <td>—</td><td>—</td><td>—</td> <td>0 of 6</td>" in part(page, "The assessor")
    assert 'class="absent"' in part(page, "What was difficult")


def test_a_run_of_pre_training_alone_has_no_competition(run, tmp_path):
    write_recipe(run, competition=None, teacher=None, augmentor=None)
    (run / "competition.json").unlink()
    _, page, models = report(tmp_path / "out", run)
    assert 'id="competition"' not in page
    assert "competition" not in models[1]
    assert '<article class="case">' in section(page, "words")
    assert read_competition(run, "laptop", "student", "other-1") is None


def test_competitions_stand_side_by_side(run, tmp_path):
    other = write_run(tmp_path / "tau-0")
    _, page, models = report(tmp_path / "out", run, other)
    assert [model["name"] for model in models] == ["laptop teacher", "tau-0 teacher", "laptop student", "tau-0 student"]
    assert "competition" in models[3]
    assert "<h3>Score by tuning: tau-0</h3>" in section(page, "competition")
    ids = [each.partition('"')[0] for each in page.split(' id="')[1:]]
    assert len(ids) == len(set(ids))


def test_pictures_past_the_budget_are_left_out(run, tmp_path, monkeypatch):
    monkeypatch.setattr("limbeck.report.read_competition.BUDGET", 0)
    shown = part(report(tmp_path / "out", run)[1], "What was difficult")
    assert "Pictures left out to keep this page light: 1." in shown
    assert "Instruction 1," in shown
    assert "<svg" not in shown


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rounds": [{"round": "one"}]}, r"competition\.json, rounds, 0, round: wanted a number"),
        ({"cost": [{"role": "teacher"}]}, r"competition\.json, cost, 0, round: wanted a number, found nothing"),
        ({"difficulty": {"1": [{"from": 0}]}}, r"difficulty, 1, 0, to: wanted a number"),
        (
            {"rounds": [{"round": 1, "examples": [{"picture": "../x.png"}]}]},
            r"wanted a picture in .*found '\.\./x\.png'",
        ),
    ],
)
def test_a_mistake_names_its_file_and_place(run, tmp_path, change, message):
    told = json.loads((run / "competition.json").read_text())
    for example in (each for played in change.get("rounds", ()) for each in played.get("examples", ())):
        example |= {"instruction": 1, "text": "what?", "written": "why?"}
    write(run / "competition.json", told | change)
    with pytest.raises(ReportError, match=message):
        report(tmp_path / "out", run)


def test_markup_in_a_run_stays_text(run, tmp_path):
    told = json.loads((run / "competition.json").read_text())
    played = told["rounds"][0]
    played["rejected"] = {EVIL: 1}
    played["examples"][0] |= {
        "text": EVIL,
        "written": EVIL,
        "answers": {"teacher": EVIL, "student": EVIL},
        "kind": EVIL,
    }
    told["cost"][0]["role"] = EVIL
    write(run / "competition.json", told)
    write_evaluation(run / "rounds" / "1" / "evaluation", 40.0, EVIL)
    assert "<script>alert" not in report(tmp_path / "out", run)[1]


def test_the_page_is_one_file_that_fetches_nothing(run, tmp_path):
    paths, page, _ = report(tmp_path / "out", run)
    assert {path.name for path in paths.html.parent.iterdir()} == {"report.html", "report.md", "report.json"}
    addresses = [each.partition('"')[0] for key in ("src", "href") for each in page.split(f' {key}="')[1:]]
    assert not [address for address in addresses if not address.startswith(("data:", "#"))]
    assert 'class="absent"' not in section(page, "competition")


def test_a_single_tuning_has_a_mark_and_a_whole_tick():
    panel = round_panel("score", "tuning", [("student", "other-1", [(1.0, 3.0)])], level=("teacher", 9.0))
    assert [tick.label for tick in panel.x_ticks] == ["1"]
    assert len(panel.marks) == 1
    assert panel.level is not None
    assert panel.level < panel.marks[0].y


def test_many_rounds_share_few_ticks():
    panel = round_panel("score", "round", [("student", "other-1", [(float(n), float(n)) for n in range(1, 21)])])
    assert [tick.label for tick in panel.x_ticks] == ["1", "4", "7", "10", "13", "16", "19"]


def test_histograms_share_one_frame():
    panels = histogram_panels([("a", [Bin(0, 0.1, 1)], None), ("b", [Bin(2, 3, 1), Bin(3, 4, 1)], 0.5)], "other-1")
    first, second = panels
    assert first.x_ticks == second.x_ticks
    assert first.lines[0].ys[0] < second.lines[0].ys[0], "100 % is higher than 50 %"
    with pytest.raises(ValueError, match="nothing in its bins"):
        histogram_panels([("a", [Bin(0, 0.1, 0)], None)], "other-1")
