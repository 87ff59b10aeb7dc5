"""Distillation on real photographs, Flickr8k: teacher, plain and distilled students, all trained here from scratch.

    python benchmarks/quality_photos.py [--size laptop|full] [--smoke] [--json FILE] [--write-docs] [--seeds N]
                                        [--teacher-steps N] [--steps N] [--out FOLDER]

`laptop` is what two cores can train, `full` a teacher of ViT-Base scale with students Middle and Small for a GPU. The
photographs are found through $LIMBECK_DATA, or in ../shared/data beside the checkout. Their source had squashed every
photo to 224 x 224 pixels, so that aspect ratios are lost. They are for research only and not redistributable.
The same command goes on after a crash.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from harness import Claim, parser, publish
from training_runs import Scores, gain, line, numbers, scores, train

NOTE = (
    "Photographs: Flickr8k (Hodosh, Young, Hockenmaier, 2013), 4,000 to train on, the official 1,000 to test on; their "
    "source had squashed every photo to 224 x 224 pixels; for research only, not redistributable."
)
TWO_TOWERS = {"TR@1": 11.5, "TR@5": 30.5, "TR@10": 41.7, "IR@1": 14.6, "IR@5": 36.7, "IR@10": 49.8}
"""What is wanted of the teacher: frozen EfficientNet-Lite0 features (ImageNet), ridge regression into the space of
MiniLM-L6 sentence embeddings, fitted on the same 4,000 photographs, tried on the same 1,000."""

Tower = Mapping[str, Any]
Models = Mapping[str, tuple[Tower, Tower]]

MODELS: dict[str, Models] = {
    "laptop": {
        "teacher": ({"scale": "tiny", "image_size": 96}, {"scale": "tiny", "max_positions": 64}),
        "student": (
            {"width": 96, "layers": 6, "heads": 3, "image_size": 96},
            {"width": 96, "layers": 2, "heads": 6, "max_positions": 64},
        ),
    },
    "full": {
        "teacher": ({"scale": "base"}, {"scale": "base"}),
        "middle": ({"scale": "middle"}, {"scale": "middle"}),
        "small": ({"scale": "small"}, {"scale": "small"}),
    },
    "smoke": {
        "teacher": (
            {"width": 32, "layers": 2, "heads": 2, "image_size": 32},
            {"width": 32, "layers": 2, "heads": 2, "max_positions": 64},
        ),
        "student": (
            {"width": 16, "layers": 2, "heads": 1, "image_size": 32},
            {"width": 16, "layers": 1, "heads": 2, "max_positions": 64},
        ),
    },
}
"""Image and text tower of each model"""

SETTINGS: dict[str, dict[str, Any]] = {
    "laptop": {"pixels": 96, "batch": 64, "learning_rate": 1e-3, "k_test": 16, "workers": 0, "limits": (None, None)},
    "full": {"pixels": 224, "batch": 128, "learning_rate": 3e-4, "k_test": 128, "workers": 12, "limits": (None, None)},
    "smoke": {"pixels": 32, "batch": 8, "learning_rate": 1e-3, "k_test": 4, "workers": 0, "limits": (48, 12)},
}


def main() -> None:
    options = parser(__doc__, timed=False)
    options.add_argument("--size", choices=("laptop", "full"), default="laptop")
    options.add_argument("--seeds", type=int, default=1, help="how many, of the students (default 1)")
    options.add_argument("--teacher-steps", type=int, default=3000, help="of the teacher (default 3000)")
    options.add_argument("--steps", type=int, default=3000, help="of each student (default 3000)")
    options.add_argument("--out", type=Path, help="where the runs go (default runs/quality_photos/SIZE)")
    args = options.parse_args()
    data = find_photos()
    if data is None:
        print("skipped: no photos_captions/captions.jsonl; LIMBECK_DATA names the folder of the real data")
        return
    if args.smoke:
        args.size, args.seeds, args.teacher_steps, args.steps = "smoke", 1, 2, 2
    out: Path = args.out or Path("runs") / "quality_photos" / args.size
    models = MODELS[args.size]
    print(NOTE, flush=True)

    steps = [f"training.max_steps={args.teacher_steps}"]
    teacher = out / "teacher"
    train(write_recipe(out, "teacher", args.size, data, models["teacher"]), teacher, steps)
    found: dict[str, list[Scores]] = {"teacher": [scores(teacher)]}
    for seed in range(args.seeds):
        for name in (name for name in models if name != "teacher"):
            for role in ("plain", "distilled"):
                print(f"seed {seed}, {name}, {role}", flush=True)
                recipe = write_recipe(
                    out, f"{name}_{role}", args.size, data, models[name], teacher, distilled=role == "distilled"
                )
                overrides = [f"training.max_steps={args.steps}", f"seed={seed}"]
                examined = teacher if role == "distilled" else None
                result = train(recipe, out / f"seed{seed}" / f"{name}_{role}", overrides, teacher=examined)
                found.setdefault(f"{name}, {role}", []).append(result)
    publish(
        f"quality_photos_{args.size}",
        [numbers(name, seeds) for name, seeds in found.items()],
        judge(found),
        args,
        table=[line(name, seeds) for name, seeds in found.items()],
        note=f"{NOTE} The teacher trained for {args.teacher_steps} steps, each student for {args.steps}. The two "
        "pretrained towers of the last claims are not of this run: EfficientNet-Lite0 (ImageNet) and MiniLM-L6, joined "
        "by ridge regression on the same 4,000 photographs.",
    )


def find_photos() -> Path | None:
    """The folder of the real data, None where it is not."""
    folder = Path(os.environ.get("LIMBECK_DATA") or Path(__file__).parents[2] / "shared" / "data")
    return folder if (folder / "photos_captions" / "captions.jsonl").is_file() else None


def write_recipe(
    out: Path,
    name: str,
    size: str,
    data: Path,
    towers: tuple[Tower, Tower],
    teacher: Path | None = None,
    *,
    distilled: bool = False,
) -> str:
    """An ordinary recipe, written to `out/recipes`; its path. Students take the `teacher` run's tokenizer."""
    settings = SETTINGS[size]
    train_limit, test_limit = settings["limits"]
    photos = str(data / "photos_captions" / "captions.jsonl")
    trained: list[dict[str, Any]] = [
        {"source": "jsonl", "path": photos, "where": {"split": "train"}, "limit": train_limit}
    ]
    coco = data / "coco_photos" / "annotations.jsonl"
    if size == "full" and coco.is_file():
        trained.append({"source": "jsonl", "path": str(coco)})
    tokenizer: dict[str, Any] = {"tokenizer": "wordpiece", "vocab_size": 4000}
    if teacher is not None:
        tokenizer = {"tokenizer": "folder", "path": str(teacher / "student")}
    vision, text = towers
    recipe = {
        "output": str(out / name),
        "student": {"family": "blip", "vision": vision, "text": text},
        "tokenizer": tokenizer,
        "data": {
            "train": trained,
            "transform": {"size": settings["pixels"], "crop": [0.5, 1.0], "flip": True, "randaugment": size == "full"},
        },
        "dlip": {"vlp": {"contrastive": {"queue_size": 0, "momentum": None}}},
        "training": {
            "per_device_train_batch_size": settings["batch"],
            "learning_rate": settings["learning_rate"],
            "weight_decay": 0.05,
            "warmup_steps": 0.1,
            "lr_scheduler_type": "cosine",
            "bf16": True,
            "dataloader_num_workers": settings["workers"],
            "save_steps": 500,
        },
        "gradient_share_steps": 0,
        "evaluation": {
            "data": [{"source": "jsonl", "path": photos, "where": {"split": "test"}, "limit": test_limit}],
            "retrieval": {"k_test": settings["k_test"]},
            "captioning": {"num_beams": 3},
        },
    }
    if distilled:
        recipe["teacher"] = {"folders": [str(teacher / "student" if teacher else None)], "dtype": "bfloat16"}
    path = out / "recipes" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return str(path)


def judge(found: Mapping[str, Sequence[Scores]]) -> list[Claim]:
    """Each student's gain by distillation, and the teacher beside the two pretrained towers."""
    claims = []
    for name in (name.removesuffix(", distilled") for name in found if name.endswith(", distilled")):
        plain, distilled = found[f"{name}, plain"], found[f"{name}, distilled"]
        claims += [gain(f"{name}, distilled above plain", distilled, plain, metric) for metric in distilled[0]]
    teacher = found["teacher"][0]
    for metric, reference in TWO_TOWERS.items():
        claims.append(
            Claim(
                name=f"teacher, {metric}: above the two pretrained towers",
                wanted=f"above {reference}",
                measured=f"{teacher[metric]:.1f}",
                holds=teacher[metric] > reference,
            )
        )
    return claims


if __name__ == "__main__":
    main()
