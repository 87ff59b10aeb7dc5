"""CTVLM's shipped recipes: the paper's settings, ablations that change what they name, twins that run to the end."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    TrainingArguments,
    get_scheduler,
)

from limbeck.assemble.ctvlm import build_models
from limbeck.assemble.writers import open_tokenizer
from limbeck.data.decoder_tokenizer import BpeTokenizer, load_decoder_tokenizer
from limbeck.models.duet_scales import EYES, LANGUAGE_MODELS, paper_config
from limbeck.models.hub import local_model
from limbeck.recipe import CTVLMRecipe, load_recipe, shipped_recipes
from limbeck.run import run_recipe

PAPER = "ctvlm/opt-125m_vicuna-7b"
NAMES = [name for name in shipped_recipes() if name.startswith("ctvlm/")]
TWINS = [name for name in NAMES if name.endswith("-debug")]
FULL = [name for name in NAMES if name not in TWINS and not name.startswith("ctvlm/laptop")]
I_A = {"contrastive", "matching", "language/tiny"}
BOTH = {"language/tiny", "language/large"}


def flat(values, path: str = "") -> dict[str, object]:
    """Every leaf of nested sections and lists by its dotted path; a stage stands under its name."""
    if isinstance(values, dict):
        return {leaf: value for key in values for leaf, value in flat(values[key], f"{path}.{key}".lstrip(".")).items()}
    if isinstance(values, list):
        named = {
            item["name"] if isinstance(item, dict) and "kind" in item else number: item
            for number, item in enumerate(values)
        }
        return flat(named, path)
    return {path: values}


def settings(name: str) -> CTVLMRecipe:
    recipe = load_recipe(name)
    assert isinstance(recipe, CTVLMRecipe)
    return recipe


def leaves(name: str) -> dict[str, object]:
    return flat(json.loads(settings(name).model_dump_json(by_alias=True)))


def test_the_laptops_duet_is_put_together_from_what_comes_with_limbeck():
    recipe = settings("ctvlm/laptop")
    tokenizer = open_tokenizer(recipe.tokenizer, Path(), [])
    duet = build_models(recipe, tokenizer)
    stored = load_file(local_model("limbeck:ctvlm_language") / "model.safetensors")
    assert torch.equal(duet.large.get_input_embeddings().weight, stored["model.embed_tokens.weight"].float())
    assert duet.tiny.table.num_embeddings == len(tokenizer) - 1, "the picture's token alone has no row"


def test_the_full_scale_recipe_has_the_papers_models():
    duet, paper = settings(PAPER).duet, paper_config()
    assert duet.eye in EYES
    assert (duet.tiny.folder, duet.large.folder) == ("facebook/opt-125m", "lmsys/vicuna-7b-v1.5")
    assert {duet.tiny.folder, duet.large.folder} <= {*LANGUAGE_MODELS}
    assert (duet.embeddings, duet.fusion, duet.connector, duet.eye_layer) == (
        paper.tiny_part.embeddings,
        paper.tiny_part.fusion,
        paper.tiny_part.connector,
        paper.tiny_part.eye_layer,
    )
    assert (duet.features, duet.connector) == (paper.features, paper.connector)


def test_the_full_scale_recipe_has_the_papers_stages():
    recipe = settings(PAPER)
    assert [(stage.kind, stage.direction, stage.chat.template) for stage in recipe.stages] == [
        ("align_tiny", "none", "plain"),
        ("align_large", "forward", "plain"),
        ("tune", "reverse", "vicuna_v1"),
    ]
    assert [stage.lambda_ for stage in recipe.stages[1:]] == [0.3, 0.3]
    assert not any(stage.trainable or stage.on_policy for stage in recipe.stages)
    arguments = [{**recipe.training, **stage.training} for stage in recipe.stages]
    assert [8 * each["per_device_train_batch_size"] for each in arguments] == [256, 256, 64]
    assert [(each["learning_rate"], each["weight_decay"]) for each in arguments] == [(1e-4, 0.05), (1e-3, 0), (2e-5, 0)]
    assert all(each["deepspeed"]["zero_optimization"]["stage"] == 2 and each["bf16"] for each in arguments)
    assert recipe.data.dialogues.pad_to_square


def test_the_first_stages_learning_rate_is_that_of_lavis():
    recipe = settings(PAPER)
    values = {**recipe.training, **recipe.stages[0].training}
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=values["learning_rate"])
    schedule = get_scheduler(
        values["lr_scheduler_type"],
        optimizer,
        num_warmup_steps=values["warmup_steps"],
        num_training_steps=values["max_steps"],
        scheduler_specific_kwargs=values["lr_scheduler_kwargs"],
    )
    factor = schedule.lr_lambdas[0]
    rates = [values["learning_rate"] * factor(step) for step in (0, 5000, values["max_steps"] - 1)]
    assert rates == pytest.approx([1e-6, 1e-4, 1e-5], rel=1e-3)


def test_trainer_takes_the_deepspeed_section(tmp_path):
    pytest.importorskip("deepspeed")
    TrainingArguments(output_dir=str(tmp_path), use_cpu=True, **settings(PAPER).training)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("no_kd", {"stages.align_large.kd": "none", "stages.tune.kd": "none"}),
        ("tiny_only", {"stages.tune.kd": "none", "stages.tune.models": "tiny", "evaluation.models.1": None}),
        ("forward_in_tuning", {"stages.tune.kd": "forward"}),
        ("features_i", {"duet.features": "I"}),
        ("features_pit", {"duet.features": "P+I+T"}),
        ("lambda_0.1", {"stages.tune.lambda": 0.1}),
        ("lambda_0.7", {"stages.tune.lambda": 0.7}),
        ("linear", {"duet.connector": "linear"}),
        ("resized", {"duet.embeddings": "resized"}),
        ("on_policy", {"stages.tune.on_policy": True}),
        ("aligned", {}),
        ("aligned_no_kd", {"stages.align_large.kd": "none"}),
    ],
)
def test_an_ablation_changes_nothing_but_what_it_is_about(name, changes):
    ours, paper = leaves(f"ctvlm/{name}"), leaves(PAPER)
    gone = {"tiny_only": "stages.align_large.", "aligned": "stages.tune.", "aligned_no_kd": "stages.tune."}
    left_out = tuple(filter(None, [gone.get(name), "output", "evaluation.benchmarks" if "aligned" in name else None]))
    keys = {key for key in {*ours, *paper} if not key.startswith(left_out)}
    assert {key: ours.get(key) for key in keys if ours.get(key) != paper.get(key)} == changes
    assert not any(key.startswith(gone[name]) for key in ours if name in gone)


def shape(name: str) -> tuple:
    """What decides which code a recipe runs."""
    duet = settings(name).duet
    stages = tuple(
        (stage.kind, stage.direction, stage.on_policy, stage.models, stage.chat.template)
        for stage in settings(name).stages
    )
    return (duet.embeddings, duet.fusion, duet.connector, duet.features, stages)


def test_every_kind_of_full_scale_recipe_has_a_twin():
    twins = {shape(name) for name in TWINS}
    without = {name for name in FULL if shape(name) not in twins}
    assert without == {"ctvlm/aligned_no_kd"}, "whose two stages are those of no_kd's twin"


@pytest.mark.parametrize("name", TWINS)
def test_a_twin_differs_in_size_and_data_alone(name):
    twin, full = settings(name), settings(name.removesuffix("-debug"))
    assert twin.output == full.output.replace("runs/ctvlm/", "runs/ctvlm/debug/", 1)
    size = {"max_steps", "per_device_train_batch_size", "warmup_steps", "save_steps", "gradient_checkpointing"}
    for own, other in zip(twin.stages, full.stages, strict=True):
        assert own.model_dump(exclude={"data", "training"}) == other.model_dump(exclude={"data", "training"})
        assert {key for key in own.training if own.training[key] != other.training.get(key)} <= size
    models = {"eye", "tiny", "large", "embedding"}
    assert twin.duet.model_dump(exclude=models) == full.duet.model_dump(exclude=models)
    assert twin.data.dialogues == full.data.dialogues.model_copy(update={"max_length": 256})
    machine = {"deepspeed", "dataloader_num_workers", "logging_steps", "save_steps"}
    assert {key for key in twin.training if twin.training[key] != full.training.get(key)} <= machine
    assert twin.evaluation.models == full.evaluation.models


@pytest.fixture(autouse=True)
def no_java(monkeypatch):
    """METEOR takes seconds to start; the metrics have their own tests."""
    monkeypatch.setattr(shutil, "which", lambda name: None)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A working folder for all twins."""
    return tmp_path_factory.mktemp("runs")


def terms_of(folder: Path) -> dict[str, set[str]]:
    """The terms of each stage's last step."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert all(value == value and value >= 0 for line in lines for value in line["terms"].values())
    assert {line["step"] for line in lines} == {1, 2}
    return {line["stage"]: set(line["terms"]) for line in lines}


@pytest.mark.parametrize(
    ("name", "align_large", "tune"),
    [
        ("opt-125m_vicuna-7b", BOTH | {"forward_kl"}, BOTH | {"reverse_kl"}),
        ("no_kd", BOTH, BOTH),
        ("tiny_only", None, {"language/tiny"}),
        ("forward_in_tuning", BOTH | {"forward_kl"}, BOTH | {"forward_kl"}),
        ("features_i", BOTH | {"forward_kl"}, BOTH | {"reverse_kl"}),
        ("features_pit", BOTH | {"forward_kl"}, BOTH | {"reverse_kl"}),
        ("linear", BOTH | {"forward_kl"}, BOTH | {"reverse_kl"}),
        ("resized", BOTH | {"forward_kl"}, BOTH | {"reverse_kl"}),
        ("on_policy", BOTH | {"forward_kl"}, BOTH | {"reverse_kl"}),
        ("aligned", BOTH | {"forward_kl"}, None),
        ("smollm2-135m", BOTH | {"forward_kl"}, BOTH | {"reverse_kl"}),
    ],
)
def test_twins_train_the_terms_of_their_recipe_and_are_evaluated(runs, monkeypatch, name, align_large, tune):
    monkeypatch.chdir(runs)
    recipe = settings(f"ctvlm/{name}-debug")
    folder = run_recipe(recipe)
    expected = {"align_tiny": I_A, "align_large": align_large, "tune": tune}
    assert terms_of(folder) == {stage: terms for stage, terms in expected.items() if terms}
    benchmarks = {config.name for config in recipe.evaluation.benchmarks}
    for role, place in (("large", folder), ("tiny", folder / "tiny")):
        assert (place / "student" / "config.json").is_file()
        summary = place / "evaluation" / "summary.json"
        assert summary.is_file() == (role in recipe.evaluation.models)
        if summary.is_file():
            assert set(json.loads(summary.read_text())) == benchmarks


def test_every_twin_is_run():
    [marked] = test_twins_train_the_terms_of_their_recipe_and_are_evaluated.pytestmark
    assert {f"ctvlm/{values[0]}-debug" for values in marked.args[1]} == {*TWINS}


def weights(run: Path) -> dict[str, torch.Tensor]:
    return AutoModelForImageTextToText.from_pretrained(run / "student").state_dict()


def test_gradient_checkpointing_as_at_full_scale_changes_nothing(runs, monkeypatch):
    monkeypatch.chdir(runs)
    plain = run_recipe(settings(f"{PAPER}-debug"))
    overrides = [f"stages.{name}.training.gradient_checkpointing=true" for name in ("align_large", "tune")]
    other = run_recipe(load_recipe(f"{PAPER}-debug", [*overrides, "output=checkpointing", "evaluation.models=[]"]))
    first, second = weights(plain), weights(other)
    assert all(torch.allclose(first[key], second[key], atol=1e-6) for key in first)


def test_an_ablation_can_take_over_the_stages_that_it_shares(runs, monkeypatch):
    monkeypatch.chdir(runs)
    origin = run_recipe(settings(f"{PAPER}-debug"))
    target = runs / "shares" / "stages" / "align_tiny"
    shutil.copytree(origin / "stages" / "align_tiny", target, ignore=shutil.ignore_patterns("checkpoint-*"))
    folder = run_recipe(load_recipe("ctvlm/no_kd-debug", [f"output={runs / 'shares'}", "evaluation.models=[]"]))
    assert set(terms_of(folder)) == {"align_large", "tune"}
    whole = run_recipe(settings("ctvlm/no_kd-debug"))
    first, second = weights(folder), weights(whole)
    assert all(torch.equal(first[key], second[key]) for key in first), "as if it had trained them itself"


def trained(model: PreTrainedModel) -> PreTrainedModel:
    """The model with weights that are no first ones any more, which the doctor would refuse."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def test_the_full_scale_path_starts_from_pretrained_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    tokenizer = load_decoder_tokenizer(BpeTokenizer(tokenizer="bpe", vocab_size=320), ["a red apple"] * 3)
    sizes = {"intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    eye = CLIPVisionConfig(hidden_size=32, image_size=48, patch_size=16, **sizes)
    tiny = OPTConfig(hidden_size=16, ffn_dim=16, num_hidden_layers=2, num_attention_heads=2, word_embed_proj_dim=16)
    large = LlamaConfig(vocab_size=len(tokenizer) - 1, hidden_size=32, max_position_embeddings=1024, **sizes)
    pretrained = trained(LlamaForCausalLM(large))
    trained(CLIPVisionModel(eye)).save_pretrained("eye")
    trained(OPTForCausalLM(tiny)).save_pretrained("tiny")
    pretrained.save_pretrained("large")
    tokenizer.save_pretrained("large")
    overrides = ["duet.eye=eye", "duet.tiny={folder: tiny}", "duet.large={folder: large}", "evaluation.models=[]"]
    overrides += ["tokenizer={tokenizer: folder, path: large}", "data.dialogues.max_length=512"]
    folder = run_recipe(load_recipe("ctvlm/aligned-debug", overrides))
    duet = AutoModelForImageTextToText.from_pretrained(folder / "student")
    assert duet.config.tiny_part.image_tokens == 9
    assert duet.tiny.body.config.model_type == "opt"
    state = duet.large.state_dict()
    assert all(torch.equal(state[key], value) for key, value in pretrained.state_dict().items()), "stage I keeps it"
