"""The doctor on whole recipes: a sound one is fit, and what is wrong with an unsound one is found and named."""

import json
import sys

import pytest
from doctor_recipes import CAPTIONS, recipe_of, stir, taken

from limbeck.cli import main
from limbeck.data.chat import Chat
from limbeck.data.decoder_tokenizer import BpeTokenizer, load_decoder_tokenizer
from limbeck.doctor import ctvlm as flow
from limbeck.doctor import examine, failed, refuse_unsound, standin
from limbeck.doctor.ctvlm_checks import check_teachers
from limbeck.recipe import RecipeError
from limbeck.run import run_recipe


def by_check(findings):
    return {finding.check: finding for finding in findings}


def statuses(findings):
    return {finding.check: finding.status for finding in findings}


def zero(model):
    for parameter in model.parameters():
        parameter.zero_()


def nothing(model):
    pass


def test_a_sound_recipe_is_fit_and_everything_was_looked_at(tmp_path, language_model):
    findings = examine(recipe_of(tmp_path, taken(language_model(stir))), memory=80.0)
    assert set(statuses(findings).values()) == {"ok"}, findings
    assert list(by_check(findings)) == [
        "tokenizer",
        "template plain",
        "template vicuna_v1",
        "teachers",
        "vocabulary",
        "image tokens",
        "lengths",
        "weights eye",
        "weights large",
        "teacher = itself",
        "gradients align_tiny",
        "gradients align_large",
        "gradients tune",
        "parameters",
        "memory",
        "speed",
    ]
    assert not list(tmp_path.glob("run*"))

    trained = by_check(findings)["parameters"].figures["trainable"]
    assert {tower for tower, count in trained["align_large"].items() if count} == {"duet.connector"}
    assert trained["tune"]["duet.tiny.eye"] == trained["tune"]["duet.tiny.table"] == 0
    assert trained["tune"]["duet.large"] == by_check(findings)["parameters"].figures["parameters"]["duet.large"]

    memory = by_check(findings)["memory"].figures["tune"]
    total = sum(by_check(findings)["parameters"].figures["parameters"].values())
    assert memory["weights"] >= 4 * total
    assert memory["gradients"] == 4 * sum(trained["tune"].values())
    assert memory["optimizer"] == 2 * memory["gradients"]
    assert memory["largest_micro_batch"]["80 GiB"] > 1000

    speed = by_check(findings)["speed"].figures["tune"]
    assert (speed["steps"], speed["rows_per_step"]) == (30, 4)
    assert speed["hours"] == pytest.approx(30 * 4 / speed["rows_per_second"] / 3600)


def stage_of(kind, **values):
    return {"name": kind, "kind": kind, "data": CAPTIONS, **values}


@pytest.mark.parametrize(
    ("kinds", "untrained"),
    [
        (("align_tiny", "align_large", "tune"), ["tune"]),
        (("language", "align_tiny", "align_large", "tune"), []),
        (("language", "align_large", "tune"), ["align_large"]),
        (("tune", "align_large"), ["tune"]),
        (("align_large",), ["align_large"]),
    ],
)
def test_a_new_model_that_teaches_before_it_has_learned_is_a_warning(tmp_path, kinds, untrained):
    finding = check_teachers(recipe_of(tmp_path, {"stages": [stage_of(kind) for kind in kinds]}))
    assert finding.status == ("warning" if untrained else "ok")
    assert [kind for kind in kinds if f"the teacher of stage {kind} was never trained" in finding.text] == untrained


@pytest.mark.parametrize("change", [{"kd": "none"}, {"lambda": 0.0}, {"models": "tiny"}])
def test_without_a_divergence_there_is_no_teacher_to_train(tmp_path, change):
    finding = check_teachers(recipe_of(tmp_path, {"stages": [stage_of("tune", **change)]}))
    assert (finding.status, finding.text) == ("ok", "no stage has one")


def test_a_large_model_with_weights_of_its_own_teaches_at_once_and_a_tiny_one_does_not(tmp_path, language_model):
    folder = language_model(stir)
    stages = {"stages": [stage_of("align_large"), stage_of("tune")]}
    finding = check_teachers(recipe_of(tmp_path, taken(folder) | stages))
    assert finding.status == "warning"
    assert "the teacher of stage align_large was never trained" in finding.text
    assert "stage tune" not in finding.text


def test_training_says_that_a_teacher_was_never_trained_and_goes_on(build, caplog):
    recipe, tokenizer, method, datasets = build({"stages": [stage_of("tune")]})
    refuse_unsound(recipe, tokenizer, method, datasets)
    assert "the teacher of stage tune was never trained: the large model has no pretrained weights" in caplog.text


def test_the_command_prints_json_alone_and_its_exit_code_tells(tmp_path, monkeypatch, capsys):
    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["limbeck", "doctor", str(tmp_path / "made.yaml"), *arguments])
        with pytest.raises(SystemExit) as done:
            main()
        said = capsys.readouterr()
        return done.value.code, said.out, said.err

    recipe_of(tmp_path)
    code, out, _ = command("--no-steps", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["ok"]
    assert {"check", "status", "finding", "figures"} == set(found["checks"][0])
    assert "speed" not in {check["check"] for check in found["checks"]}

    code, out, _ = command("stages.2.chat.template=qwen", "--no-steps")
    assert code == 1
    assert "not fit to train: template qwen" in out

    code, out, err = command("duet.featurs=I")
    assert (code, out) == (2, "")
    assert "features" in err


def test_another_tokenizer_is_named_with_its_first_different_token(tmp_path, language_model):
    folder = language_model(stir)
    other = load_decoder_tokenizer(BpeTokenizer(tokenizer="bpe", vocab_size=420), ["quite other words than those"])
    other.save_pretrained(folder)
    findings = examine(recipe_of(tmp_path, {"duet": {"large": {"folder": folder}}}))
    assert statuses(findings)["tokenizer"] == "failed"
    assert list(statuses(findings).items())[-1] == ("the rest", "skipped")
    assert "duet.large: " in by_check(findings)["tokenizer"].text
    assert "differ: token 2" in by_check(findings)["tokenizer"].text


def test_a_template_that_the_tokenizer_has_no_tokens_for_fails(tmp_path):
    stage = {"name": "tune", "kind": "tune", "data": CAPTIONS, "chat": {"template": "qwen"}}
    findings = by_check(examine(recipe_of(tmp_path, {"stages": [stage]})))
    assert findings["template qwen"].status == "failed"
    assert "<|im_start|>" in findings["template qwen"].text
    assert findings["the rest"].status == "skipped"


def test_a_prompt_that_is_not_what_was_trained_on_fails(tmp_path, monkeypatch):
    written = Chat.jinja.fget
    monkeypatch.setattr(Chat, "jinja", property(lambda chat: written(chat).replace('"ASSISTANT:"', '"ASSISTANT: "')))
    findings = by_check(examine(recipe_of(tmp_path), steps=False))
    assert findings["template vicuna_v1"].status == "failed"
    assert "apply_chat_template's prompt" in findings["template vicuna_v1"].text
    assert findings["template plain"].status == "ok"


@pytest.mark.parametrize(("change", "said"), [(zero, "nothing but zeros"), (nothing, "first weights")])
def test_a_teacher_that_was_never_trained_is_refused(tmp_path, language_model, change, said):
    folder = language_model(change)
    recipe = recipe_of(tmp_path, taken(folder))
    finding = by_check(examine(recipe, steps=False))["weights large"]
    assert finding.status == "failed"
    assert said in finding.text
    assert folder in finding.text
    with pytest.raises(RecipeError, match=said):
        run_recipe(recipe)
    assert not (tmp_path / "run" / "recipe.yaml").exists()


def test_a_teacher_that_lacks_weights_is_refused(tmp_path, language_model):
    from safetensors.torch import load_file, save_file

    folder = language_model(stir)
    weights = load_file(f"{folder}/model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, f"{folder}/model.safetensors", {"format": "pt"})
    findings = by_check(examine(recipe_of(tmp_path, taken(folder))))
    assert findings["models"].status == "failed"
    assert "model.layers.1.mlp.up_proj.weight" in findings["models"].text


def test_a_teacher_with_weights_of_its_own_is_taken_and_its_padding_counted(tmp_path, language_model, tokenizer):
    rows = len(tokenizer) - 1 + 10
    findings = by_check(examine(recipe_of(tmp_path, taken(language_model(stir, rows=rows))), steps=False))
    assert not failed(list(findings.values()))
    assert findings["weights large"].status == "ok"
    assert set(findings["vocabulary"].figures["padded"].values()) == {10}


def test_conversations_too_long_for_a_model_are_found(tmp_path):
    def examined(positions):
        large = {"kind": "llama", "width": 32, "layers": 2, "heads": 2, "max_positions": positions}
        return by_check(examine(recipe_of(tmp_path, {"duet": {"large": large}}), steps=False))

    found = examined(40)
    assert found["data"].status == "failed"
    assert "more than the large model's positions, 40" in found["data"].text
    longest = examined(192)["lengths"].figures["longest"]["large"]
    found = examined(longest)
    assert found["lengths"].status == "warning"
    assert "others may be too long for the large model, and are left out" in found["lengths"].text


def test_benchmarks_whose_files_are_not_there_fail(tmp_path):
    there = {"benchmark": "scenes_vqa", "data": {"source": "builtin:scenes", "split": "test", "count": 2}}
    gone = [{"benchmark": name, "folder": f"no/{name}"} for name in ("mme", "mmmu")]
    sound, unsound = (
        by_check(examine(recipe_of(tmp_path, {"evaluation": {"benchmarks": given}}), steps=False))["benchmarks"]
        for given in ([there], [there, *gone])
    )
    assert sound.status == "ok"
    assert unsound.status == "failed"
    assert unsound.figures == sound.figures
    assert all(f"no/{name}" in unsound.text for name in ("mme", "mmmu"))


def test_a_stage_that_nothing_can_be_learned_in_fails(tmp_path):
    stage = {"name": "tune", "kind": "tune", "data": CAPTIONS, "models": "tiny", "trainable": ["duet.connector"]}
    findings = by_check(examine(recipe_of(tmp_path, {"stages": [stage]}), steps=False))
    assert findings["gradients tune"].status == "failed"
    assert "no gradient reaches what must train: duet.connector" in findings["gradients tune"].text
    assert "leaves out duet.tiny.body" in findings["trainable"].text


def test_a_micro_batch_that_does_not_fit_is_a_warning(tmp_path):
    recipe = recipe_of(tmp_path, {"training": {"per_device_train_batch_size": 2**40}})
    findings = by_check(examine(recipe))
    assert findings["memory"].status == "warning"
    assert "micro-batches that do not fit on" in findings["memory"].text
    assert findings["speed"].status == "skipped"


def test_models_too_large_for_the_machine_are_seen_by_their_first_layers(tmp_path, language_model, monkeypatch):
    recipe = recipe_of(tmp_path, taken(language_model(stir, layers=5)))
    whole = by_check(examine(recipe, steps=False))
    monkeypatch.setattr(flow, "LARGEST", 0)
    monkeypatch.setattr(standin, "WORTH", 0)
    cut = by_check(examine(recipe, steps=True))
    assert "2 layers" in cut["models"].text
    assert cut["parameters"].figures == whole["parameters"].figures
    assert cut["speed"].status == "skipped"
    assert not failed(list(cut.values()))
    for stage in ("align_tiny", "align_large", "tune"):
        one, other = (findings["memory"].figures[stage] for findings in (cut, whole))
        assert {name: one[name] for name in ("gradients", "optimizer")} == {
            name: other[name] for name in ("gradients", "optimizer")
        }
        assert one["activations_per_row"] == pytest.approx(other["activations_per_row"], rel=0.02)
