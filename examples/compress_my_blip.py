"""Compress my BLIP: a transformers BLIP becomes a light student that plain transformers loads.

    python examples/compress_my_blip.py [--teacher RETRIEVAL_FOLDER CAPTIONING_FOLDER] [--steps N] [--out FOLDER]

No single transformers checkpoint holds a whole BLIP: the teacher is put together from a retrieval and a captioning
folder, for example Salesforce/blip-itm-base-coco and Salesforce/blip-image-captioning-base, downloaded. Without any,
the small teacher that comes with limbeck is written as two such folders, so that every cell runs on a laptop.
"""

# %% What to compress, and how long
import argparse
from pathlib import Path

from transformers import BlipForConditionalGeneration, BlipProcessor

from limbeck.data.scenes import ScenesConfig
from limbeck.data.sources import load_source
from limbeck.data.tokenizer import BertTokenizer, FolderTokenizer
from limbeck.data.transform import TransformConfig
from limbeck.evaluation.evaluate import EvaluationConfig, RetrievalTask
from limbeck.models.convert import export
from limbeck.models.hub import shipped
from limbeck.models.load import load_model
from limbeck.recipe.dlip import DataConfig, DLIPRecipe, StudentConfig, TeacherConfig, TextChoice, VisionChoice
from limbeck.run import run_recipe
from limbeck.runs.dlip import open_student

options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
options.add_argument("--teacher", type=Path, nargs=2, metavar="FOLDER", help="a retrieval and a captioning folder")
options.add_argument("--steps", type=int, default=20, help="of training")
options.add_argument("--out", type=Path, default=Path("runs/compress_my_blip"))
args = options.parse_args()


# %% The teacher: your folders, or limbeck's small BLIP in transformers' own format
def small_blip(folder: Path) -> list[Path]:
    """A retrieval and a captioning folder, each with its tokenizer."""
    model, tokenizer = open_student(Path(shipped("limbeck:quickstart_teacher")))
    export(model, tokenizer, folder / "retrieval", task="retrieval")
    export(model, tokenizer, folder / "captioning", task="captioning")
    return [folder / "retrieval", folder / "captioning"]


folders = args.teacher or small_blip(args.out / "teacher")
teacher = load_model(*folders)
print(f"teacher: {sum(parameter.numel() for parameter in teacher.parameters()):,} parameters")

# %% The recipe, in Python: the same fields as in YAML, checked when it is made
size, patch = teacher.config.vision.image_size, teacher.config.vision.patch_size
real = args.teacher is not None
recipe = DLIPRecipe(
    output=str(args.out / "run"),
    teacher=TeacherConfig(folders=tuple(map(str, folders))),
    student=StudentConfig(
        vision=VisionChoice(scale="small", image_size=size, patch_size=patch)
        if real
        else VisionChoice(width=96, layers=4, heads=4, image_size=size, patch_size=patch),
        text=TextChoice(scale="small") if real else TextChoice(width=96, layers=2, heads=4),
    ),
    tokenizer=BertTokenizer(tokenizer="bert")
    if real
    else FolderTokenizer(tokenizer="folder", path=str(folders[1].absolute())),
    data=DataConfig(
        train=(ScenesConfig(source="builtin:scenes", count=256, size=64),),  # your own: source jsonl, karpathy, ...
        transform=TransformConfig(size=size),
    ),
    training={"per_device_train_batch_size": 8, "max_steps": args.steps, "learning_rate": 1e-3},
    evaluation=EvaluationConfig(
        data=(ScenesConfig(source="builtin:scenes", split="test", count=16, size=64),),
        retrieval=RetrievalTask(k_test=4),
    ),
    export=("captioning", "retrieval"),
)

# %% Distil: the same call goes on after a crash
run = run_recipe(recipe)
student = load_model(run / "student")
print(f"student: {sum(parameter.numel() for parameter in student.parameters()):,} parameters, in {run / 'student'}")

# %% The student in plain transformers
exported = run / "export" / "captioning"
captioner = BlipForConditionalGeneration.from_pretrained(exported).eval()
processor = BlipProcessor.from_pretrained(exported)
picture = load_source(ScenesConfig(source="builtin:scenes", split="test", count=1, size=64)).examples[0].image.open()
inputs = processor.image_processor(picture, return_tensors="pt")
written = captioner.generate(pixel_values=inputs["pixel_values"], max_new_tokens=10)
print("caption:", processor.decode(written[0], skip_special_tokens=True))
