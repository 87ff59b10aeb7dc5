"""Evaluate a folder: retrieval, captioning and question answering of any model that limbeck loads, row by row.

    python examples/evaluate_a_folder.py [--model FOLDER] [--pictures N] [--out FOLDER]

FOLDER is a run folder or a model folder with its tokenizer; without one it is the quickstart's teacher, which comes
with limbeck. Every prediction stays as a row on disk, so that metrics can be computed again without the model.
"""

# %% What to evaluate
import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from limbeck.data.examples import Example
from limbeck.data.scenes import ScenesConfig
from limbeck.evaluation.evaluate import (
    CaptioningTask,
    EvaluationConfig,
    RetrievalTask,
    TaskName,
    VQATask,
    evaluate,
    load_tasks,
    recompute,
)
from limbeck.models.hub import shipped
from limbeck.runs.dlip import open_student

options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
options.add_argument("--model", default="limbeck:quickstart_teacher", help="a run folder or a model folder")
options.add_argument("--pictures", type=int, default=50, help="how many held-out ones")
options.add_argument("--out", type=Path, default=Path("runs/evaluate_a_folder"))
args = options.parse_args()

model, tokenizer = open_student(Path(shipped(args.model)))
print(f"{model.config.family}: {sum(parameter.numel() for parameter in model.parameters()):,} parameters")

# %% On what, and how. Your own pictures: `source: jsonl`, `karpathy`, `vqa_v2`... (docs/data.md)
config = EvaluationConfig(
    data=(ScenesConfig(source="builtin:scenes", split="test", count=args.pictures, vocabulary=48),),
    retrieval=RetrievalTask(k_test=8),
    captioning=CaptioningTask(num_beams=1, java_metrics=False),
    vqa=VQATask(mode="generate", num_beams=1),
)
examples: dict[TaskName, Sequence[Example]] = {task: source.examples for task, source in load_tasks(config).items()}

# %% Evaluate
summary = evaluate(model, tokenizer, config, examples, folder=args.out, device=torch.device("cpu"))
print(json.dumps(summary, indent=2))

# %% One row per example: what it wrote about the first picture
row = json.loads((args.out / "evaluation" / "captioning.jsonl").read_text().splitlines()[0])
print(f"{row['id']}: {row['prediction']!r}; people wrote {row['references'][0]!r}")

# %% The same metrics from the rows alone, without the model
again = recompute(args.out)
assert again["retrieval"] == summary["retrieval"]
print("computed again from the rows:", ", ".join(again))
