"""A CTVLM recipe's run from first to last: train stage by stage, keep both models, try both.

The run folder:

    recipe.yaml  environment.json  log.jsonl
    skipped.jsonl     records that are broken
    left_out.jsonl    conversations that are whole and not used: too long, without a picture
    stages/<stage>/   checkpoints, and what the finished stage has trained
    student/          the duet, which answers with the large model; AutoModelForImageTextToText loads it
    evaluation/  profile.json  gallery/
    tiny/             the same four of the tiny model alone, which needs no large one
"""

from __future__ import annotations

import json
import time
from functools import partial
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from limbeck.assemble.ctvlm import (
    build_dialogues,
    build_method,
    build_models,
    last_chat,
    open_sources,
)
from limbeck.assemble.shared import build_schedule
from limbeck.assemble.writers import eye_normalization, open_tokenizer
from limbeck.data.chat import Chat
from limbeck.distributed import rank
from limbeck.doctor import refuse_unsound
from limbeck.doctor.speed import stage_arguments
from limbeck.errors import TRAINING_BEGAN
from limbeck.evaluation.generative.benchmarks import load_benchmark
from limbeck.models.duet import Duet
from limbeck.models.duet_processor import make_processor
from limbeck.recipe.ctvlm import CTVLMRecipe
from limbeck.runs.folder import record, refuse_another_recipe, whole_folder, write_recipe
from limbeck.runs.writers import examine, is_evaluated, open_saved
from limbeck.training.run import TrainingData, run_stages
from limbeck.training.skips import SkipLog
from limbeck.writing import write_text

ROLES = {"large": ".", "tiny": "tiny"}
"""Where each model's folders stand in the run folder."""


def run_ctvlm(recipe: CTVLMRecipe) -> Path:
    """Do all that a recipe says, going on where an earlier call was cut off. Returns the run folder."""
    folder, started = Path(recipe.output), time.time()
    stage_arguments(recipe, recipe.stages)
    refuse_another_recipe(folder, recipe)
    for benchmark in recipe.evaluation.benchmarks:
        load_benchmark(benchmark, Path(recipe.data.root))
    if not (folder / "student" / "config.json").exists() or not (folder / "tiny" / "student" / "config.json").exists():
        sources = open_sources(recipe)
        tokenizer = open_tokenizer(recipe.tokenizer, Path(recipe.data.root), sources.values())
        duet = build_models(recipe, tokenizer)
        method = build_method(recipe, duet, tokenizer)
        datasets = build_dialogues(recipe, sources, tokenizer, duet)
        refuse_unsound(recipe, tokenizer, method, datasets)
        different = list({id(source): source for source in sources.values()}.values())
        total = sum(len(source.conversations) + len(source.skipped) for source in different)
        skipped = SkipLog(folder / "skipped.jsonl", total, recipe.data.max_skipped)
        for source in different:
            skipped.add(source.skipped)
        left_out = {entry.id: entry for source in different for entry in source.set_aside}
        left_out |= {entry.id: entry for dataset in datasets.values() for entry in dataset.left_out}
        lines = (json.dumps({"id": entry.id, "reason": entry.reason}) + "\n" for entry in left_out.values())
        write_text(folder / "left_out.jsonl", "".join(lines))
        fingerprint = "-".join(dict.fromkeys(dataset.fingerprint() for dataset in datasets.values()))
        record(folder, recipe, fingerprint)
        run_stages(
            method,
            lambda stage: TrainingData(datasets[stage.name], datasets[stage.name].collate),
            folder=folder,
            seed=recipe.seed,
            training=recipe.training,
            schedule=build_schedule(recipe),
            skipped=skipped,
            gradient_share_steps=recipe.gradient_share_steps,
        )
        if rank() == 0:
            save_models(folder, recipe, duet, tokenizer)
            record(folder, recipe, fingerprint, seconds=time.time() - started)
    TRAINING_BEGAN.set()
    if rank() == 0:
        places = [folder / ROLES[role] for role in recipe.evaluation.models]
        if not all(is_evaluated(place, recipe) for place in places):
            write_recipe(folder, recipe)  # a finished run may be asked other things than before
        for place in places:
            examine(place, partial(open_saved, place), recipe)
    return folder


def save_models(folder: Path, recipe: CTVLMRecipe, duet: Duet, tokenizer: PreTrainedTokenizerFast) -> None:
    """Both models with their processor, asked by the last stage's template."""
    chat, normalization = Chat(tokenizer, last_chat(recipe)), eye_normalization(recipe.duet.eye)
    models: dict[str, PreTrainedModel] = {"tiny": duet.tiny, "large": duet}
    for role, model in models.items():
        settings = model.generation_config
        assert settings is not None
        settings.eos_token_id = chat.stop_id
        processor = make_processor(
            duet.config,
            tokenizer,
            chat.jinja,
            pad_to_square=recipe.data.dialogues.pad_to_square,
            image_mean=normalization.mean,
            image_std=normalization.std,
        )
        with whole_folder(folder / ROLES[role] / "student") as draft:
            processor.save_pretrained(draft)
            model.save_pretrained(draft)
