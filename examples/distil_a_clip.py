"""Distil a CLIP: a dual encoder of half the width, which plain transformers loads as CLIPModel.

    python examples/distil_a_clip.py [--steps N] [--out FOLDER]

Teacher and student are trained here on built-in emoji pictures. To distil a published CLIP, leave out the first recipe,
name the CLIP's folder or hub name under `teacher: folders` and in `tokenizer: {tokenizer: folder, path: ...}`, and give
the student its picture and patch size; docs/dlip.md has such a recipe.
"""

# %% How long
import argparse
import json
from pathlib import Path

import torch
from transformers import AutoTokenizer, CLIPModel, CLIPProcessor

from limbeck.data.builtin import OpenMojiConfig, load_openmoji
from limbeck.models.load import load_model
from limbeck.recipe import load_recipe
from limbeck.run import run_recipe

options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
options.add_argument("--steps", type=int, default=40, help="of training, for teacher and student each")
options.add_argument("--out", type=Path, default=Path("runs/distil_a_clip"))
args = options.parse_args()
out = args.out.resolve()
out.mkdir(parents=True, exist_ok=True)

# %% The teacher's recipe. CLIP contrasts pictures and texts within a batch: no momentum encoders, no queue
(out / "teacher.yaml").write_text(f"""
output: {out}/teacher
student:
  family: clip
  vision: {{width: 64, layers: 4, heads: 4, patch_size: 8, image_size: 32}}
  text: {{width: 64, layers: 2, heads: 4, max_positions: 40, dropout: 0.0}}
  embedding: 64
tokenizer: {{tokenizer: wordpiece, vocab_size: 1000}}
data:
  train: [{{source: "builtin:openmoji", size: 32, limit: 800}}]
  transform: {{size: 32}}
  pairs: {{cache: true}}
dlip: {{vlp: {{contrastive: {{queue_size: 0, momentum: null}}}}}}
training: {{per_device_train_batch_size: 64, max_steps: {args.steps}, learning_rate: 2.0e-3}}
evaluation:
  data: [{{source: "builtin:openmoji", split: test, size: 32, limit: 100}}]
  retrieval: {{}}
""")
teacher = run_recipe(load_recipe(str(out / "teacher.yaml")))

# %% The student's recipe says only what differs: whom it learns from, and how small it is
(out / "student.yaml").write_text(f"""
base: teacher.yaml
output: {out}/student
teacher: {{folders: ["{teacher}/student"]}}
student:
  vision: {{width: 32, layers: 2, heads: 2}}
  text: {{width: 32, layers: 1, heads: 2}}
export: [clip]
""")
student = run_recipe(load_recipe(str(out / "student.yaml")))

# %% Both on emojis that neither has seen; chance is 1 in 100
for name, folder in (("teacher", teacher), ("student", student)):
    found = json.loads((folder / "evaluation" / "summary.json").read_text())["retrieval"]
    size = sum(parameter.numel() for parameter in load_model(folder / "student").parameters())
    print(f"{name}: {size:,} parameters, text found first {found['TR@1']:.1f} %, among ten {found['TR@10']:.1f} %")

# %% The student in plain transformers: which words fit the picture?
clip = CLIPModel.from_pretrained(student / "export" / "clip").eval()
processor = CLIPProcessor.from_pretrained(student / "export" / "clip")
example = load_openmoji(OpenMojiConfig(source="builtin:openmoji", split="test", size=32)).examples[0]
words = [example.captions[1], "flag of japan"]
pixels = processor.image_processor(example.image.open(), return_tensors="pt")["pixel_values"]
tokens = AutoTokenizer.from_pretrained(student / "export" / "clip")(words, padding=True, return_tensors="pt")
with torch.no_grad():
    shares = clip(**tokens, pixel_values=pixels).logits_per_image.softmax(-1)[0].tolist()
print("transformers finds", " and ".join(f"{share:.0%} {text!r}" for share, text in zip(shares, words)))
