"""What tiny and large gain by teaching each other: CTVLM's Tables 2 to 6 at laptop scale, over several seeds.

    python benchmarks/quality_ctvlm.py [--smoke] [--json FILE] [--write-docs] [--seeds N] [--scale S] [--out FOLDER]

Every row is recipes/ctvlm/laptop.yaml with one thing changed. For a seed all rows share the stages before the change:
their finished stages are taken over, not trained anew. Both models answer scenes whose combinations of things were held
out of training. A direction's confidence is the probability, by Student's t-distribution over the seeds' paired
differences, that its true difference is above 0. The same command goes on after a crash.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import Claim, parser, publish
from training_runs import Scores, gain, line, numbers, scores, surely, take_over

from limbeck.recipe import load_recipe
from limbeck.run import run_recipe

RECIPE = "ctvlm/laptop"
METRICS = ("VQA", "CIDEr")
Stages = list[dict[str, Any]]


@dataclass(frozen=True)
class Variant:
    """One row: what it changes, and the run whose finished stages it takes over."""

    changes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """stage -> fields"""
    duet: Mapping[str, Any] = field(default_factory=dict)
    stages: tuple[str, ...] = ("align_tiny", "align_large", "tune")
    after: tuple[str, str] | None = None
    """a run, and its last stage that this one shares"""


NO_KD = {"align_large": {"kd": "none"}, "tune": {"kd": "none"}}
VARIANTS: dict[str, Variant] = {
    "reverse KL (ours)": Variant(),
    "no KL": Variant(NO_KD, after=("reverse KL (ours)", "align_tiny")),
    "forward KL in tuning": Variant({"tune": {"kd": "forward"}}, after=("reverse KL (ours)", "align_large")),
    "no KL in tuning": Variant({"tune": {"kd": "none"}}, after=("reverse KL (ours)", "align_large")),
    "only tiny": Variant(
        {"tune": {"models": "tiny"}},
        stages=("align_tiny", "tune"),
        after=("reverse KL (ours)", "align_tiny"),
    ),
    "features I": Variant(duet={"features": "I"}, after=("reverse KL (ours)", "align_tiny")),
    "lambda 0.1": Variant({"tune": {"lambda": 0.1}}, after=("reverse KL (ours)", "align_large")),
    "lambda 0.7": Variant({"tune": {"lambda": 0.7}}, after=("reverse KL (ours)", "align_large")),
    "aligned with KL": Variant(stages=("align_tiny", "align_large"), after=("reverse KL (ours)", "align_large")),
    "aligned without KL": Variant(
        {"align_large": {"kd": "none"}},
        stages=("align_tiny", "align_large"),
        after=("no KL", "align_large"),
    ),
}
TABLES: dict[str, tuple[str, tuple[str, ...]]] = {
    "Table 2: the large model": ("large", ("reverse KL (ours)", "no KL")),
    "Table 3: the large model after alignment": ("large", ("aligned with KL", "aligned without KL")),
    "Table 4: the tiny model": (
        "tiny",
        ("reverse KL (ours)", "forward KL in tuning", "no KL in tuning", "only tiny"),
    ),
    "Table 5: features, large": ("large", ("reverse KL (ours)", "features I")),
    "Table 5: features, tiny": ("tiny", ("reverse KL (ours)", "features I")),
    "Table 6: lambda, tiny": ("tiny", ("lambda 0.1", "reverse KL (ours)", "lambda 0.7")),
    "Table 6: lambda, large": ("large", ("lambda 0.1", "reverse KL (ours)", "lambda 0.7")),
}
"""The paper's tables: whose scores, of which runs"""

WANTED = (
    ("large with KL above large without", "large", "reverse KL (ours)", "no KL"),
    ("after alignment, large with KL above large without", "large", "aligned with KL", "aligned without KL"),
    ("tiny: reverse above forward KL", "tiny", "reverse KL (ours)", "forward KL in tuning"),
    ("tiny: forward KL above none", "tiny", "forward KL in tuning", "no KL in tuning"),
    ("tiny: none above trained alone", "tiny", "no KL in tuning", "only tiny"),
    ("tiny: reverse KL above trained alone", "tiny", "reverse KL (ours)", "only tiny"),
)
"""What is wanted by more than two standard errors"""
REPORTED = (
    ("features I+T above I, large", "large", "reverse KL (ours)", "features I"),
    ("lambda 0.3 above 0.1, tiny", "tiny", "reverse KL (ours)", "lambda 0.1"),
    ("lambda 0.3 above 0.7, tiny", "tiny", "reverse KL (ours)", "lambda 0.7"),
    ("lambda 0.3 above 0.1, large", "large", "reverse KL (ours)", "lambda 0.1"),
    ("lambda 0.3 above 0.7, large", "large", "reverse KL (ours)", "lambda 0.7"),
)
"""What the paper finds besides"""


def main() -> None:
    options = parser(__doc__, timed=False)
    options.add_argument("--seeds", type=int, default=3, help="how many (default 3)")
    options.add_argument("--scale", type=float, default=1.0, help="of the recipe's steps (default 1)")
    options.add_argument("--out", type=Path, default=Path("runs/quality_ctvlm"), help="where the runs go")
    args = options.parse_args()
    out: Path = args.out
    names = tuple(VARIANTS)
    if args.smoke:
        args.seeds, args.scale, out = 2, 0, out / "smoke"
        names = ("reverse KL (ours)", "no KL", "only tiny")

    found: dict[str, dict[str, list[Scores]]] = {"tiny": {}, "large": {}}
    for seed in range(args.seeds):
        for name in names:
            print(f"seed {seed}, {name}", flush=True)
            folder = run(out / f"seed{seed}", name, seed, args.scale, args.smoke)
            for role, place in (("large", folder), ("tiny", folder / "tiny")):
                if (place / "evaluation" / "summary.json").is_file():
                    found[role].setdefault(name, []).append(scores(place))
    rows, table = [], []
    for title, (role, runs) in TABLES.items():
        for name in runs:
            if name in found[role]:
                seeds = found[role][name]
                metrics = [metric for metric in METRICS if metric in seeds[0]]
                rows.append({"table": title, **numbers(name, seeds, metrics)})
                table.append({"table": title, **line(name, seeds, metrics)})
    note = f"Mean ± standard error; steps: {args.scale:g} times those of {RECIPE}.yaml."
    publish("quality_ctvlm", rows, judge(found), args, table=table, note=note)


def run(out: Path, name: str, seed: int, scale: float, smoke: bool) -> Path:
    """Train and try one variant, with what it shares taken over."""
    variant, folder = VARIANTS[name], out / name.replace(" ", "_").strip("()")
    recipe = load_recipe(RECIPE)
    stages: Stages = [stage.model_dump() for stage in recipe.stages if stage.name in variant.stages]
    for stage in stages:
        stage.update(variant.changes.get(stage["name"], {}))
        steps = stage["training"]["max_steps"]
        stage["training"]["max_steps"] = max(1, round(scale * steps))
        if smoke:
            stage["training"]["per_device_train_batch_size"] = 4
            for source in stage["data"]:
                source["of"]["count"] = 32
    if variant.after is not None:
        other, last = variant.after
        shared = [stage["name"] for stage in stages]
        shared = shared[: shared.index(last) + 1]
        take_over(out / other.replace(" ", "_").strip("()"), folder, shared)
    changes = [f"seed={seed}", f"stages={json.dumps(stages)}", "training.save_steps=500"]
    changes += [f"duet.{key}={json.dumps(value)}" for key, value in variant.duet.items()]
    aligned = "tune" not in variant.stages
    if aligned:  # bare captions are all that such a model has been asked for
        captioning = recipe.evaluation.benchmarks[1].model_dump() | {"prompt": ""}
        changes.append(f"evaluation.benchmarks={json.dumps([captioning])}")
    models = ["tiny"] if name == "only tiny" else ["large"] if aligned else ["tiny", "large"]
    changes.append(f"evaluation.models={json.dumps(models)}")
    if smoke:
        changes += [f"evaluation.benchmarks.{index}.data.count=8" for index in range(1 if aligned else 2)]
    run_recipe(load_recipe(RECIPE, [*changes, f"output={folder}"]))
    return folder


def judge(found: Mapping[str, Mapping[str, Sequence[Scores]]]) -> list[Claim]:
    """The wanted orders by two standard errors of the paired differences, the others as they come out."""
    claims = []
    for title, role, better, worse in WANTED:
        if better in found[role] and worse in found[role]:
            ours, theirs = found[role][better], found[role][worse]
            claims += [surely(title, ours, theirs, metric) for metric in METRICS if metric in ours[0]]
    for title, role, better, worse in REPORTED:
        if better in found[role] and worse in found[role]:
            claims += [gain(title, found[role][better], found[role][worse], metric) for metric in METRICS]
    return claims


if __name__ == "__main__":
    main()
