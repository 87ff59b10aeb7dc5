"""What a competition gains: CoMD's Figure 4 and Tables 4 and 5 at laptop scale, over several seeds.

    python benchmarks/quality_comd.py [--smoke] [--json FILE] [--write-docs] [--seeds N] [--scale S] [--out FOLDER]

Every row is recipes/comd/laptop.yaml with one thing changed: no competition is one tuning on the first pool alone, with
as many steps as all tunings of the competition, its learning rate rising and falling once. For a seed the rows with
pre-training share it: it is not done anew. All are tried by exact truth on scenes whose combinations of things were
held out of training; the loop never sees it. The same command goes on after a crash.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from harness import Claim, parser, publish
from training_runs import Scores, gain, line, numbers, scores, surely, take_over

from limbeck.recipe import load_recipe
from limbeck.recipe.comd import CoMDRecipe
from limbeck.run import run_recipe

RECIPE = "comd/laptop"
METRICS = ("VQA",)
COMPETITION, ALONE = "competition", "no competition"
VARIANTS: dict[str, tuple[str, ...]] = {
    COMPETITION: (),
    ALONE: ("competition.tunings=1",),
    "tau 0": ("competition.tau=0.0",),
    "tau 1": ("competition.tau=1.0",),
    "without pre-training": ("stages=[]",),
}
"""What each changes; without a competition the one tuning has the steps of all (`steps_of`)"""
TRIED = 1000
"""Held-out scenes, four questions each: more than the recipe's, so that chance says less"""
FIGURE_4 = "Figure 4: after each tuning"
TABLES = "Tables 4 and 5, and no competition"


def main() -> None:
    options = parser(__doc__, timed=False)
    options.add_argument("--seeds", type=int, default=3, help="how many (default 3)")
    options.add_argument(
        "--scale", type=float, default=1.0, help="of the recipe's scenes and steps of pre-training (default 1)"
    )
    options.add_argument("--out", type=Path, default=Path("runs/quality_comd"), help="where the runs go")
    args = options.parse_args()
    out: Path = args.out
    names = tuple(VARIANTS)
    if args.smoke:
        args.seeds, args.scale, out, names = 2, 0.02, out / "smoke", names[:2]
    found: dict[str, list[Scores]] = {}
    for seed in range(args.seeds):
        for name in names:
            print(f"seed {seed}, {name}", flush=True)
            folder = run(out / f"seed{seed}", name, seed, args.scale, args.smoke)
            if name == COMPETITION:
                for number, place in enumerate(tried(folder), start=1):
                    found.setdefault(f"tuning {number}", []).append(scores(place))
                found.setdefault("teacher", []).append(scores(folder / "teacher"))
            found.setdefault(name, []).append(scores(folder))
    rows, table = [], []
    for name, seeds in found.items():
        title = TABLES if name in VARIANTS else FIGURE_4
        rows.append({"table": title, **numbers(name, seeds, METRICS)})
        table.append({"table": title, **line(name, seeds, METRICS)})
    note = f"Mean ± standard error; scenes and steps of pre-training: {args.scale:g} times those of {RECIPE}.yaml."
    publish("quality_comd", rows, judge(found), args, table=table, note=note)


def run(out: Path, name: str, seed: int, scale: float, smoke: bool) -> Path:
    """Hold one competition, or go on with it."""
    recipe = load_recipe(RECIPE, VARIANTS[name])
    assert isinstance(recipe, CoMDRecipe)
    assert recipe.competition is not None
    [pool] = recipe.competition.model_dump(mode="json")["data"]
    folder, held = out / name.replace(" ", "_"), out / COMPETITION
    changes = [*VARIANTS[name], f"seed={seed}", f"output={folder}"]
    changes += [
        f"competition.data.0.of.count={max(8, round(scale * pool['of']['count']))}",
        f"evaluation.benchmarks.0.data.count={TRIED}",
    ]
    if name == ALONE:
        changes.append(f"competition.tuning.training.max_steps={steps_of(held)}")
    if recipe.stages and name != COMPETITION:
        take_over(held, folder, [stage.name for stage in recipe.stages])
    for index, stage in enumerate(recipe.stages):
        changes.append(f"stages.{index}.training.max_steps={max(1, round(scale * stage.training['max_steps']))}")
    if smoke:
        changes += ["competition.tau=0.0", "evaluation.benchmarks.0.data.count=8", "stages.0.data.0.of.count=64"]
    run_recipe(load_recipe(RECIPE, changes))
    return folder


def tried(folder: Path) -> list[Path]:
    """Where the student's scores after each tuning are. After a round that wrote nothing the last student stays."""
    recipe = load_recipe(RECIPE)
    assert isinstance(recipe, CoMDRecipe)
    places = [folder / "rounds" / str(number) for number in range(1, recipe.tunings + 1)]
    held = [place for place in places if (place / "evaluation" / "summary.json").is_file()]
    return held + held[-1:] * (len(places) - len(held))


def steps_of(folder: Path) -> int:
    """The steps of all tunings of a run."""
    return sum(json.loads(file.read_text())["steps"] for file in (folder / "stages").glob("tune-*/finished.json"))


def judge(found: Mapping[str, Sequence[Scores]]) -> list[Claim]:
    """What is wanted, from the seeds' paired differences."""
    tunings = [name for name in found if name.startswith("tuning ")]
    claims = [
        gain(f"{later} above {earlier}", found[later], found[earlier], "VQA") for earlier, later in pairwise(tunings)
    ]
    ours = found[COMPETITION]
    claims.append(surely("competition above no competition", ours, found[ALONE], "VQA"))
    others = [name for name in VARIANTS if name in found and name not in (COMPETITION, ALONE)]
    return claims + [gain(f"competition above {name}", ours, found[name], "VQA") for name in others]


if __name__ == "__main__":
    main()
