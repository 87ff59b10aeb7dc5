"""Every benchmark's `--smoke` goes its whole path and writes rows and claims; what they compute from seeds is right."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SLOW = [
    pytest.param("quality_dlip", {"model", "seeds", "CIDEr", "VQA"}),
    pytest.param("ablation_dlip", {"table", "model", "CIDEr", "VQA"}),
    pytest.param("quality_ctvlm", {"table", "model", "CIDEr", "VQA"}),
    pytest.param("quality_comd", {"table", "model", "VQA"}),
    pytest.param("quality_smollm2", {"model", "photos", "emojis"}),
    pytest.param("attention_kl", {"shape", "variant", "ms", "MiB"}),
    pytest.param("bf16_attention", {"shape", "way", "ms"}),
    pytest.param("divergence", {"kind", "variant", "ms", "MiB"}),
    pytest.param("train_step", {"setting", "way", "ms"}),
    pytest.param("rouge_filter", {"shape", "variant", "ms", "pairs/s"}),
    pytest.param("noun_phrases", {"work", "way", "captions/s"}),
    pytest.param("compete_load", {"way", "answered", "capacity used"}),
]


def smoke(name: str, folder: Path) -> dict:
    """The JSON that a benchmark writes, run in `folder`."""
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), "--smoke", "--json", "found.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    if "skipped:" in done.stdout:
        pytest.skip(done.stdout.strip())
    return json.loads((folder / "found.json").read_text())


def check(found: dict, columns: set[str]) -> None:
    assert found["rows"]
    for row in found["rows"]:
        assert all(isinstance(value, str) or math.isfinite(value) for value in row.values())
    assert columns <= set().union(*found["rows"])
    assert found["claims"]
    for claim in found["claims"]:
        assert set(claim) == {"name", "wanted", "measured", "holds"}
        assert isinstance(claim["holds"], bool)


def test_the_fastest_smoke(tmp_path: Path) -> None:
    check(smoke("quality_photos", tmp_path), {"model", "TR@1", "CIDEr"})


@pytest.mark.slow
@pytest.mark.parametrize(("name", "columns"), SLOW)
def test_smoke(name: str, columns: set[str], tmp_path: Path) -> None:
    check(smoke(name, tmp_path), columns)


def test_every_benchmark_explains_itself() -> None:
    for path in BENCHMARKS.glob("*.py"):
        assert path.read_text().startswith('"""'), path


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Benchmarks import each other as scripts do."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.mark.usefixtures("benchmarks")
class TestSeeds:
    def test_standard_error_and_confidence(self) -> None:
        from training_runs import confidence, spread

        assert spread([1.0, 2.0, 3.0]).mean == 2.0
        assert spread([1.0, 2.0, 3.0]).error == pytest.approx(1 / math.sqrt(3))
        assert spread([5.0]).error is None
        # t = 2 / (1 / sqrt 3) = 3.464 with two degrees of freedom: P = 1/2 + t / (2 sqrt(2 + t^2)) = 0.9629
        assert confidence([1.0, 2.0, 3.0]) == pytest.approx(0.9629, abs=1e-4)
        assert confidence([-1.0, -2.0, -3.0]) == pytest.approx(1 - 0.9629, abs=1e-4)
        assert confidence([1.0]) is None
        assert confidence([1.0, 1.0]) == 1.0

    def test_distilled_must_be_two_standard_errors_above_plain(self) -> None:
        from quality_dlip import judge

        plain = [{"CIDEr": 50.0}, {"CIDEr": 52.0}, {"CIDEr": 54.0}]
        near = [{"CIDEr": value["CIDEr"] + 3} for value in plain]
        far = [{"CIDEr": value["CIDEr"] + 4} for value in plain]
        # both standard errors are 2 / sqrt 3, that of the difference is 1.633
        assert [claim.holds for claim in judge({"CIDEr": 60.0}, plain, near)] == [False, False]
        assert [claim.holds for claim in judge({"CIDEr": 58.0}, plain, far)] == [True, True]
        alone = judge({"CIDEr": 60.0}, plain[:1], far[:1])
        assert not alone[0].holds, "one seed has no standard error"

    def test_an_order_of_ctvlm_must_hold_by_two_standard_errors_of_paired_differences(self) -> None:
        from quality_ctvlm import surely

        theirs = [{"VQA": 50.0}, {"VQA": 60.0}, {"VQA": 40.0}]
        # differences 1, 2, 3: mean 2, standard error 1 / sqrt 3 = 0.577
        ours = [{"VQA": other["VQA"] + gain} for other, gain in zip(theirs, (1.0, 2.0, 3.0))]
        assert surely("order", ours, theirs, "VQA").holds
        # differences 0, 1, 2: mean 1 < 1.155
        near = [{"VQA": other["VQA"] + gain} for other, gain in zip(theirs, (0.0, 1.0, 2.0))]
        assert not surely("order", near, theirs, "VQA").holds
        assert not surely("order", ours[:1], theirs[:1], "VQA").holds

    def test_a_variant_of_ctvlm_takes_over_only_stages_that_another_run_has_before_it(self) -> None:
        from quality_ctvlm import TABLES, VARIANTS

        names = list(VARIANTS)
        for name, variant in VARIANTS.items():
            if variant.after is not None:
                other, last = variant.after
                assert names.index(other) < names.index(name)
                assert last in VARIANTS[other].stages
                assert last in variant.stages
        assert {run for _, runs in TABLES.values() for run in runs} == set(names)

    def test_a_longer_recipe_keeps_its_stages_shares(self) -> None:
        from training_runs import lasting

        from limbeck.recipe import load_recipe

        own = [stage.training["max_steps"] for stage in load_recipe("dlip/quickstart").stages]
        made = [stage["training"]["max_steps"] for stage in lasting("dlip/quickstart", 10 * sum(own))]
        assert made == [10 * steps for steps in own]

    def test_ablation_keeps_the_named_terms_with_the_recipes_weights(self) -> None:
        from ablation_dlip import RUNS, TERMS, kept

        weights = {"contrastive": 1.0, "matching": 1.0, "answer": 0.5, "hidden": 2.0, "attention": 1.0}
        assert kept(weights, RUNS["vl_d"]) == {
            "contrastive": 1.0,
            "matching": 1.0,
            "answer": 0.5,
            "hidden/decoded": 2.0,
            "hidden/answer": 2.0,
        }
        cross = kept(weights, RUNS["cross"])
        assert {name for name in cross if name.startswith("attention")} == {
            f"attention/{name}/cross" for name in ("fused", "decoded", "question", "answer")
        }
        assert kept(weights, RUNS["all"]).keys() == set(TERMS) - {"language"}

    def test_ablation_weighs_a_pair_in_the_fused_pass_as_the_recipe_does(self) -> None:
        from ablation_dlip import RUNS, kept

        from limbeck.recipe import load_recipe

        recipe = load_recipe("dlip/quickstart")
        (own,) = (stage.weights for stage in recipe.stages if stage.name == "pretrain")
        assert recipe.dlip.kd_negatives
        assert (own["hidden/fused"], own["attention/fused"]) == (30, 3), "of three rows for each pair"
        weights = kept(own, RUNS["all"])
        assert weights["hidden/fused"] == 10
        assert weights["attention/fused/self"] == weights["attention/fused/cross"] == 1


@pytest.mark.usefixtures("benchmarks")
def test_a_results_section_is_replaced_and_others_stay(tmp_path: Path) -> None:
    from harness import write_section

    page = tmp_path / "results.md"
    write_section(page, "first", "old")
    write_section(page, "second", "kept")
    write_section(page, "first", "new")
    text = page.read_text()
    assert "old" not in text
    assert re.findall(r"new|kept", text) == ["new", "kept"]
