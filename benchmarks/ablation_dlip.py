"""DLIP's Tables 3, 4 and 5 at laptop scale: which signals, which attention, which objectives help, and how surely.

    python benchmarks/ablation_dlip.py [--smoke] [--json FILE] [--write-docs] [--seeds N] [--steps N] [--out FOLDER]

Every row is the quickstart's distilled student with the paper's terms alone and some of them left out, on its data,
from the same first weights and in the same order of data for a seed. All have the learning rates of the plain student,
at which contrast alone learns too. A direction's confidence is the probability, by
Student's t-distribution over the seeds' paired differences, that its true difference is above 0. Directions are
reported as they come out.
No fine-tuning follows, unlike in the paper: `without VLP` is a student whose embedding, matching and vocabulary heads
were never trained. The same command goes on after a crash.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path

from harness import Claim, parser, publish
from quality_dlip import DISTILLED, PLAIN, SMOKE
from training_runs import Scores, gain, lasting, line, numbers, train

from limbeck.methods.passes import PASSES
from limbeck.methods.weights import expand_weights

VLP = ("contrastive", "matching", "language", "answer")
TERMS = (
    *VLP,
    *(f"hidden/{name}" for name in PASSES),
    *("attention/image/self", "attention/text/self"),
    *(f"attention/{name}/{kind}" for name in PASSES[2:] for kind in ("self", "cross")),
)
"""Every loss term of a BLIP that is distilled"""

RUNS: dict[str, tuple[str, ...]] = {
    "none": VLP,
    "img": (*VLP, "hidden/image"),
    "text": (*VLP, "hidden/text"),
    "img + text": (*VLP, "hidden/image", "hidden/text"),
    "vl_e": (*VLP, "hidden/fused", "hidden/question"),
    "vl_d": (*VLP, "hidden/decoded", "hidden/answer"),
    "hidden": (*VLP, "hidden/*"),
    "self": (*VLP, "attention/*/self"),
    "cross": (*VLP, "attention/*/cross"),
    "attention": (*VLP, "attention/*"),
    "without VLP": ("hidden/*", "attention/*"),
    "all": ("*",),
}
"""Globs over the loss terms that each run keeps, with the recipe's own weights but for `FUSED`"""

TABLES: dict[str, tuple[str, ...]] = {
    "Table 3: hidden states": ("none", "img", "text", "img + text", "vl_e", "vl_d", "hidden"),
    "Table 4: attention": ("none", "self", "cross", "attention"),
    "Table 5: objectives": ("none", "attention", "hidden", "without VLP", "all"),
}
"""The paper's tables by the runs that make their rows; a run can stand in several"""

FUSED = {"hidden/fused": 10.0, "attention/fused": 1.0}
"""A third of the recipe's weights: there the mean is over each pair and its two hard negatives, while in these runs the
teacher sees the pairs alone."""

METRICS = ("TR@1", "IR@1", "CIDEr", "VQA")

DIRECTIONS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "hidden states beat attention": ("hidden", "attention", METRICS),
    "multimodal beats unimodal: fused text against both towers": ("vl_e", "img + text", METRICS),
    "multimodal beats unimodal: cross- against self-attention": ("cross", "self", METRICS),
    "the decoder's own distillation helps what the decoder does": ("vl_d", "vl_e", ("CIDEr", "VQA")),
    "all together beat VLP alone": ("all", "none", METRICS),
    "all together beat hidden states alone": ("all", "hidden", METRICS),
    "all together beat attention alone": ("all", "attention", METRICS),
    "all together beat distillation without VLP": ("all", "without VLP", METRICS),
}
"""What the paper finds: the better run, the worse one, and the metrics that it says so of"""


def main() -> None:
    options = parser(__doc__, timed=False)
    options.add_argument("--seeds", type=int, default=3, help="how many (default 3)")
    options.add_argument("--steps", type=int, default=800, help="of each run (default 800, about five minutes)")
    options.add_argument("--out", type=Path, default=Path("runs/ablation_dlip"), help="where the runs go")
    args = options.parse_args()
    out: Path = args.out
    names = tuple(RUNS)
    if args.smoke:
        args.seeds, args.steps, out, names = 2, 2, out / "smoke", ("hidden", "attention", "all")
    overrides = ["training.save_steps=500", "export=[]", "gradient_share_steps=0", *(SMOKE if args.smoke else ())]
    overrides += ["dlip.logits.sites=[]", "dlip.kd_negatives=false"]

    found: dict[str, list[Scores]] = {name: [] for name in names}
    teacher: Path | None = None
    for seed, name in product(range(args.seeds), names):
        print(f"seed {seed}, {name}", flush=True)
        folder = out / f"seed{seed}" / name.replace(" ", "_")
        stages, plain = (lasting(recipe, args.steps, 8 if args.smoke else None) for recipe in (DISTILLED, PLAIN))
        for stage, same in zip(stages, plain, strict=True):
            stage["weights"] = kept(stage["weights"], RUNS[name])
            stage["training"] = same["training"]
        changes = [*overrides, f"seed={seed}", f"stages={json.dumps(stages)}"]
        found[name].append(train(DISTILLED, folder, changes, teacher=teacher))
        teacher = teacher or folder / "teacher"
    places = [(table, name) for table, runs in TABLES.items() for name in runs if name in found]
    publish(
        "ablation_dlip",
        [{"table": table, **numbers(name, found[name], METRICS)} for table, name in places],
        judge(found),
        args,
        table=[{"table": table, **line(name, found[name], METRICS)} for table, name in places],
        note=f"Mean ± standard error; each student trained for {args.steps} steps.",
    )


def kept(weights: Mapping[str, float], globs: Sequence[str]) -> dict[str, float]:
    """A stage's weights by loss term, of the paper's terms that a glob names."""
    paper = {name: FUSED.get(name, weight) for name, weight in weights.items() if not name.startswith("logits")}
    return {
        term: weight
        for term, weight in expand_weights(paper, TERMS).items()
        if weight and any(fnmatchcase(term, glob) for glob in globs)
    }


def judge(found: Mapping[str, Sequence[Scores]]) -> list[Claim]:
    """Each direction on each metric: the mean of the paired differences, and how sure its sign is."""
    return [
        gain(direction, found[better], found[worse], metric)
        for direction, (better, worse, metrics) in DIRECTIONS.items()
        if better in found and worse in found
        for metric in metrics
    ]


if __name__ == "__main__":
    main()
