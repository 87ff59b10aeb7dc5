"""`limbeck compete` from a recipe to a folder that plain transformers loads, and what it tells beforehand."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from tiny_comd_recipe import CHAT, INSTRUCTIONS, ROLES, competition_recipe, teacher_recipe
from tiny_ctvlm_recipe import SCENES, write_eye
from transformers import AutoModelForImageTextToText, AutoProcessor, TrainingArguments
from typer.testing import CliRunner

from limbeck.assemble.comd import RoleModels, build_method, build_student, open_instructions
from limbeck.cli import app
from limbeck.competition.asking import EndpointGone
from limbeck.competition.pool import Pool
from limbeck.competition.replies import Rejected
from limbeck.data.examples import DataError
from limbeck.doctor.competition import plan_of
from limbeck.evaluation.generative.asker import LocalAsker
from limbeck.evaluation.generative.model import GenerativeModel
from limbeck.recipe import CoMDRecipe, RecipeError, load_recipe
from limbeck.recipe.comd import LocalRole
from limbeck.run import run_recipe
from limbeck.runs.folder import record, refuse_another_recipe
from limbeck.runs.formats import Formats, cast_by
from limbeck.training.trainer import WEIGHTS, StageTrainer, load_method, save_method

HELD = {"benchmark": "scenes_vqa", "name": "vqa", "data": {**SCENES, "split": "test", "count": 2}, "max_new_tokens": 3}
JUDGED = {"benchmark": "llava_bench_coco", "questions": "q.jsonl", "references": "a.jsonl", "context": "c.jsonl"}


@pytest.fixture(scope="module")
def eye(tmp_path_factory) -> Path:
    return write_eye(tmp_path_factory.mktemp("eye") / "eye")


@pytest.fixture(scope="module")
def teacher(eye, tmp_path_factory) -> Path:
    recipe = teacher_recipe(tmp_path_factory.mktemp("teacher"), eye)
    return run_recipe(load_recipe(str(recipe))) / "student"


@pytest.fixture(scope="module")
def run(eye, teacher, tmp_path_factory) -> Path:
    stage = {"name": "pretrain", "kind": "connect", "data": [{"source": "captions", "of": SCENES}], "chat": CHAT}
    recipe = competition_recipe(
        tmp_path_factory.mktemp("competition"),
        eye,
        teacher,
        stages=[{**stage, "training": {"max_steps": 1}}],
        evaluation={"benchmarks": [HELD], "answering": {"batch_size": 4}},
    )
    done = CliRunner().invoke(app, ["compete", str(recipe)])
    assert done.exit_code == 0, done.exception
    return recipe.with_name("run")


def test_plain_transformers_loads_the_student_and_it_answers(run):
    model = AutoModelForImageTextToText.from_pretrained(run / "student")
    processor = AutoProcessor.from_pretrained(run / "student")
    content = [{"type": "image"}, {"type": "text", "text": "what is it?"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(text=[text], images=[[torch.zeros(3, 32, 32, dtype=torch.uint8).numpy()]], return_tensors="pt")
    written = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert written.shape[1] > inputs["input_ids"].shape[1]


def test_every_tuning_is_evaluated_and_the_teacher_once(run):
    summaries = [run / "rounds" / number / "evaluation" / "summary.json" for number in ("1", "2")]
    assert all("vqa" in json.loads(path.read_text()) for path in summaries)
    last, own = (json.loads(path.read_text()) for path in (summaries[1], run / "evaluation" / "summary.json"))
    assert last == own
    assert "vqa" in json.loads((run / "teacher" / "evaluation" / "summary.json").read_text())
    assert json.loads((run / "profile.json").read_text())["parameters"] > 0


def test_the_second_tuning_trains_on_what_the_round_wrote(run):
    with Pool.open(run / "pool.sqlite", readonly=True) as pool:
        new = [each.text for each in pool.instructions(round=1)]
    lines = [json.loads(line) for line in (run / "rounds" / "2" / "data.jsonl").read_text().splitlines()]
    assert [line["text"] for line in lines] == new
    assert {json.loads(line)["stage"] for line in (run / "log.jsonl").read_text().splitlines()} == {
        "pretrain",
        "tune-1",
        "tune-2",
    }


def test_a_tuning_on_the_cache_pool_learns_everything_so_far(eye, teacher, tmp_path):
    changes = {"tuning": {"pool": "cache", "chat": CHAT, "training": {"max_steps": 1}}}
    recipe = load_recipe(str(competition_recipe(tmp_path, eye, teacher, competition=changes)))
    folder = run_recipe(recipe)
    with Pool.open(folder / "pool.sqlite", readonly=True) as pool:
        everything = pool.instructions(before=2)
    first, second = (
        [json.loads(line) for line in (folder / "rounds" / number / "data.jsonl").read_text().splitlines()]
        for number in ("1", "2")
    )
    assert second[: len(first)] == first
    new = [each.text for each in everything if each.round == 1]
    added = [line["text"] for line in second[len(first) :]]
    assert added, "some of what the round wrote was answered"
    assert added == [text for text in new if text in added]
    spent = json.loads((folder / "competition.json").read_text())["cost"]
    calls = sum(each["calls"] for each in spent if each["role"] == "teacher")
    assert calls == len(everything), "the teacher is asked each once"
    planned = plan_of(cast(CoMDRecipe, recipe)).tunings
    assert planned[1].instructions == planned[0].instructions + round(84 / 220 * planned[0].instructions)
    assert planned[1].conversations == planned[0].conversations, "a dialogue a picture"


def test_instructions_can_stand_by_themselves(eye, teacher, tmp_path):
    steps = {}
    for turns in ("multi", "single"):
        training = {"max_steps": -1, "num_train_epochs": 1, "per_device_train_batch_size": 1}
        tuning = {"tunings": 1, "tuning": {"turns": turns, "chat": CHAT, "training": training}}
        recipe = load_recipe(str(competition_recipe(tmp_path / turns, eye, teacher, competition=tuning)))
        folder = run_recipe(recipe)
        lines = [json.loads(line) for line in (folder / "rounds" / "1" / "data.jsonl").read_text().splitlines()]
        steps[turns] = json.loads((folder / "stages" / "tune-1" / "finished.json").read_text())["steps"]
        planned = plan_of(cast(CoMDRecipe, recipe)).tunings[0]
        assert steps[turns] == (len(lines) if turns == "single" else len({line["image"] for line in lines}))
        assert (planned.conversations == planned.instructions) == (turns == "single")
    assert steps["multi"] < steps["single"]


def test_tunings_can_share_one_schedule(eye, teacher, tmp_path):
    rates: dict[str, list[float]] = {}
    for schedule, tunings, steps in (("whole", 2, 4), ("each", 1, 8)):
        training = {"max_steps": steps, "lr_scheduler_type": "cosine"}
        tuning = {"tunings": tunings, "tuning": {"schedule": schedule, "chat": CHAT, "training": training}}
        folder = run_recipe(load_recipe(str(competition_recipe(tmp_path / schedule, eye, teacher, competition=tuning))))
        lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
        rates[schedule] = [line["learning_rate"] for line in lines]
    assert rates["whole"] == pytest.approx(rates["each"])
    assert rates["each"] == sorted(rates["each"], reverse=True)


def test_a_stage_of_a_shared_schedule_warms_up_by_itself(tmp_path):
    trainer = SimpleNamespace(
        stage=SimpleNamespace(part=(1, 2)),
        args=TrainingArguments(str(tmp_path), lr_scheduler_type="linear", warmup_steps=2, use_cpu=True),
    )
    factor = StageTrainer._share_by_part(cast(Any, trainer), 4)
    assert [factor(step) for step in range(5)] == [0, 0.5 * 3 / 8, 2 / 8, 1 / 8, 0]


@pytest.mark.parametrize(
    ("training", "schedule", "message"),
    [
        ({"num_train_epochs": 1}, None, "whole needs training.max_steps"),
        ({"max_steps": 4, "lr_scheduler_type": "greedy"}, None, "training.lr_scheduler_type greedy cannot go on"),
        ({"max_steps": 4}, {"kind": "epoch_cosine"}, "the recipe's `schedule` cannot go on over several tunings"),
    ],
)
def test_one_schedule_needs_to_know_the_steps(eye, teacher, tmp_path, training, schedule, message):
    tuning = {"tuning": {"schedule": "whole", "chat": CHAT, "training": training}}
    with pytest.raises(RecipeError, match=f"competition.tuning.schedule: {message}"):
        load_recipe(str(competition_recipe(tmp_path, eye, teacher, competition=tuning, schedule=schedule)))


def test_an_evaluation_is_one_models(run, teacher, tmp_path):
    recipe = str(run.with_name("recipe.yaml"))
    for _ in range(2):
        done = CliRunner().invoke(app, ["evaluate", str(run), recipe, "--out", str(tmp_path / "eval")])
        assert done.exit_code == 0, done.exception
    assert json.loads(done.stdout)["vqa"] == json.loads((run / "evaluation" / "summary.json").read_text())["vqa"]
    other = CliRunner().invoke(app, ["evaluate", str(teacher), recipe, "--out", str(tmp_path / "eval")])
    assert isinstance(other.exception, RecipeError)
    assert "holds the evaluation of another model; give --out a folder of its own" in str(other.exception)


def test_the_page_tells_of_the_competition(run):
    done = CliRunner().invoke(app, ["report", str(run)])
    assert done.exit_code == 0, done.exception
    page = (run / "report.html").read_text()
    with Pool.open(run / "pool.sqlite", readonly=True) as pool:
        first, new = (len(pool.instructions(round=number)) for number in (0, 1))
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>.*?</tr>", page, re.DOTALL)]
    assert any(row[:1] == [str(first)] and row[6:8] == [str(new), str(first + new)] for row in rows)


def test_the_pool_tells_what_it_holds(run):
    done = CliRunner().invoke(app, ["pool", "stats", str(run), "--json"])
    found = json.loads(done.stdout)
    assert found["rounds_closed"] == 1
    assert found["instructions"][0] == {"round": 0, "instructions": 16, "images": 8}


def test_a_dry_run_counts_and_writes_nothing(eye, teacher, tmp_path):
    recipe = competition_recipe(tmp_path, eye, teacher)
    done = CliRunner().invoke(app, ["compete", str(recipe), "--dry-run", "--json"])
    plan = json.loads(done.stdout)
    assert plan["instructions"] == 16
    assert plan["pictures"] == 8
    by_role = {(each["round"], each["role"]): each["calls"] for each in plan["calls"]}
    assert by_role[1, "teacher"] == by_role[1, "student"] == 16
    assert by_role[1, "assessor"] == 32
    assert [each["instructions"] for each in plan["tunings"]] == [16, 6]
    assert [each["conversations"] for each in plan["tunings"]] == [8, 5], "8 (1 - (7/8)^6): by chance, not 2 a picture"
    assert not (tmp_path / "run").exists()


def test_the_judge_of_a_benchmark_is_planned(tmp_path):
    for number, name in enumerate("qac"):
        record = {"question_id": number, "image": "1.jpg", "text": "Who?", "category": "conv", "caption": "a dog"}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(record | {"question_id": 1}))
    (tmp_path / "i.csv").write_text("instruction\nwhat is it?\n")
    judged = JUDGED | {"benchmark": "llava_bench_wild", "blind": True}
    overrides = {
        "data.root": str(tmp_path),
        "competition.data": [{"source": "instruction_file", "path": "i.csv"}],
        "competition.tunings": 2,
        "evaluation.benchmarks": [judged],
        "judge": {"folder": "judge"},
    }
    recipe = load_recipe("comd/vicuna-7b", [f"{key}={json.dumps(value)}" for key, value in overrides.items()])
    calls = [each for each in plan_of(cast(CoMDRecipe, recipe)).calls if each.role == "judge"]
    assert [(each.round, each.calls) for each in calls] == [(1, 1), (2, 1)]
    assert calls[0].prompt_tokens > 200
    local = recipe.model_copy(update={"teacher": LocalRole(folder="teacher")})
    assert [each.calls for each in plan_of(cast(CoMDRecipe, local)).calls if each.role == "judge"] == [1, 2]


def test_the_doctor_tells_what_it_will_take(eye, teacher, tmp_path):
    done = CliRunner().invoke(app, ["doctor", str(competition_recipe(tmp_path, eye, teacher)), "--json"])
    assert done.exit_code == 0, done.stdout
    checks = {each["check"]: each for each in json.loads(done.stdout)["checks"]}
    assert checks["competition"]["figures"]["instructions"] == 16
    assert checks["student"]["status"] == "ok"


def test_the_paper_s_run_is_planned_from_its_numbers():
    """Three rounds from 220K instructions come to the paper's 504K."""
    from limbeck.doctor.competition import sizes_of

    recipe = load_recipe("comd/vicuna-7b")
    assert recipe.competition is not None
    assert [round(size, -3) for size in sizes_of(220_000, 4, recipe.competition)] == [220_000, 84_000, 90_000, 110_000]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": None}, "teacher: missing; the competition needs one that answers"),
        ({"student": {"folder": "x"}}, "give `folder`, or `eye` and `language` of a new model"),
        ({"tokenizer": None}, "tokenizer: a new student"),
        ({"stages": [{"name": "tune-1", "kind": "tune", "data": [ROLES]}]}, "tune-1 is the name of a tuning"),
        ({"competition": {"data": [INSTRUCTIONS], "taus": 1}}, "competition.taus: unknown key; did you mean 'tau'"),
        ({"teacher": {"endpoint": "localhost"}}, "teacher"),
        ({"teacher": "limbeck:comd_teacher"}, "teacher.*should be an object"),
        ({"evaluation": {"benchmarks": [JUDGED]}}, r"evaluation.benchmarks.0: llava_bench_coco wants a judge"),
        ({"evaluation": {"benchmarks": [HELD, HELD]}}, "wanted different names, found vqa, vqa; give each a `name`"),
        ({"assessor": {"folder": "x", "batch": 1}}, "assessor.batch: unknown key; did you mean 'batch_size'"),
    ],
)
def test_a_wrong_recipe_is_refused_by_name(eye, teacher, tmp_path, changes, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(str(competition_recipe(tmp_path, eye, teacher, **changes)))


def test_a_server_that_does_not_answer_is_told_before_anything_trains(eye, teacher, tmp_path):
    gone = {"endpoint": "http://127.0.0.1:9/v1", "model": "judge"}
    stage = {"name": "pretrain", "kind": "connect", "data": [{"source": "captions", "of": SCENES}], "chat": CHAT}
    recipe = competition_recipe(tmp_path, eye, teacher, assessor=gone, stages=[stage])
    with pytest.raises(EndpointGone, match="judge: no server answers"):
        run_recipe(load_recipe(str(recipe)))
    assert not (tmp_path / "run").exists(), "so that the corrected recipe can take this folder"


def test_where_only_training_is_left_the_roles_need_not_be_there(eye, teacher, tmp_path):
    own = tmp_path / "teacher"
    shutil.copytree(teacher, own)
    role = {"teacher": {"folder": str(own)}, "tokenizer": {"path": str(teacher)}}
    recipe = competition_recipe(tmp_path, eye, own, evaluation={"teacher": False}, **role)
    folder = run_recipe(load_recipe(str(recipe)))
    first = load_file(folder / "student" / "model.safetensors")
    for part in ("student", "stages/tune-2"):
        shutil.rmtree(folder / part)
    shutil.rmtree(own)
    again = load_file(run_recipe(load_recipe(str(recipe))) / "student" / "model.safetensors")
    assert all(torch.equal(again[name], first[name]) for name in first)


def test_a_round_that_writes_nothing_new_ends_the_run_with_the_last_student(eye, teacher, tmp_path, monkeypatch):
    monkeypatch.setattr("limbeck.competition.compete.instruction", lambda *_: Rejected("nothing new"))
    changes = {"evaluation": {"benchmarks": [HELD], "teacher": False}, "competition": {"tunings": 3}}
    recipe = load_recipe(str(competition_recipe(tmp_path, eye, teacher, **changes)))
    folder = run_recipe(recipe)
    first, pool = load_file(folder / "student" / "model.safetensors"), (folder / "pool.sqlite").read_bytes()
    assert not (folder / "stages" / "tune-2").exists()
    scores = [
        json.loads((place / "evaluation" / "summary.json").read_text()) for place in (folder, folder / "rounds/1")
    ]
    assert scores[0] == scores[1]
    report = CliRunner().invoke(app, ["report", str(folder)])
    assert report.exit_code == 0, report.exception
    shutil.rmtree(folder / "student")
    monkeypatch.setattr(RoleModels, "roles", None)  # nobody is asked again
    again = load_file(run_recipe(recipe) / "student" / "model.safetensors")
    assert all(torch.equal(again[name], first[name]) for name in first)
    assert (folder / "pool.sqlite").read_bytes() == pool


def test_a_student_that_is_cast_in_training_answers_as_one_that_is_built_anew(eye, teacher, tmp_path, monkeypatch):
    def cast_and_save(method, file: Path) -> None:  # DeepSpeed's engine casts the model that it is given
        save_method(method.bfloat16(), file)

    monkeypatch.setattr("limbeck.training.run.save_method", cast_and_save)
    monkeypatch.setattr("limbeck.runs.comd.cast_by", lambda training: torch.bfloat16)
    recipe = cast(CoMDRecipe, load_recipe(str(competition_recipe(tmp_path, eye, teacher))))
    folder = run_recipe(recipe)
    saved = load_file(folder / "student" / "model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    shutil.rmtree(folder / "student")
    again = load_file(run_recipe(recipe) / "student" / "model.safetensors")  # built anew, with all weights loaded
    assert all(torch.equal(again[name], saved[name]) for name in saved)
    built = build_student(recipe, {})
    method, formats = build_method(recipe, built), Formats(built.model)
    load_method(method, folder / "stages" / "tune-1" / WEIGHTS)
    formats.restore(built.model, torch.bfloat16)
    with Pool.open(folder / "pool.sqlite", readonly=True) as pool:
        assert GenerativeModel(built.model, built.processor).fingerprint() in pool.models()


def test_what_a_model_computes_for_itself_survives_a_cast_in_place():
    model = torch.nn.Linear(3, 3)
    model.register_buffer("frequencies", torch.tensor([1 / 3]), persistent=False)
    model.register_buffer("count", torch.tensor(7))
    built = Formats(model)
    built.restore(model.bfloat16(), torch.bfloat16)
    assert model.weight.dtype == model.bias.dtype == torch.float32
    assert torch.equal(cast(torch.Tensor, model.frequencies), torch.tensor([1 / 3]))


def test_deepspeed_alone_casts_in_place():
    assert cast_by({"deepspeed": "zero2.json", "bf16": True}) == torch.bfloat16
    assert cast_by({"deepspeed": "zero2.json", "fp16": True, "bf16": False}) == torch.float16
    assert cast_by({"bf16": True}) is cast_by({"deepspeed": "zero2.json"}) is None


def test_instructions_come_from_files_without_answers_and_from_an_import(eye, teacher, tmp_path):
    for number in range(4):
        Image.new("RGB", (32, 32), (60 * number, 0, 0)).save(tmp_path / f"{number}.png")
    questions = [{"image": f"{number}.png", "question": f"what is\u2028{number}?"} for number in range(3)]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(each) + "\n" for each in questions))
    (tmp_path / "more.csv").write_text("image,instruction\n3.png,how many are there?\n")
    data = [{"source": "instruction_file", "path": str(tmp_path / "questions.jsonl")}]
    recipe = competition_recipe(tmp_path, eye, teacher, competition={"data": data, "tunings": 1})
    (tmp_path / "run").mkdir()
    done = CliRunner().invoke(
        app, ["pool", "import", str(tmp_path / "run" / "pool.sqlite"), str(tmp_path / "more.csv")]
    )
    assert done.exit_code == 0, done.exception
    folder = run_recipe(load_recipe(str(recipe)))
    shutil.rmtree(folder / "student")
    run_recipe(load_recipe(str(recipe)))  # reads its tuning's data again
    with Pool.open(folder / "pool.sqlite", readonly=True) as pool:
        assert len(pool.instructions()) == 4
    lines = [json.loads(line) for line in (folder / "rounds" / "1" / "data.jsonl").read_text().splitlines()]
    assert [line["text"] for line in lines] == ["how many are there?", *(each["question"] for each in questions)]


def test_two_sources_that_name_an_instruction_alike_are_told_by_their_files(tmp_path):
    for folder in ("A", "B"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "one.csv").write_text(f"instruction\nwhat is in {folder}?\n")
    data = [{"source": "instruction_file", "path": f"{folder}/one.csv"} for folder in ("A", "B")]
    overrides = [f"data.root={tmp_path}", f"competition.data={json.dumps(data)}"]
    recipe = cast(CoMDRecipe, load_recipe("comd/vicuna-7b", overrides))
    with pytest.raises(DataError, match=r"0 \(A/one.csv\) and 1 \(B/one.csv\) both have .* 'one.csv, row 1'"):
        open_instructions(recipe)


def test_a_run_goes_on_where_its_servers_move_and_only_there(tmp_path):
    servers = ["teacher.concurrency=3", "teacher.endpoint=http://elsewhere:8000/v1", "data.dialogues.max_left_out=0.5"]
    record(tmp_path, load_recipe("comd/vicuna-7b"), "data")
    (tmp_path / "log.jsonl").touch()  # of a run that has trained
    refuse_another_recipe(tmp_path, load_recipe("comd/vicuna-7b", servers))
    refuse_another_recipe(tmp_path, load_recipe("comd/vicuna-7b", ["competition.prompts.assessor=vicuna"]))
    with pytest.raises(RecipeError, match=r"it differs in competition\.tau\. Give"):
        refuse_another_recipe(tmp_path, load_recipe("comd/vicuna-7b", [*servers, "competition.tau=0.5"]))


def test_a_model_that_fills_several_roles_is_opened_once(eye, teacher, tmp_path):
    judge = {"folder": str(teacher), "batch_size": 2}
    recipe = cast(CoMDRecipe, load_recipe(str(competition_recipe(tmp_path, eye, teacher, judge=judge))))
    assert recipe.judge is not None
    models = RoleModels()
    roles = models.roles(recipe)
    askers = [cast(LocalAsker, each) for each in (roles.assessor, roles.augmentor, models.asker(recipe.judge))]
    assert all(asker.model is cast(LocalAsker, roles.teacher).model for asker in askers)


def test_pictures_are_normalised_as_the_eye_was_trained(eye, teacher, tmp_path):
    own = tmp_path / "eye"
    shutil.copytree(eye, own)
    (own / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.4] * 3}))
    built = build_student(cast(CoMDRecipe, load_recipe(str(competition_recipe(tmp_path, own, teacher)))), {})
    assert built.processor.image_processor.image_mean == (0.5,) * 3
    assert built.processor.image_processor.image_std == (0.4,) * 3


def test_a_finished_student_is_asked_with_the_template_it_is_tuned_with(run, teacher, tmp_path):
    folder = tmp_path / "own"
    shutil.copytree(run / "student", folder)
    (folder / "chat_template.jinja").write_text("{{ 'another template' }}")
    student = {"folder": str(folder), "eye": None, "language": None}
    recipe = competition_recipe(tmp_path, Path("none"), teacher, student=student, tokenizer=None)
    built = build_student(cast(CoMDRecipe, load_recipe(str(recipe))), {})
    question = [{"role": "user", "content": [{"type": "text", "text": "what is it?"}]}]
    assert "USER: what is it?" in str(built.processor.apply_chat_template(question))


def test_dialogues_that_are_too_long_are_split(eye, teacher, tmp_path):
    """Scenes with two questions each: with room for one exchange no answer is lost."""
    changes = {"stages": [], "data": {"dialogues": {"max_length": 60}}}
    folder = run_recipe(load_recipe(str(competition_recipe(tmp_path, eye, teacher, **changes))))
    assert (folder / "left_out.jsonl").read_text() == ""


def test_a_tokenizer_needs_something_to_be_trained_on(eye, teacher, tmp_path):
    path = competition_recipe(tmp_path, eye, teacher)
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"tokenizer": {"tokenizer": "bpe"}}))
    with pytest.raises(RecipeError, match="tokenizer: bpe is trained on what the stages say"):
        load_recipe(str(path))


def test_a_recipe_of_stages_alone_has_no_competition(eye, tmp_path):
    done = CliRunner().invoke(app, ["compete", str(teacher_recipe(tmp_path, eye))])
    assert isinstance(done.exception, RecipeError)
    assert "no competition in it" in str(done.exception)
