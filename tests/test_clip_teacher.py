"""A published CLIP as a recipe's teacher: its tokenizer, its outputs, a whole run, and what does not go together."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from tiny_clips import END, START, clip_tokenizer, write_clip
from transformers import AutoTokenizer, CLIPModel, CLIPProcessor

from limbeck.assemble.dlip import build_method, build_pairs, build_student, build_teacher, open_data, open_tokenizer
from limbeck.data.tokenizer import FolderTokenizer, SpecialIds, load_tokenizer
from limbeck.data.transform import clean_caption
from limbeck.evaluation.inputs import encode
from limbeck.models.clip import DualEncoder
from limbeck.models.convert import export
from limbeck.models.load import load_model
from limbeck.recipe import RecipeError, load_recipe
from limbeck.run import run_recipe

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
SCENES = {"source": "builtin:scenes", "count": 16, "vocabulary": 36, "size": 32}
STUDENT = {
    "family": "clip",
    "vision": {"width": 16, "layers": 1, "heads": 2, "image_size": 32, "patch_size": 8},
    "text": {"width": 16, "layers": 1, "heads": 2, "max_positions": 64},
    "embedding": 8,
}
TEXTS = ["A Red apple", "the man's  3 hats!", "", "two grey dogs run on the left of a blue cup " * 8]


@pytest.fixture(params=[True, False], ids=["eos 2", "true eos"])
def published(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The folder of a published CLIP."""
    write_clip(tmp_path / "published", legacy=request.param)
    return tmp_path / "published"


def recipe_in(folder: Path, teacher: Path | None, tokenizer: Path | dict | None = None, **changes):
    """A recipe with a teacher, by default with the teacher's own tokenizer."""
    path = tokenizer or teacher
    values = {
        "output": str(folder / "run"),
        "student": STUDENT,
        "tokenizer": path if isinstance(path, dict) else {"tokenizer": "folder", "path": str(path)},
        "data": {"train": [SCENES], "transform": {"size": 32}},
        "dlip": {"vlp": {"contrastive": {"queue_size": 0, "momentum": None}}},
        "training": {"max_steps": 2, "per_device_train_batch_size": 4, "report_to": [], "logging_steps": 1},
        "evaluation": {"data": [{**SCENES, "split": "test", "count": 6}], "retrieval": {}},
        **changes,
    }
    if teacher is not None:
        values["teacher"] = {"folders": [str(teacher)]}
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(values))
    return load_recipe(str(file))


def built(recipe):
    """Student and teacher of a recipe, as a run builds them."""
    tokenizer = open_tokenizer(recipe, open_data(recipe))
    teacher = build_teacher(recipe, tokenizer)
    student = build_student(recipe, tokenizer, teacher)
    return build_method(recipe, student, teacher)


def wordpiece_clip(folder: Path, **changes) -> Path:
    """The folder that transformers gets of a CLIP of ours with a wordpiece tokenizer."""
    folder.mkdir(exist_ok=True)
    recipe = recipe_in(folder, None, {"tokenizer": "wordpiece", "vocab_size": 400}, **changes)
    tokenizer = open_tokenizer(recipe, open_data(recipe))
    model = build_student(recipe, tokenizer, None)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1
    export(model, tokenizer, folder / "clip", task="clip")
    return folder / "clip"


def test_texts_are_read_as_transformers_processor_reads_them(published: Path) -> None:
    tokenizer = load_tokenizer(FolderTokenizer(tokenizer="folder", path=str(published)))
    plain = AutoTokenizer.from_pretrained(published)
    special = SpecialIds.of(tokenizer)
    size = len(tokenizer)
    assert special == SpecialIds(cls=size - 2, sep=size - 1, pad=size - 1, dec=None, enc=None)
    ids, mask = encode(tokenizer, TEXTS, 20, torch.device("cpu"))
    expected = plain(TEXTS, padding=True, truncation=True, max_length=20, return_tensors="pt")
    assert ids.tolist() == expected["input_ids"].tolist()
    assert mask.long().tolist() == expected["attention_mask"].tolist()
    assert max(len(row.ids) for row in tokenizer.backend_tokenizer.encode_batch_fast(TEXTS)) > 77, "nothing is cut here"
    assert encode(tokenizer, TEXTS, 77, torch.device("cpu"))[0].shape[1] == 77
    pieces = tokenizer.convert_ids_to_tokens(ids[1].tolist())
    assert pieces == [START, "the</w>", "man</w>", "'s</w>", "3</w>", "hats</w>", "!</w>", *[END] * (len(pieces) - 7)]


def test_captions_of_a_batch_are_read_the_same(published: Path, tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path, published)
    source = open_data(recipe)
    tokenizer = open_tokenizer(recipe, source)
    pairs = build_pairs(recipe, source, tokenizer)
    batch = pairs.collate([pairs[(index, 0)] for index in range(4)])
    rows = zip(batch["input_ids"], batch["attention_mask"], strict=True)
    assert {str(row[real].tolist()) for row, real in rows} <= {
        str(ids)
        for index in range(4)
        for ids in AutoTokenizer.from_pretrained(published)(
            [clean_caption(text) for text in source.examples[index].captions]
        ).input_ids
    }
    assert batch["input_ids"][~batch["attention_mask"]].unique().tolist() == [tokenizer.pad_token_id]


def test_padding_is_the_token_that_the_folder_names(tmp_path: Path) -> None:
    write_clip(tmp_path, legacy=False, pad="!")
    tokenizer = load_tokenizer(FolderTokenizer(tokenizer="folder", path=str(tmp_path)))
    special = SpecialIds.of(tokenizer)
    assert special.pad == tokenizer.get_vocab()["!"] != special.sep
    ids, _ = encode(tokenizer, ["a", "a red apple"], 20, torch.device("cpu"))
    assert ids.tolist() == AutoTokenizer.from_pretrained(tmp_path)(["a", "a red apple"], padding=True).input_ids


@torch.no_grad()
def test_outputs_are_transformers_own(published: Path) -> None:
    theirs = CLIPModel.from_pretrained(published).eval()
    model = load_model(published)
    assert isinstance(model, DualEncoder)
    tokenizer = load_tokenizer(FolderTokenizer(tokenizer="folder", path=str(published)))
    assert model.config.text.sep_token_id == SpecialIds.of(tokenizer).sep
    ids, mask = encode(tokenizer, TEXTS, 20, torch.device("cpu"))
    pixels = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    out = theirs(input_ids=ids, attention_mask=mask.long(), pixel_values=pixels)
    image, text = model.encode_image(pixels), model.encode_text(ids, mask)
    torch.testing.assert_close(image.output, out.image_embeds, **CLOSE)
    torch.testing.assert_close(text.output, out.text_embeds, **CLOSE)
    torch.testing.assert_close(text.hidden[mask], out.text_model_output.last_hidden_state[mask], **CLOSE)
    torch.testing.assert_close(image.output @ text.output.T / model.temperature, out.logits_per_image, **CLOSE)
    for row, length in enumerate(mask.sum(1).tolist()):
        alone = theirs.get_text_features(input_ids=ids[row : row + 1, :length]).pooler_output
        torch.testing.assert_close(text.output[row], alone[0] / alone.norm(), **CLOSE)


@torch.no_grad()
def test_the_text_tower_reads_from_left_to_right(published: Path) -> None:
    model = load_model(published)
    ids = torch.randint(10, 500, (2, 9), generator=torch.Generator().manual_seed(0))
    changed = ids.clone()
    changed[:, 6:] += 1
    mask = torch.ones_like(ids, dtype=torch.bool)
    before, after = (model.encode_text(each, mask).hidden for each in (ids, changed))
    assert torch.equal(before[:, :6], after[:, :6])
    assert not torch.isclose(before[:, 6:], after[:, 6:]).all(-1).any()


def test_a_whole_run_from_a_published_teacher(tmp_path: Path) -> None:
    published = tmp_path / "published"
    write_clip(published, legacy=True)
    run = run_recipe(recipe_in(tmp_path, published, export=["clip"]))
    first = json.loads((run / "log.jsonl").read_text().splitlines()[0])
    for term in ("contrastive", "hidden/image", "hidden/text", "attention/image/self", "attention/text/self"):
        assert first["terms"][term] > 0
    for place in (run, run / "teacher"):
        assert json.loads((place / "evaluation" / "summary.json").read_text())["retrieval"]["R-mean"] > 0
    folder = run / "export" / "clip"
    theirs, report = CLIPModel.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    inputs = AutoTokenizer.from_pretrained(folder)(TEXTS[:3], padding=True, return_tensors="pt")
    assert inputs["input_ids"].tolist() == AutoTokenizer.from_pretrained(published)(TEXTS[:3], padding=True).input_ids
    same = CLIPProcessor.from_pretrained(folder)(text=TEXTS[:3], padding=True, return_tensors="pt")
    assert same["input_ids"].tolist() == inputs["input_ids"].tolist()
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    model = load_model(run / "student")
    assert isinstance(model, DualEncoder)
    with torch.no_grad():
        out = theirs.eval()(**inputs, pixel_values=pixels)
        text = model.encode_text(inputs["input_ids"], inputs["attention_mask"].bool()).output
        torch.testing.assert_close(out.text_embeds, text, **CLOSE)
        torch.testing.assert_close(out.image_embeds, model.encode_image(pixels).output, **CLOSE)
    assert built(recipe_in(tmp_path, folder)).teacher is not None, "what was written is a published CLIP itself"


def test_a_student_of_the_teachers_size_starts_as_the_teacher(published: Path, tmp_path: Path) -> None:
    sizes = {"layers": 3, "heads": 4}
    student = {
        "family": "clip",
        "vision": {"width": 32, **sizes, "image_size": 32, "patch_size": 8},
        "text": {"width": 24, **sizes, "max_positions": 77},
        "initial_vision": "teacher",
        "initial_text": "teacher",
    }
    config = json.loads((published / "config.json").read_text())
    for tower, width in (("vision_config", 32), ("text_config", 24)):
        config[tower]["intermediate_size"] = 4 * width
    bigger = CLIPModel(CLIPModel.config_class.from_dict(config))
    bigger.text_model.embeddings.token_embedding.weight.data.mul_(0.2)
    bigger.save_pretrained(published)
    method = built(recipe_in(tmp_path, published, student=student))
    method.eval()
    own, teacher = method.student, method.teacher
    assert isinstance(own, DualEncoder)
    assert isinstance(teacher, DualEncoder)
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[7, 8, 9, 10]])
    with torch.no_grad():
        assert torch.equal(own.encode_image(pixels).hidden, teacher.encode_image(pixels).hidden)
        assert torch.equal(own.encode_text(ids, None).hidden, teacher.encode_text(ids, None).hidden)


def test_a_wordpiece_clip_that_went_through_transformers_teaches(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path, wordpiece_clip(tmp_path / "own"))
    assert isinstance(built(recipe).teacher, DualEncoder)
    assert (run_recipe(recipe) / "teacher" / "evaluation" / "summary.json").is_file()


BLIP = {**STUDENT, "family": "blip"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"student": BLIP}, r"student: a model of family blip begins its texts with \[DEC\] or \[ENC\]"),
        (
            {"tokenizer": {"tokenizer": "wordpiece", "vocab_size": 400}},
            r"teacher: its vocabulary size is \d+, the tokenizer's is \d+; .* path: <the teacher's folder>",
        ),
        ({"student": {"folder": "OTHER"}}, r"student: its vocabulary size .* student and teacher must have the same"),
        ({"tokenizer": {"tokenizer": "folder", "path": "nowhere"}}, r"tokenizer\.path: nowhere: no such model folder"),
        (
            {"data": {"train": [SCENES], "transform": {"size": 32}, "pairs": {"max_length": 78}}, "student": "LONG"},
            r"data\.pairs\.max_length: 78, but the teacher has 77 positions",
        ),
    ],
)
def test_what_does_not_go_together_is_said_before_training(tmp_path: Path, changes: dict, message: str) -> None:
    write_clip(tmp_path / "published", legacy=True)
    if changes.get("student") == {"folder": "OTHER"}:
        changes = {"student": {"folder": str(wordpiece_clip(tmp_path / "other"))}}
    elif changes.get("student") == "LONG":
        changes = {**changes, "student": {**STUDENT, "text": {**STUDENT["text"], "max_positions": 100}}}
    with pytest.raises(RecipeError, match=message):
        run_recipe(recipe_in(tmp_path, tmp_path / "published", **changes))
    assert not (tmp_path / "run").exists()


def test_a_blip_teacher_with_clips_tokenizer_is_refused(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path, None, {"tokenizer": "wordpiece", "vocab_size": 400}, student=BLIP)
    build_student(recipe, open_tokenizer(recipe, open_data(recipe)), None).save(tmp_path / "blip")
    clip_tokenizer().save_pretrained(tmp_path / "words")
    with pytest.raises(RecipeError, match=r"teacher: a model of family blip begins its texts .* take a BERT-like"):
        run_recipe(recipe_in(tmp_path, tmp_path / "blip", tmp_path / "words"))
