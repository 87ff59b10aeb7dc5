"""What distillation is worth on the built-in data: teacher, plain student and distilled student over several seeds.

    python benchmarks/quality_dlip.py [--smoke] [--json FILE] [--write-docs] [--seeds N] [--steps N]
                                      [--batch-size N] [--scenes N] [--out FOLDER]

The recipes are the quickstart's own: the same data, order, first weights and steps, with the teacher's terms and
without, each student at the settings that suit it; the steps are 2,000, not 1,250. Everything is measured on
scenes whose combinations of things were held out of training: four times as many as the quickstart's, so that chance
says less, and others, which no setting was chosen by. Among so many scenes a caption often belongs to several, word for
word, and is right for each of them. The same command goes on after a crash.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import product
from math import sqrt
from pathlib import Path

from harness import Claim, parser, publish
from training_runs import Scores, lasting, line, numbers, scores, spreads, train

PLAIN, DISTILLED = "dlip/quickstart_plain", "dlip/quickstart"
KEPT = 0.95
"""Share of the teacher's score that the distilled student is to keep"""
FRESH = 1
"""Seed of the scenes that are tried; the quickstart's have 0"""
SMOKE = (
    "gradient_share_steps=0",
    'data.train=[{"source": "builtin:scenes", "split": "train", "count": 64, "vocabulary": 48}]',
    'evaluation.data=[{"source": "builtin:scenes", "split": "test", "count": 12, "vocabulary": 48}]',
    "evaluation.retrieval.k_test=4",
)
"""The whole path on next to nothing"""


def main() -> None:
    options = parser(__doc__, timed=False)
    options.add_argument("--seeds", type=int, default=3, help="how many (default 3)")
    options.add_argument(
        "--steps", type=int, default=2000, help="of each student (default 2000; the quickstart has 1250)"
    )
    options.add_argument("--batch-size", type=int, help="of every stage (default the recipe's own)")
    options.add_argument("--scenes", type=int, default=1000, help="to try on (default 1000; the quickstart has 250)")
    options.add_argument("--out", type=Path, default=Path("runs/quality_dlip"), help="where the runs go")
    args = options.parse_args()
    out: Path = args.out
    if args.smoke:
        args.seeds, args.steps, args.batch_size, out = 2, 4, 8, out / "smoke"
    tried = [f"evaluation.data.0.{name}={value}" for name, value in (("count", args.scenes), ("seed", FRESH))]
    tried.append("evaluation.retrieval.by_wording=true")
    overrides = ["training.save_steps=500", "export=[]", *(SMOKE if args.smoke else tried)]

    examined = out / "seed0" / Path(DISTILLED).name / "teacher"
    found: dict[str, list[Scores]] = {PLAIN: [], DISTILLED: []}
    for seed, recipe in product(range(args.seeds), found):
        print(f"seed {seed}, {recipe}", flush=True)
        stages = json.dumps(lasting(recipe, args.steps, args.batch_size))
        folder = out / f"seed{seed}" / Path(recipe).name
        teacher = examined if recipe == DISTILLED and seed else None
        changes = [*overrides, f"seed={seed}", f"stages={stages}"]
        found[recipe].append(train(recipe, folder, changes, teacher=teacher))
    plain, distilled = found[PLAIN], found[DISTILLED]
    taught_by = scores(examined)
    models = {"teacher": [taught_by], "plain": plain, "distilled": distilled}
    publish(
        "quality_dlip",
        [numbers(name, seeds) for name, seeds in models.items()],
        judge(taught_by, plain, distilled),
        args,
        table=[line(name, seeds) for name, seeds in models.items()],
        note=f"Mean ± standard error; each student trained for {args.steps} steps"
        + (f" of {args.batch_size} pairs." if args.batch_size else "."),
    )


def judge(teacher: Scores, plain: Sequence[Scores], distilled: Sequence[Scores]) -> list[Claim]:
    """For every metric: is distilled above plain by more than two standard errors, and near the teacher?"""
    claims = []
    for name, score in spreads(distilled).items():
        other = spreads(plain)[name]
        gain = score.mean - other.mean
        errors = None
        if score.error is not None and other.error is not None:
            errors = sqrt(score.error**2 + other.error**2)
        claims.append(
            Claim(
                name=f"{name}: distilled above plain",
                wanted="more than 2 standard errors of the difference",
                measured=f"{gain:+.2f}" + (", one seed" if errors is None else f", standard error {errors:.2f}"),
                holds=errors is not None and gain > 2 * errors,
            )
        )
        kept = score.mean / teacher[name] if teacher[name] else None
        claims.append(
            Claim(
                name=f"{name}: share of the teacher's score",
                wanted=f"at least {KEPT:.0%}",
                measured="the teacher's is 0" if kept is None else f"{kept:.1%}",
                holds=kept is not None and kept >= KEPT,
            )
        )
    return claims


if __name__ == "__main__":
    main()
