"""Recipes: every mistake is found before anything trains, and the message says where it is and what would be right."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from transformers import TrainingArguments

from limbeck.assemble.dlip import build_student, open_data, open_tokenizer
from limbeck.recipe import DLIPRecipe, RecipeError, find_recipe, load_recipe, recipe_schema, shipped_recipes
from limbeck.run import run_recipe

RECIPE = """
output: {folder}/run
student:
  family: blip
  vision: {{width: 32, layers: 2, heads: 2, patch_size: 16, image_size: 32}}
  text: {{width: 32, layers: 2, heads: 2, max_positions: 64}}
  embedding: 16
tokenizer: {{tokenizer: wordpiece, vocab_size: 400}}
data:
  train:
    - {{source: "builtin:scenes", count: 16, vocabulary: 36, size: 32}}
  transform: {{size: 32}}
training: {{max_steps: 1, per_device_train_batch_size: 8, report_to: []}}
"""


@pytest.fixture
def recipe(tmp_path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(folder=tmp_path))
    return path


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("student.vison.width=3", r"student\.vison: unknown key; did you mean 'vision'\? \(valid here: answer_decoder"),
        ("stages=[{weights: {hidden: -1.0}}]", r"stages\.0\.weights\.hidden: .*greater than or equal to 0"),
        ("stages=[{weights: {hidden: .nan}}]", r"stages\.0\.weights\.hidden: .*finite number"),
        ("student.vision.widht=3", r"student\.vision\.widht: unknown key; did you mean 'width'\?"),
        ("traning.max_steps=1", r"traning: unknown key; did you mean 'training'\?"),
        (
            "data.train.0.cout=3",
            r"data\.train\.0\.cout: unknown key; did you mean 'count'\? \(valid here: count,",
        ),
        (
            "data.train.0.source=builtin:scene",
            r"0\.source: 'builtin:scene' is none of jsonl.*mean 'builtin:scenes'",
        ),
        ("data.train.0={count: 3}", r"data\.train\.0\.source: missing"),
        ("data.train.0.count=three", r"data\.train\.0\.count: .*integer \(found 'three'\)"),
        ("data.train=[]", r"data\.train: .*at least 1"),
        ("student.text.width=wide", r"student\.text\.width: .*integer \(found 'wide'\)"),
        ("student.text.width=1.5", r"student\.text\.width: "),
        ("seed='1'", r"seed: .*integer \(found '1'\)"),
        ("student.family=blipp", r"student\.family: .*\(found 'blipp'\); did you mean 'blip'\?"),
        ("student.folder=x", r"student: give `folder`, or `vision` and `text`, not both"),
        (
            "tokenizer.tokenizer=wordpice",
            r"tokenizer\.tokenizer: 'wordpice' is none of bert.*mean 'wordpiece'",
        ),
        ("dlip.hidden.sites=[image]", r"dlip\.hidden\.sites\.0: .*'vl_d' \(found 'image'\)"),
        ("dlip.vlp.contrastive.alpha=2", r"dlip\.vlp\.contrastive\.alpha: .*less than or equal to 1"),
        ("training.learning_rat=1", r"training\.learning_rat: .*no such setting; did you mean 'learning_rate'\?"),
        ("training.learning_rate=fast", r"training\.learning_rate: .*number \(found 'fast'\)"),
        ("training.per_device_train_batch_size='8'", r"training\.per_device_train_batch_size: .*integer"),
        ("training.lr_scheduler_type=linnear", r"training\.lr_scheduler_type: 'linnear' is none of.*mean 'linear'"),
        ("training.learning_rate=-1e-4", r"training\.learning_rate: wanted 0 or more \(found -0\.0001\)"),
        ("training.learning_rate=.nan", r"training\.learning_rate: wanted 0 or more \(found nan\)"),
        ("training.per_device_train_batch_size=0", r"per_device_train_batch_size: wanted 1 or more \(found 0\)"),
        ("training.gradient_accumulation_steps=0", r"gradient_accumulation_steps: wanted 1 or more \(found 0\)"),
        ("training.label_smoothing_factor=0.1", r"smoothing_factor: .*`dlip\.vlp\.label_smoothing`; leave it out"),
        ("training.neftune_noise_alpha=5.0", r"training\.neftune_noise_alpha: .*no noise.*leave it out"),
        ("training.push_to_hub=true", r"training\.push_to_hub: a run uploads nothing.*\(found True\)"),
        ("training.eval_strategy=epoch", r"training\.eval_strategy: .*`evaluation` says; leave it out"),
        ("training.save_only_model=true", r"training\.save_only_model: .*could not go on"),
        ("training.ignore_data_skip=true", r"training\.ignore_data_skip: .*other data"),
        ("training.resume_from_checkpoint=x", r"training\.resume_from_checkpoint: the same command goes on by itself"),
        ("training.train_sampling_strategy=group_by_lenght", r"'group_by_lenght' is none of random, .*did you mean"),
        ("training.train_sampling_strategy=sequential", r"'sequential' is none of random, group_by_length"),
        ("training.train_sampling_strategy=group_by_length", r"'group_by_length' is of conversations; leave it out"),
        ("training.dataloader_persistent_workers=true", r"training\.dataloader_persistent_workers: .*other data"),
        ("stages=[{training: {push_to_hub: true}}]", r"stages\.0\.training\.push_to_hub: a run uploads nothing"),
        ("training.output_dir=x", r"training\.output_dir: limbeck sets it from the recipe's `output`"),
        ("stages=[{training: {max_step: 1}}]", r"stages\.0\.training\.max_step: .*did you mean 'max_steps'\?"),
        ("stages=[{name: a}, {name: a}]", r"stages: two stages of one name"),
    ],
)
def test_a_mistake_names_file_key_and_the_nearest_choice(recipe, override, message):
    with pytest.raises(RecipeError, match=rf"(?s){recipe}:\n  .*{message}") as error:
        load_recipe(str(recipe), [override])
    assert str(error.value).count("\n") == 1, "one mistake, one line"


def test_settings_that_stay_at_their_default_may_be_written_down(recipe):
    settings = {"eval_strategy": "no", "push_to_hub": False, "label_smoothing_factor": 0.0, "learning_rate": 0}
    overrides = [f"training.{name}={value}" for name, value in settings.items()]
    assert load_recipe(str(recipe), overrides).training.items() >= settings.items()


def test_all_mistakes_are_told_at_once(recipe):
    with pytest.raises(RecipeError, match=r"(?s)seed: .*student\.family: "):
        load_recipe(str(recipe), ["seed=x", "student.family=y"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("output: x\nstudent: {family: [}\n", r'recipe\.yaml", line 2, column 20'),
        ("output: x\nseed: 1\nseed: 2\n", r"'seed' is given twice\n.*line 3"),
        ("- a\n", "a mapping of keys to values, found list"),
        ("", "found NoneType"),
        ("base: other.yaml\n", r"recipe\.yaml: base: there is no file .*other\.yaml"),
        ("base: recipe.yaml\n", "leads back to itself"),
        ("!!python/object/apply:os.system [ls]\n", "not valid YAML"),
        (
            "seed: 1\noutput: {{ run }}\n",
            r"(?s)recipe\.yaml: .*wanted a name as key, found a mapping.*line 2, column 10",
        ),
        ("[a, b]: 1\n", r"(?s)recipe\.yaml: .*wanted a name as key, found a list.*line 1, column 1"),
        ("output: !!binary aGk=\n", r"(?s)recipe\.yaml: .*tag 'tag:yaml\.org,2002:binary'.*line 1, column 9"),
        ("!!binary aGk=: 1\n", r"(?s)recipe\.yaml: .*2002:binary'.*line 1, column 1"),
        ("output: !!set {a}\n", r"(?s)recipe\.yaml: .*2002:set'.*line 1"),
        ("seed: !!int one\n", r"recipe\.yaml: not valid YAML: .*'one'"),
        ("method: [a]\n", r"recipe\.yaml: method: \['a'\] is none of dlip, ctvlm, comd"),
    ],
)
def test_a_file_that_is_no_recipe_says_where(tmp_path, text, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=message):
        load_recipe(str(path))


def test_numbers_are_numbers(recipe):
    assert load_recipe(str(recipe), ["training.learning_rate=5e-4"]).training["learning_rate"] == 5e-4
    recipe.write_text(recipe.read_text().replace("max_steps: 1", "max_steps: 1, learning_rate: 1e-3"))
    assert load_recipe(str(recipe)).training["learning_rate"] == 1e-3


def test_a_date_is_text(recipe):
    assert load_recipe(str(recipe), ["output=2025-06-01"]).output == "2025-06-01"
    recipe.write_text(f"base: {recipe.with_name('base.yaml')}\noutput: 2025-06-01 10:30:00\n")
    recipe.with_name("base.yaml").write_text(RECIPE.format(folder=recipe.parent))
    assert load_recipe(str(recipe)).output == "2025-06-01 10:30:00"


def test_only_true_and_false_are_booleans(recipe):
    settings = load_recipe(
        str(recipe), ["training.save_strategy=no", "training.bf16=true", "data.transform.flip=False"]
    )
    assert (settings.training, settings.data.transform.flip) == (
        {**load_recipe(str(recipe)).training, "save_strategy": "no", "bf16": True},
        False,
    )
    with pytest.raises(RecipeError, match=r"data\.transform\.flip: .*boolean \(found 'yes'\)"):
        load_recipe(str(recipe), ["data.transform.flip=yes"])


def test_a_recipe_says_only_what_differs_from_its_base(recipe):
    middle, top = recipe.with_name("middle.yaml"), recipe.with_name("top.yaml")
    middle.write_text("base: recipe.yaml\nstudent: {vision: {layers: 4}}\nseed: 5\n")
    top.write_text("base: middle.yaml\nseed: 6\ntraining: {max_steps: 9}\n")
    settings = load_recipe(str(top))
    assert (settings.seed, settings.student.vision.layers, settings.student.vision.width) == (6, 4, 32)
    assert settings.training == {"max_steps": 9, "per_device_train_batch_size": 8, "report_to": []}


@pytest.fixture
def staged(recipe) -> Path:
    """A recipe of three stages."""
    recipe.write_text(
        recipe.read_text()
        + "stages:\n  - {name: a, training: {max_steps: 1}}\n"
        + "  - {name: b, training: {max_steps: 2, learning_rate: 0.1}, weights: {language: 1.0}}\n  - {name: c}\n"
    )
    return recipe


def test_stages_of_the_base_are_changed_or_taken_out_by_name(staged):
    top = staged.with_name("top.yaml")
    top.write_text("base: recipe.yaml\nstages: {b: {training: {max_steps: 3}}, c: null}\n")
    plain, changed = load_recipe(str(staged)).stages, load_recipe(str(top)).stages
    assert [stage.name for stage in changed] == ["a", "b"]
    assert changed[0] == plain[0]
    assert changed[1].training == {"max_steps": 3, "learning_rate": 0.1}
    assert changed[1].weights == plain[1].weights
    top.write_text("base: recipe.yaml\nstages: [{name: b}]\n")
    assert [stage.name for stage in load_recipe(str(top)).stages] == ["b"], "a list replaces the base's whole"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ("stages: {d: {}}", r"top\.yaml: stages\.d: the base has no such item.*names are a, b, c"),
        ("stages: {bb: null}", r"stages\.bb: .*did you mean 'b'"),
        ("stages: {b: 3}", r"top\.yaml: stages\.b: wanted what changes, or null .*\(found 3\)"),
        ("data: {train: {scenes: {count: 3}}}", r"top\.yaml: data\.train\.scenes: .*its items have no names"),
        ("stages: {b: {training: {max_step: 3}}}", r"stages\.1\.training\.max_step: .*did you mean 'max_steps'"),
    ],
)
def test_a_change_to_an_item_that_the_base_does_not_have_is_an_error(staged, changes, message):
    top = staged.with_name("top.yaml")
    top.write_text(f"base: recipe.yaml\n{changes}\n")
    with pytest.raises(RecipeError, match=f"(?s){message}"):
        load_recipe(str(top))


def test_overrides_reach_stages_by_name(staged):
    stages = load_recipe(
        str(staged), ["stages.b.training.max_steps=7", "stages.2.name=last", "stages.a.weights={}"]
    ).stages
    assert [stage.name for stage in stages] == ["a", "b", "last"]
    assert stages[1].training["max_steps"] == 7
    with pytest.raises(RecipeError, match=r"'d' is no index of a list of 3 and none of a, b, c"):
        load_recipe(str(staged), ["stages.d.training.max_steps=7"])


def test_bases_that_go_round_in_a_circle_are_an_error(recipe):
    other = recipe.with_name("other.yaml")
    other.write_text("base: recipe.yaml\n")
    recipe.write_text("base: other.yaml\n")
    with pytest.raises(RecipeError, match="leads back to itself"):
        load_recipe(str(other))


def test_overrides_reach_into_sections_and_lists(recipe):
    overrides = [
        "seed=9",
        "data.train.0.count=5",
        "stages=[{name: a}]",
        "stages.0.weights.hidden/image=2.0",
        "teacher=null",
    ]
    settings = load_recipe(str(recipe), overrides)
    assert (settings.seed, settings.data.train[0].count, settings.teacher) == (9, 5, None)
    assert settings.stages[0].weights == {"hidden/image": 2.0}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "write key.path=value"),
        ("=3", "write key.path=value"),
        ("seed=[", "not valid YAML"),
        ("output={{ run }}", "not valid YAML: .*wanted a name as key"),
        ("data.train.3.count=1", "'3' is no index of a list of 1"),
        ("data.train.first.count=1", "'first' is no index"),
        ("output.x=1", "output is no section"),
    ],
)
def test_an_override_that_leads_nowhere_is_an_error(recipe, override, message):
    with pytest.raises(RecipeError, match=rf"(?s)override '{override.replace('[', '.')}.*{message}"):
        load_recipe(str(recipe), [override])


CHECKPOINTING = [name for name in ("gradient", "activation") if hasattr(TrainingArguments, f"{name}_checkpointing")]
"""What the installed transformers calls it"""


@pytest.mark.parametrize("name", CHECKPOINTING)
@pytest.mark.parametrize("setting", ["use_reentrant", "offload"])
def test_ways_of_checkpointing_that_dlip_does_not_have_are_refused(setting, name):
    override = f'training.{name}_checkpointing_kwargs={{"{setting}": true}}'
    with pytest.raises(RecipeError, match=rf"{name}_checkpointing_kwargs\.{setting}: .*leave it out"):
        load_recipe("dlip/quickstart", [f"training.{name}_checkpointing=true", override])


@pytest.mark.parametrize("name", ["dlip/quickstart", "comd/laptop"])
def test_the_gradient_of_a_single_term_is_not_asked_of_deepspeed(name):
    overrides = ["gradient_share_steps=200", 'training.deepspeed={"zero_optimization": {"stage": 2}}']
    with pytest.raises(RecipeError, match=r"gradient_share_steps 200: under training\.deepspeed \(.*set it 0"):
        load_recipe(name, overrides)
    load_recipe(name, ["gradient_share_steps=0", overrides[1]])


def test_shipped_names_and_the_nearest_of_them():
    assert find_recipe("dlip/quickstart").samefile(find_recipe("recipes/dlip/quickstart.yaml"))
    with pytest.raises(RecipeError, match="did you mean 'dlip/quickstart'"):
        find_recipe("dlip/quickstrat")
    with pytest.raises(RecipeError, match="limbeck recipe list"):
        find_recipe("xyz.yaml")


def test_the_schema_takes_what_a_base_brings_and_changes_by_name():
    schema = recipe_schema()
    for choice in schema["anyOf"]:
        recipe = schema["$defs"][choice["$ref"].rpartition("/")[2]]
        assert "required" not in recipe
        assert recipe["properties"]["base"]["type"] == "string"
        assert [kind["type"] for kind in recipe["properties"]["stages"]["anyOf"]] == ["array", "object"]
    assert "required" not in schema["$defs"]["WordPieceTokenizer"], "a base can bring the kind"
    assert schema["$defs"]["JsonlConfig"]["required"] == ["source", "path"], "a list's items stand alone"
    known = {key for name in ("DLIP", "CTVLM", "CoMD") for key in schema["$defs"][f"{name}Recipe"]["properties"]}
    for name in shipped_recipes():
        assert yaml.safe_load(find_recipe(name).read_text()).keys() <= known


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_loads(name):
    settings = load_recipe(name)
    assert load_recipe(name, ["seed=123"]).seed == 123
    if isinstance(settings, DLIPRecipe):
        assert settings.student.folder is not None or settings.student.vision is not None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["student.vision.width=null"], r"student\.vision: give `scale` .*\['width'\] missing"),
        (["stages=[{weights: {languge: 1.0}}]"], r"stages\.0\.weights: .*'languge'; did you mean 'language'"),
        (["stages=[{weights: {hidden: 1.0}}]"], r"no loss term 'hidden'"),
        (
            ["stages=[{name: a}, {name: b, trainable: [student.vison]}]"],
            r"stages\.1\.trainable: the glob 'student\.vison' matches no parameter; .*'student\.vision'",
        ),
        (["student.vision.width=500", "student.vision.heads=12"], r"student\.vision: width 500 does not divide"),
        (["student.text.heads=3"], r"student\.text: width 32 does not divide into heads 3$"),
        (["student.text.layers=0"], r"student\.text: layers: .*greater than 0 \(found 0\)$"),
        (["student.family=albef"], r"student: family albef needs text\.fusion_layers"),
        (["teacher={folders: [nowhere/at/all]}"], r"teacher\.folders: nowhere/at/all: no such model folder"),
        (["student.vision.image_size=64"], r"data\.transform\.size: 32, but the student's image_size is 64"),
        (["student.initial_text=teacher"], r"student\.initial_text: teacher: the recipe has no teacher"),
        (["training.fp16=true", "training.bf16=true"], r"training: .*fp16 and bf16"),
    ],
)
def test_what_does_not_fit_is_found_before_training_and_claims_no_folder(recipe, overrides, message):
    with pytest.raises(RecipeError, match=message):
        run_recipe(load_recipe(str(recipe), overrides))
    assert not (recipe.parent / "run").exists()


def test_a_missing_file_is_named(recipe):
    overrides = ["data.train=[{source: jsonl, path: nowhere.jsonl}]"]
    with pytest.raises(Exception, match=r"nowhere\.jsonl"):
        run_recipe(load_recipe(str(recipe), overrides))


def test_a_teacher_that_does_not_fit_is_refused(recipe):
    settings = load_recipe(str(recipe), ["student.vision.image_size=64"])
    tokenizer = open_tokenizer(settings, open_data(settings))
    teacher = recipe.parent / "teacher"
    build_student(settings, tokenizer, None).save(teacher)
    tokenizer.save_pretrained(teacher)
    same = [f"teacher={{folders: [{teacher}]}}", f"tokenizer={{tokenizer: folder, path: {teacher}}}"]
    with pytest.raises(RecipeError, match=r"student\.vision\.image_size: 32, but the teacher's is 64"):
        run_recipe(load_recipe(str(recipe), same))
    finer = ["student.vision={width: 32, layers: 2, heads: 2, image_size: 64, patch_size: 8}", "data.transform.size=64"]
    with pytest.raises(RecipeError, match=r"student\.vision\.patch_size: 8, .* 64 tokens; the teacher's 16 into 16"):
        run_recipe(load_recipe(str(recipe), [*same, *finer]))
    other = load_recipe(str(recipe), [same[0], "tokenizer.vocab_size=200"])
    with pytest.raises(RecipeError, match=r"teacher: its vocabulary size is \d+, the tokenizer's is \d+"):
        run_recipe(other)


def test_a_changed_recipe_on_an_old_run_folder_names_what_changed(recipe):
    run = run_recipe(load_recipe(str(recipe), ["training.save_strategy=no"]))
    kept = yaml.safe_load((run / "recipe.yaml").read_text())
    assert kept["student"]["vision"]["width"] == 32
    with pytest.raises(
        RecipeError, match=rf"{run} holds the run of another recipe; it differs in seed, training\.max_steps"
    ):
        run_recipe(load_recipe(str(recipe), ["training.save_strategy=no", "seed=1", "training.max_steps=2"]))


def test_the_command_line_says_it_in_one_message_with_exit_code_2(recipe):
    command = [sys.executable, "-m", "limbeck.cli", "train", str(recipe), "stages=[{weights: {languge: 1.0}}]"]
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"})
    assert result.returncode == 2, result.stderr
    assert f"error: {recipe}: stages.0.weights: there is no loss term 'languge'" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_tokenizer_of_another_kind_replaces_the_bases_whole(tmp_path):
    (tmp_path / "base.yaml").write_text("tokenizer: {tokenizer: wordpiece, vocab_size: 900}\nseed: 1\n")
    (tmp_path / "mine.yaml").write_text(
        "base: base.yaml\noutput: runs/x\ntokenizer: {tokenizer: bert}\n"
        "student: {vision: {scale: tiny}, text: {scale: tiny}}\n"
        "data: {train: [{source: 'builtin:scenes'}]}\n"
    )
    recipe = load_recipe(str(tmp_path / "mine.yaml"))
    assert recipe.tokenizer.tokenizer == "bert"
    assert recipe.seed == 1
