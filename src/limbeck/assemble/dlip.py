"""A DLIP recipe's models, data and method as objects, each checked to fit the others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from pydantic import ValidationError
from transformers import PreTrainedTokenizerFast

from limbeck.config import Section
from limbeck.data.dataset import Pairs
from limbeck.data.encoding import texts_of
from limbeck.data.examples import Example, Source, check_skipped
from limbeck.data.sources import load_sources
from limbeck.data.tokenizer import MASK, FolderTokenizer, SpecialIds, load_tokenizer
from limbeck.evaluation.evaluate import TaskName, check_data, check_model
from limbeck.explain import explain
from limbeck.method import Stage
from limbeck.methods.dlip import DLIP
from limbeck.methods.passes import Model
from limbeck.models.albef import Albef
from limbeck.models.blip import Blip
from limbeck.models.clip import ClipConfig, DualEncoder
from limbeck.models.convert import convert
from limbeck.models.files import listed
from limbeck.models.fusion import FusionConfig
from limbeck.models.hub import local_model
from limbeck.models.inherit import TowerName, inherit_tower, load_tower
from limbeck.models.load import load_model
from limbeck.models.med import TextConfig
from limbeck.models.refit import refit
from limbeck.models.scales import TEXT, VISION
from limbeck.models.vision import VisionConfig
from limbeck.recipe.dlip import DLIPRecipe, StudentConfig, TeacherConfig, TextChoice, VisionChoice
from limbeck.recipe.shared import RecipeError
from limbeck.training.freeze import freeze


def open_data(recipe: DLIPRecipe) -> Source:
    """The training examples. Raises DataError where too much of them is broken."""
    source = load_sources(recipe.data.train, Path(recipe.data.root), "data.train")
    total = len(source.examples) + len(source.skipped)
    check_skipped(source.skipped, total, recipe.data.max_skipped, source.name)
    return source


def open_tokenizer(recipe: DLIPRecipe, source: Source | None) -> PreTrainedTokenizerFast:
    """The recipe's tokenizer; a `wordpiece` one is trained on the texts of `source`."""
    config = recipe.tokenizer
    if isinstance(config, FolderTokenizer):
        with _named("tokenizer.path"):
            config = config.model_copy(update={"path": str(local_model(config.path))})
    return load_tokenizer(config, None if source is None else texts_of(source.examples))


def build_pairs(recipe: DLIPRecipe, source: Source, tokenizer: PreTrainedTokenizerFast) -> Pairs:
    """The training dataset."""
    return Pairs(source, tokenizer, recipe.data.transform, recipe.data.pairs, seed=recipe.seed)


def check_texts(method: DLIP, pairs: Pairs) -> None:
    """Raise RecipeError where a stage learns from captions or questions that examples do not have."""
    for index, stage in enumerate(method.stages() if not pairs.collate.with_questions else ()):
        terms = method.question_terms(stage)
        if terms:
            reason = "no example of data.train has one"
            if not pairs.config.questions:
                reason = "data.pairs.questions is 0; set how many a picture is asked, such as data.pairs.questions: 1"
            raise RecipeError(f"stages.{index}.weights train {listed(list(terms))} on questions, but {reason}")
    for index, stage in enumerate(method.stages() if pairs.without_caption else ()):
        terms = method.caption_terms(stage)
        if terms:
            raise RecipeError(
                f"data.train: {pairs.without_caption} of {len(pairs.source.examples)} examples have no caption, and "
                f"stages.{index}.weights train {listed(list(terms))} on captions; weigh only what needs none, such as "
                f"stages.{index}.weights: {{answer: 1}}, or leave their source out"
            )


def check_evaluation(
    recipe: DLIPRecipe,
    tasks: Mapping[TaskName, Source],
    training: Sequence[Example],
    student: Model,
    teacher: Model | None,
) -> None:
    """Raise RecipeError where the evaluation after training would fail for its data, the student or the teacher."""
    try:
        check_data(recipe.evaluation, examples_of(tasks), training, Path(recipe.data.root))
        check_model(student, recipe.evaluation, "student")
        if teacher is not None:
            check_model(teacher, recipe.evaluation, "teacher")
    except ValueError as error:
        raise RecipeError(str(error)) from None


def examples_of(tasks: Mapping[TaskName, Source]) -> dict[TaskName, Sequence[Example]]:
    """What each task is evaluated on."""
    return {name: source.examples for name, source in tasks.items()}


def build_teacher(recipe: DLIPRecipe, tokenizer: PreTrainedTokenizerFast) -> Model | None:
    """The teacher, frozen, in the precision that the recipe asks for; None without one."""
    if recipe.teacher is None:
        return None
    teacher = open_teacher(recipe.teacher).requires_grad_(False)
    _check_vocabulary("teacher", teacher, tokenizer)
    return teacher.to(getattr(torch, recipe.teacher.dtype))


def open_teacher(config: TeacherConfig) -> Model:
    """The teacher in full precision, for pictures of the size that the recipe asks for."""
    with _named("teacher.folders"):
        teacher = load_model(*config.folders)
    return teacher if config.image_size is None else refit(teacher, image_size=config.image_size)


def build_student(recipe: DLIPRecipe, tokenizer: PreTrainedTokenizerFast, teacher: Model | None) -> Model:
    """The student with its first weights: random, slices of the teacher, pretrained towers, or a trained folder.

    The recipe's seed is set here, so that random weights are the same with and without a teacher.
    """
    torch.manual_seed(recipe.seed)
    config = recipe.student
    if config.folder is not None:
        student = _continued(config.folder, config, tokenizer)
        _check_mask(recipe, student, tokenizer)
        return student
    assert config.vision is not None
    assert config.text is not None
    student = _new_student(config, config.vision, config.text, tokenizer, teacher)
    _check_mask(recipe, student, tokenizer)
    origins: dict[TowerName, str] = {"vision": config.initial_vision, "text": config.initial_text}
    for tower, origin in origins.items():
        if origin == "teacher":
            if teacher is None:
                raise RecipeError(f"student.initial_{tower}: teacher: the recipe has no teacher to take slices of")
            with _named(f"student.initial_{tower}"):
                inherit_tower(student, teacher, tower)
        elif origin != "random":
            with _named(f"student.initial_{tower}"):
                load_tower(student, origin, tower)
    return student


def build_method(recipe: DLIPRecipe, student: Model, teacher: Model | None) -> DLIP:
    """The recipe's method over its models. Raises RecipeError where they do not fit each other, or the data."""
    size = student.config.vision.image_size
    if recipe.data.transform.size != size:
        raise RecipeError(f"data.transform.size: {recipe.data.transform.size}, but the student's image_size is {size}")
    _check_length(recipe, "student", student)
    if teacher is not None:
        _check_length(recipe, "teacher", teacher)
        _check_fit(student, teacher)
    for index, task in enumerate(recipe.export):
        try:
            convert(student, task)
        except ValueError as error:
            raise RecipeError(f"export.{index}: {error}") from None
    stages = [Stage(**stage.model_dump()) for stage in recipe.stages]
    try:
        method = DLIP(recipe.dlip, student, teacher, stages)
    except ValueError as error:
        raise RecipeError(str(error)) from None
    for index, stage in enumerate(stages):
        try:
            freeze(method, stage.trainable, (*method.teachers(), *method.followers()))
        except ValueError as error:
            raise RecipeError(f"stages.{index}.{error}") from None
    return method


def _new_student(
    config: StudentConfig,
    vision: VisionChoice,
    text: TextChoice,
    tokenizer: PreTrainedTokenizerFast,
    teacher: Model | None,
) -> Model:
    """A model of random first weights."""
    with _named("student.vision"):
        vision_config = VisionConfig(
            **_sizes("student.vision", vision, VISION),
            patch_size=vision.patch_size,
            image_size=vision.image_size,
            drop_path=vision.drop_path,
        )
    with _named("student.text"):
        text_config = TextConfig(
            **_sizes("student.text", text, TEXT),
            vocab_size=len(tokenizer),
            max_positions=text.max_positions,
            fusion_layers=text.fusion_layers,
            dropout=text.dropout,
            **_special_ids("student", config.family, tokenizer),
        )
    parts = {"vision": vision_config, "text": text_config, "embedding": config.embedding}
    with _named("student"):
        if config.family == "clip":
            return DualEncoder(_for_slices(ClipConfig(**parts), config, teacher))
        fusion = FusionConfig(family=config.family, answer_decoder=config.answer_decoder, **parts)
        return Blip(fusion) if config.family == "blip" else Albef(fusion)


def _for_slices(own: ClipConfig, config: StudentConfig, teacher: Model | None) -> ClipConfig:
    """A student that starts from slices of a CLIP takes its activation and its norms' epsilon too."""
    if teacher is None or not isinstance(teacher.config, ClipConfig):
        return own
    values, theirs = own.model_dump(), teacher.config.model_dump()
    for tower, origin in (("vision", config.initial_vision), ("text", config.initial_text)):
        if origin == "teacher":
            values[tower]["norm_eps"] = theirs[tower]["norm_eps"]
            values["activation"] = theirs["activation"]
    return ClipConfig.model_validate(values)


@contextmanager
def _named(key: str) -> Iterator[None]:
    """Say which key of the recipe it is that a model cannot be built or read by."""
    try:
        yield
    except ValidationError as error:
        raise RecipeError(f"{key}: {'; '.join(explain(error, Section))}") from None
    except (ValueError, FileNotFoundError) as error:
        raise RecipeError(f"{key}: {error}") from None


def _sizes(where: str, choice: VisionChoice | TextChoice, table) -> dict[str, int]:
    """Width, layers and heads: the scale's, with what the recipe changes."""
    row = table[choice.scale]._asdict() if choice.scale is not None else {}
    given = {"width": choice.width, "layers": choice.layers, "heads": choice.heads}
    sizes = row | {name: value for name, value in given.items() if value is not None}
    missing = [name for name in given if name not in sizes]
    if missing:
        raise RecipeError(
            f"{where}: give `scale` ({', '.join(table)}) or all of width, layers, heads; {missing} missing"
        )
    return sizes


def _check_vocabulary(role: str, model: Model, tokenizer: PreTrainedTokenizerFast) -> None:
    """A model reads ids by its own table: size and special tokens must be the tokenizer's.

    A CLIP never looks at padding, and knows no [DEC] and no [ENC]: of special tokens only the last must be the same.
    """
    family, text = model.config.family, model.config.text
    special = _special_ids(role, family, tokenizer)
    names = ["sep_token_id"] if family == "clip" else list(special)
    pairs = [("vocabulary size", text.vocab_size, len(tokenizer))]
    pairs += [(name, text.model_dump()[name], special[name]) for name in names]
    for name, own, given in pairs:
        if own != given:
            raise RecipeError(
                f"{role}: its {name} is {own}, the tokenizer's is {given}; they must be one: "
                f"tokenizer: {{tokenizer: folder, path: <the {role}'s folder>}} takes its own, and student and teacher "
                "must have the same"
            )


def _special_ids(role: str, family: str, tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """The tokenizer's special tokens under the names of `TextConfig`."""
    special = SpecialIds.of(tokenizer)
    ids = {"pad_token_id": special.pad, "sep_token_id": special.sep}
    if special.dec is not None and special.enc is not None:
        return ids | {"dec_token_id": special.dec, "enc_token_id": special.enc}
    if family != "clip":
        raise RecipeError(
            f"{role}: a model of family {family} begins its texts with [DEC] or [ENC], which a CLIP's tokenizer does "
            "not have; take a BERT-like tokenizer, or models of family clip"
        )
    return ids


def _check_length(recipe: DLIPRecipe, role: str, model: Model) -> None:
    """Texts are cut to a number of tokens for which every model must have positions (a published CLIP has 77)."""
    tasks = recipe.evaluation
    lengths = {"data.pairs.max_length": recipe.data.pairs.max_length}
    if tasks.retrieval is not None:
        lengths["evaluation.retrieval.max_length"] = tasks.retrieval.max_length
    if tasks.captioning is not None:
        lengths["evaluation.captioning.max_length"] = tasks.captioning.max_length
    if tasks.vqa is not None:
        lengths["evaluation.vqa.max_length"] = tasks.vqa.max_length
        lengths["evaluation.vqa.max_answer_length"] = tasks.vqa.max_answer_length
    positions = model.config.text.max_positions
    for where, length in lengths.items():
        if length > positions:
            raise RecipeError(f"{where}: {length}, but the {role} has {positions} positions for a text")


def _check_mask(recipe: DLIPRecipe, student: Model, tokenizer: PreTrainedTokenizerFast) -> None:
    """ALBEF's masked language loss hides words behind the tokenizer's own [MASK]."""
    used = any(not stage.weights or stage.weights.get("masked_language") for stage in recipe.stages)
    given, own = recipe.dlip.vlp.mask_token_id, tokenizer.get_vocab().get(MASK)
    if student.config.family == "albef" and used and given != own:
        found = f"[MASK] is {own}" if own is not None else "vocabulary has no [MASK]; leave masked_language out"
        raise RecipeError(f"dlip.vlp.mask_token_id: {given}, but the tokenizer's {found}")


def _check_fit(student: Model, teacher: Model) -> None:
    """Distillation compares tokens one by one: both towers must cut a picture into the same patches."""
    own, other = student.config.vision, teacher.config.vision
    if own.image_size != other.image_size:
        raise RecipeError(
            f"student.vision.image_size: {own.image_size}, but the teacher's is {other.image_size}; "
            f"teacher.image_size={own.image_size} uses the teacher at the student's size"
        )
    if own.patch_size != other.patch_size:
        raise RecipeError(
            f"student.vision.patch_size: {own.patch_size}, which cuts a picture into {own.tokens - 1} tokens; the "
            f"teacher's {other.patch_size} into {other.tokens - 1}; both must be equal"
        )


def _continued(folder: str, config: StudentConfig, tokenizer: PreTrainedTokenizerFast) -> Model:
    """A trained model to go on with, changed as the recipe asks."""
    with _named("student.folder"):
        student = load_model(folder)
    _check_vocabulary("student", student, tokenizer)
    with _named("student"):
        return refit(
            student,
            image_size=config.image_size,
            drop_path=config.drop_path,
            answer_decoder=config.answer_decoder == "separate",
        )
