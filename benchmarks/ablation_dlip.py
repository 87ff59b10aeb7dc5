"""DLIP's Tables 3, 4 and 5 at laptop scale: which signals, which attention, which objectives help, and how surely.

    python benchmarks/ablation_dlip.py [--smoke] [--json FILE] [--write-docs] [--seeds N] [--steps N] [--out FOLDER]

Every row is the quickstart's distilled student with other loss weights, on its data, from the same first weights and in
the same order of data for a seed. A direction's confidence is the probability, by Student's t-distribution over the
seeds' paired differences, that its true difference is above 0. Directions are reported as they come out.
No fine-tuning follows, unlike in the paper: `without VLP` is a student whose embedding, matching and vocabulary heads
were never trained. The same command goes on after a crash.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

from harness import Claim, parser, publish
from quality_dlip import DISTILLED, SMOKE
from training_runs import Scores, gain, line, numbers, train

VLP = {"contrastive": 1.0, "matching": 1.0, "language": 1.0, "answer": 1.0}
FUSED = {"hidden/fused": 1.0, "hidden/question": 1.0}
DECODED = {"hidden/decoded": 1.0, "hidden/answer": 1.0}
PASSES = ("image", "text", "fused", "decoded", "question", "answer")
SELF = {f"attention/{name}/self": 1.0 for name in PASSES}
CROSS = {f"attention/{name}/cross": 1.0 for name in PASSES[2:]}

WEIGHTS: dict[str, dict[str, float]] = {
    "none": VLP,
    "img": {**VLP, "hidden/image": 1.0},
    "text": {**VLP, "hidden/text": 1.0},
    "img + text": {**VLP, "hidden/image": 1.0, "hidden/text": 1.0},
    "vl_e": {**VLP, **FUSED},
    "vl_d": {**VLP, **DECODED},
    "hidden": {**VLP, "hidden": 1.0},
    "self": {**VLP, **SELF},
    "cross": {**VLP, **CROSS},
    "attention": {**VLP, "attention": 1.0},
    "without VLP": {"hidden": 1.0, "attention": 1.0},
    "all": {**VLP, "hidden": 1.0, "attention": 1.0},
}
"""Weights by loss term or group of each run"""

TABLES: dict[str, tuple[str, ...]] = {
    "Table 3: hidden states": ("none", "img", "text", "img + text", "vl_e", "vl_d", "hidden"),
    "Table 4: attention": ("none", "self", "cross", "attention"),
    "Table 5: objectives": ("none", "attention", "hidden", "without VLP", "all"),
}
"""The paper's tables by the runs that make their rows; a run can stand in several"""

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
    options.add_argument("--steps", type=int, default=1500, help="of each run (default 1500)")
    options.add_argument("--out", type=Path, default=Path("runs/ablation_dlip"), help="where the runs go")
    args = options.parse_args()
    out: Path = args.out
    names = tuple(WEIGHTS)
    if args.smoke:
        args.seeds, args.steps, out, names = 2, 2, out / "smoke", ("none", "hidden", "attention", "all")
    overrides = [f"training.max_steps={args.steps}", "training.save_steps=500", "export=[]", "gradient_share_steps=0"]
    overrides += SMOKE if args.smoke else ()

    found: dict[str, list[Scores]] = {name: [] for name in names}
    teacher: Path | None = None
    for seed, name in product(range(args.seeds), names):
        print(f"seed {seed}, {name}", flush=True)
        folder = out / f"seed{seed}" / name.replace(" ", "_")
        stages = json.dumps([{"name": "pretrain", "weights": WEIGHTS[name]}])
        result = train(DISTILLED, folder, [*overrides, f"seed={seed}", f"stages={stages}"], teacher=teacher)
        teacher = teacher or folder / "teacher"
        found[name].append(result)
    places = [(table, name) for table, runs in TABLES.items() for name in runs if name in found]
    publish(
        "ablation_dlip",
        [{"table": table, **numbers(name, found[name], METRICS)} for table, name in places],
        judge(found),
        args,
        table=[{"table": table, **line(name, found[name], METRICS)} for table, name in places],
        note=f"Mean ± standard error; each student trained for {args.steps} steps.",
    )


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
