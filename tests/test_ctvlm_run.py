"""A CTVLM recipe from end to end: what the run folder holds, and what is refused before anything trains."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from accelerate import Accelerator
from safetensors.torch import load_file
from tiny_ctvlm_recipe import CAPTIONS, DIALOGUES, SCENES, stage, write_ctvlm_recipe, write_eye
from tokenizers import Tokenizer
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from limbeck.assemble.ctvlm import build_dialogues, build_models, open_sources
from limbeck.assemble.writers import open_tokenizer
from limbeck.data.decoder_tokenizer import BOS, EOS, PAD, train_bpe
from limbeck.data.dialogue_set import DialogueCollator
from limbeck.data.example_conversations import SHORT_ANSWER
from limbeck.evaluation.generative.benchmarks import load_benchmark
from limbeck.models.duet import Duet
from limbeck.recipe import RecipeError, load_recipe
from limbeck.run import run_recipe

HELD = {"source": "builtin:scenes", "split": "test", "count": 2, "vocabulary": 36, "size": 32}
EVALUATION = {
    "answering": {"batch_size": 4},
    "benchmarks": [
        {"benchmark": "scenes_vqa", "name": "vqa", "data": HELD},
        {"benchmark": "questions", "data": [{**HELD, "seed": 1}], "max_new_tokens": 9, "limit": 3},
    ],
}
ONE_STEP = {"max_steps": 1}
ROLES = {"large": ".", "tiny": "tiny"}
SHARED = ("output", "seed", "training", "gradient_share_steps")
"""What recipes of every method have."""
DLIP = {
    "student": {
        "family": "blip",
        "vision": {"width": 32, "layers": 2, "heads": 2, "patch_size": 16, "image_size": 32},
        "text": {"width": 32, "layers": 2, "heads": 2, "max_positions": 64},
    },
    "tokenizer": {"tokenizer": "wordpiece", "vocab_size": 400},
    "data": {"train": [SCENES], "transform": {"size": 32}},
}


@pytest.fixture(scope="module")
def eye(tmp_path_factory) -> Path:
    return write_eye(tmp_path_factory.mktemp("eye"))


@pytest.fixture(scope="module")
def finished(eye, tmp_path_factory) -> Path:
    """The recipe of a finished run."""
    stages = [stage(kind) for kind in ("language", "align_tiny", "align_large", "tune")]
    recipe = write_ctvlm_recipe(
        tmp_path_factory.mktemp("finished"), eye, stages, training=ONE_STEP, evaluation=EVALUATION
    )
    run_recipe(load_recipe(str(recipe)))
    return recipe


def steps_of(run: Path) -> list[tuple[str, int]]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [(line["stage"], line["step"]) for line in lines]


def files_of(folder: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*") if path.is_file()}


def test_the_run_folder_is_as_described(finished):
    run = finished.with_name("run")
    model = {"student", "evaluation", "profile.json", "gallery"}
    whole = {"recipe.yaml", "environment.json", "log.jsonl", "left_out.jsonl", "stages", "tiny"}
    assert {path.name for path in run.iterdir()} == model | whole
    assert {path.name for path in (run / "tiny").iterdir()} == model
    names = ["language", "align_tiny", "align_large", "tune"]
    assert {path.name for path in (run / "stages").iterdir()} == set(names)
    for name in names:
        assert {path.name for path in (run / "stages" / name).iterdir()} == {
            "checkpoint-1",
            "finished.json",
            "model.safetensors",
        }
    assert steps_of(run) == [(name, 1) for name in names]
    for folder in (run, run / "tiny"):
        assert json.loads((folder / "evaluation" / "summary.json").read_text()).keys() == {"vqa", "questions"}


@pytest.mark.parametrize("role", ROLES)
def test_transformers_alone_gives_the_answers_of_the_rows(finished, role):
    recipe, folder = load_recipe(str(finished)), finished.with_name("run") / ROLES[role]
    model = AutoModelForImageTextToText.from_pretrained(folder / "student").eval()
    processor = AutoProcessor.from_pretrained(folder / "student")
    assert isinstance(model, Duet) == (role == "large")
    rows = {}
    for name in ("vqa", "questions"):
        rows |= {
            (name, row["id"]): row
            for row in map(json.loads, (folder / "evaluation" / f"{name}.jsonl").read_text().splitlines())
        }
    answers = {}
    for benchmark in recipe.evaluation.benchmarks:
        for item in load_benchmark(benchmark):
            content = [{"type": "image"}, {"type": "text", "text": item.prompt}]
            text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
            inputs = processor(images=item.images[0].open(), text=text, add_special_tokens=False, return_tensors="pt")
            written = model.generate(**inputs, max_new_tokens=benchmark.max_new_tokens, do_sample=False)
            new = written[0, inputs["input_ids"].shape[1] :]
            answers[benchmark.name or benchmark.benchmark, item.id] = processor.decode(
                new, skip_special_tokens=True
            ).strip()
    assert answers == {key: row["prediction"] for key, row in rows.items()}
    assert len(answers) > 8
    assert any(answers.values())


def test_a_stage_leaves_no_engine_to_the_next_one(eye, tmp_path, monkeypatch):
    freed, free = [], Accelerator.free_memory
    monkeypatch.setattr(Accelerator, "free_memory", lambda own: (freed.append(len(own._models)), free(own)))
    stages = [stage(kind) for kind in ("align_tiny", "align_large")]
    run_recipe(
        load_recipe(
            str(write_ctvlm_recipe(tmp_path, eye, stages, training=ONE_STEP, evaluation={**EVALUATION, "models": []}))
        )
    )
    assert sum(freed) == len(stages), "each stage's wrapped model, once"


def test_a_stage_by_length_trains_on_batches_of_about_one_length(eye, tmp_path, monkeypatch):
    seen, collate = [], DialogueCollator.__call__

    def noted(own, items):
        seen.append([len(item.ids) for item in items])
        return collate(own, items)

    monkeypatch.setattr(DialogueCollator, "__call__", noted)
    scenes, differences = {**SCENES, "count": 32}, {}
    for order in ("random", "group_by_length"):
        training = {"max_steps": 16, "save_strategy": "no", "train_sampling_strategy": order}
        data = [{**DIALOGUES, "of": scenes}, {**CAPTIONS, "of": scenes}]
        stages = [stage("tune", data=data, training=training)]
        recipe = write_ctvlm_recipe(tmp_path / order, eye, stages, evaluation={**EVALUATION, "models": []})
        seen.clear()
        run_recipe(load_recipe(str(recipe)))
        differences[order] = sum(max(lengths) - min(lengths) for lengths in seen[-16:])
    assert differences["group_by_length"] < differences["random"] / 2


def test_a_finished_run_does_nothing_more(finished):
    run = finished.with_name("run")
    before = files_of(run)
    assert run_recipe(load_recipe(str(finished))) == run
    assert files_of(run) == before


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("duet.features=I", "duet.features"),
        ("seed=4", "seed"),
        ("stages.3.lambda=0.5", "stages"),
        ("data.dialogues.max_length=190", "data.dialogues.max_length"),
    ],
)
def test_a_changed_recipe_is_refused_in_the_same_folder(finished, override, field):
    before = files_of(finished.with_name("run"))
    with pytest.raises(RecipeError, match=rf"holds the run of another recipe; it differs in {field}\. Give"):
        run_recipe(load_recipe(str(finished), [override]))
    assert files_of(finished.with_name("run")) == before


def test_a_finished_run_can_be_asked_other_things(eye, finished, tmp_path):
    shutil.copytree(finished.with_name("run"), tmp_path / "run")
    weights = files_of(tmp_path / "run" / "student")
    asked = {**EVALUATION["benchmarks"][0], "short_answer": " Say it."}
    changes = [f"output={tmp_path / 'run'}", f"evaluation.benchmarks={json.dumps([asked])}"]
    for _ in range(2):
        run_recipe(load_recipe(str(finished), changes))
        for folder in (tmp_path / "run", tmp_path / "run" / "tiny"):
            rows = [json.loads(line) for line in (folder / "evaluation" / "vqa.jsonl").read_text().splitlines()]
            assert all(row["prompt"].endswith(" Say it.") for row in rows)
            assert json.loads((folder / "evaluation" / "summary.json").read_text()).keys() == {"vqa"}
    assert files_of(tmp_path / "run" / "student") == weights
    written = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert [each["short_answer"] for each in written["evaluation"]["benchmarks"]] == [" Say it."]


@pytest.mark.parametrize(
    "setting",
    ["evaluation.answering.batch_size=3", "evaluation.answering.workers=1", "evaluation.answering.max_skipped=0.5"],
)
def test_a_run_goes_on_where_answering_differs_in_what_changes_no_result(finished, setting):
    run = finished.with_name("run")
    before = files_of(run)
    run_recipe(load_recipe(str(finished), [setting]))
    assert files_of(run) == before


def test_questions_for_models_of_bare_captions_are_refused_before_training(eye, tmp_path):
    caption = {"benchmark": "scenes_caption", "data": HELD}
    asking = [{**caption, "name": "asked"}, {"benchmark": "scenes_vqa", "data": HELD}]
    stages = [stage("align_tiny"), stage("align_large")]

    def written(benchmarks: list[dict], **values: object) -> str:
        evaluation = {"benchmarks": benchmarks, **values}
        return str(write_ctvlm_recipe(tmp_path, eye, stages, evaluation=evaluation))

    with pytest.raises(RecipeError, match=r"stages\.1\.chat\.template plain: .* these ask: asked, scenes_vqa; take"):
        load_recipe(written([*asking, {**caption, "prompt": ""}]))
    load_recipe(written([{**caption, "prompt": ""}]))
    load_recipe(written(asking, models=[]))


def test_another_methods_recipe_is_refused_in_the_same_folder(finished, tmp_path):
    before, path = files_of(finished.with_name("run")), tmp_path / "recipe.yaml"
    same = {name: value for name, value in yaml.safe_load(finished.read_text()).items() if name in SHARED}
    path.write_text(yaml.safe_dump({**DLIP, **same}))
    with pytest.raises(RecipeError, match=r"holds the run of another recipe; it differs in .*method, "):
        run_recipe(load_recipe(str(path)))
    assert files_of(finished.with_name("run")) == before


def write_language_model(folder: Path, words: Tokenizer, *, tied: bool) -> Path:
    """A language model with weights that do not look new and a tokenizer that names no padding, as many have it."""
    torch.manual_seed(11)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=words.get_vocab_size(),
            hidden_size=24,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=320,
            tie_word_embeddings=tied,
            bos_token_id=1,
            eos_token_id=2,
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=words, bos_token=BOS, eos_token=EOS).save_pretrained(folder)
    return folder


def words_of(text: str) -> Tokenizer:
    """A tokenizer of 360 tokens that knows the words of a text."""
    return train_bpe([f"{text} USER: ASSISTANT: {SHORT_ANSWER}"] * 3, 360)


def pretrained_recipe(folder: Path, eye: Path, language: Path, stages: list[dict], **models: Path) -> Path:
    """A recipe whose large model and tokenizer are those of a folder, but where `models` name others."""
    tokenizer = {"tokenizer": "folder", "path": str(language), "pad_token": PAD}
    duet = {role: {"folder": str(model)} for role, model in {"large": language, **models}.items()}
    return write_ctvlm_recipe(folder, eye, stages, tokenizer=tokenizer, duet=duet, evaluation={"models": []})


@pytest.mark.parametrize("tied", [True, False])
def test_a_pretrained_large_model_survives_saving_and_going_on(eye, tmp_path, tied):
    large = write_language_model(tmp_path / "large", words_of("a red fish beside a cup, where is the fish?"), tied=tied)
    short = [{"source": "instructions", "of": SCENES}]
    stages = [stage("align_large", training=ONE_STEP), stage("tune", data=short, training={"max_steps": 2})]
    recipe = load_recipe(str(pretrained_recipe(tmp_path, eye, large, stages)))
    run = run_recipe(recipe)
    tune = run / "stages" / "tune"
    weights, model = (load_file(folder / "model.safetensors") for folder in (tune, run / "student"))
    steps = steps_of(run)
    for folder in (run / "student", run / "tiny" / "student", tune / "checkpoint-2"):
        shutil.rmtree(folder)
    for file in (tune / "finished.json", tune / "model.safetensors"):
        file.unlink()
    run_recipe(recipe)

    again, model_again = (load_file(folder / "model.safetensors") for folder in (tune, run / "student"))
    for old, new in ((weights, again), (model, model_again)):
        assert old.keys() == new.keys()
        assert [name for name in old if not torch.equal(old[name], new[name])] == []
    assert steps_of(run) == steps == [("align_large", 1), ("tune", 1), ("tune", 2)]
    assert ("duet.large.lm_head.weight" in weights) == ("large.lm_head.weight" in model) == (not tied)

    duet = AutoModelForImageTextToText.from_pretrained(run / "student")
    table, head = duet.large.model.embed_tokens.weight, duet.large.lm_head.weight
    assert (table.data_ptr() == head.data_ptr()) == tied
    first = load_file(large / "model.safetensors")["model.embed_tokens.weight"]
    assert duet.tiny.table.weight.equal(first), "the tiny model keeps the table that it began with"
    assert not table.equal(first)
    assert head.equal(weights["duet.large.model.embed_tokens.weight" if tied else "duet.large.lm_head.weight"])


def test_the_eyes_own_normalisation_is_trained_and_saved_with(tmp_path):
    eye, settings = write_eye(tmp_path / "eye"), {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.6, 0.7]}
    (eye / "preprocessor_config.json").write_text(json.dumps(settings))
    dialogues = {"max_length": 192, "needs_image": True, "pad_to_square": True}
    changes = {"training": ONE_STEP, "data": {"dialogues": dialogues}, "evaluation": {"models": []}}
    recipe = load_recipe(str(write_ctvlm_recipe(tmp_path, eye, [stage("tune")], **changes)))
    run = run_recipe(recipe)
    sources = open_sources(recipe)
    tokenizer = open_tokenizer(recipe.tokenizer, tmp_path, sources.values())
    data = build_dialogues(recipe, sources, tokenizer, build_models(recipe, tokenizer))["tune"]
    trained = data.collate([data[0]])["pixel_values"]
    for role in ROLES.values():
        processor = AutoProcessor.from_pretrained(run / role / "student").image_processor
        assert {name: list(getattr(processor, name)) for name in settings} == settings
        asked = processor(data.source.conversations[0].image.open(), return_tensors="pt")["pixel_values"]
        assert (asked - trained).abs().mean() < 0.05


def test_the_saved_duet_knows_where_an_answer_begins(finished):
    folder = finished.with_name("run") / "student"
    marker = AutoModelForImageTextToText.from_pretrained(folder).config.answer_marker
    processor = AutoProcessor.from_pretrained(folder)
    assert processor.tokenizer.decode(marker).strip() == "ASSISTANT:"
    turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Where is the red fish?"}]}]
    ids = processor.tokenizer(processor.apply_chat_template(turns, add_generation_prompt=True)).input_ids
    assert ids[-len(marker) :] == marker


def test_a_model_of_another_tokenizer_is_refused_with_the_first_token_that_differs(eye, tmp_path):
    words, other = words_of("a red fish beside a cup"), words_of("seven grey owls under one umbrella")
    large = write_language_model(tmp_path / "large", words, tied=False)
    foreign = write_language_model(tmp_path / "foreign", other, tied=False)
    recipe = pretrained_recipe(tmp_path, eye, large, [stage("tune")], large=foreign)
    tokens, others = ({number: token for token, number in each.get_vocab().items()} for each in (words, other))
    number = next(number for number in range(360) if tokens.get(number) != others.get(number))
    message = rf"duet\.large: .*token {number} is {others[number]!r} in the first and {tokens[number]!r} in the second"
    with pytest.raises(RecipeError, match=message):
        run_recipe(load_recipe(str(recipe)))
    assert not (tmp_path / "run").exists()
