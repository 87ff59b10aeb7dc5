"""A CoMD recipe's run from first to last: the stages before the competition, its tunings and the rounds between them.

The run folder:

    recipe.yaml  environment.json  log.jsonl
    skipped.jsonl     records that are broken
    left_out.jsonl    conversations that are whole and not used: too long, unfit for the template
    pool.sqlite       every instruction, answer, assessment and decision (`limbeck pool`)
    stages/<stage>/   checkpoints, and the finished stage's weights; tune-1, tune-2, ... are the competition's
    rounds/<n>/       tuning n's data.jsonl, and the evaluation of the student after it
    student/          the student after the last tuning with its processor; plain transformers loads it.
                      A round that writes nothing new ends the competition: the tuning after it has an empty data.jsonl
    evaluation/  profile.json  gallery/
    teacher/          the same three of the teacher, where it is a model of this process
    competition.json  what the page tells of the rounds
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from shutil import copytree
from typing import Any, cast

from limbeck.assemble.comd import (
    RoleModels,
    Student,
    build_dialogues,
    build_method,
    build_student,
    fits,
    open_instructions,
    open_stage_sources,
)
from limbeck.assemble.shared import build_schedule
from limbeck.competition.account import account
from limbeck.competition.asking import Asker
from limbeck.competition.compete import Competition, Roles
from limbeck.competition.pool import Pool
from limbeck.competition.pool_conversations import pictures_of, regroup, seeds_of
from limbeck.competition.pool_records import Instruction
from limbeck.competition.prompts import load_prompts
from limbeck.data.conversations import ConversationSource
from limbeck.data.examples import FileImage, ImageSource, Skipped
from limbeck.data.processed import ProcessedDialogues
from limbeck.distributed import device_here, rank
from limbeck.doctor.speed import stage_arguments
from limbeck.errors import TRAINING_BEGAN
from limbeck.evaluation.generative.asker import LocalAsker
from limbeck.evaluation.generative.benchmarks import load_benchmark
from limbeck.evaluation.generative.model import GenerativeModel
from limbeck.method import Stage
from limbeck.methods.comd import CoMD
from limbeck.models.vlm import save_vlm
from limbeck.recipe.comd import CoMDRecipe, CompetitionConfig, LocalRole, tuning_name
from limbeck.runs.folder import record, refuse_another_recipe, whole_folder
from limbeck.runs.formats import Formats, cast_by
from limbeck.runs.gallery import save_picture
from limbeck.runs.writers import evaluate, examine, is_evaluated, open_saved
from limbeck.training.run import TrainingData, run_stages
from limbeck.training.skips import SkipLog
from limbeck.writing import write_text

log = logging.getLogger(__name__)

POOL = "pool.sqlite"
WAIT = 2.0
"""Seconds between two looks of a process that waits for the first one to have asked."""


def run_comd(recipe: CoMDRecipe) -> Path:
    """Do all that a recipe says, going on where an earlier call was cut off. Returns the run folder."""
    folder, started = Path(recipe.output), time.time()
    stage_arguments(recipe, recipe.all_stages)
    refuse_another_recipe(folder, recipe)
    for benchmark in recipe.evaluation.benchmarks:
        load_benchmark(benchmark, Path(recipe.data.root))
    models = RoleModels()
    judge = models.asker(recipe.judge) if recipe.judge is not None and rank() == 0 else None
    if not (folder / "student" / "config.json").exists():
        _train(recipe, folder, models, judge, started)
    TRAINING_BEGAN.set()
    if rank() == 0:
        last = folder / "rounds" / str(_last_tuning(folder, recipe.tunings)) / "evaluation"
        if last.is_dir() and not (folder / "evaluation").exists():
            copytree(last, folder / "evaluation")
        examine(folder, partial(open_saved, folder), recipe, judge)
        if recipe.evaluation.teacher and isinstance(recipe.teacher, LocalRole):
            examine(folder / "teacher", partial(models.writer, recipe.teacher), recipe, judge)
    return folder


def _train(recipe: CoMDRecipe, folder: Path, models: RoleModels, judge: Asker | None, started: float) -> None:
    """All stages and tunings, and what lies between them; in the end the student is saved."""
    stage_sources = open_stage_sources(recipe)
    instructions = open_instructions(recipe) if recipe.competition is not None else None
    student = build_student(recipe, stage_sources)
    method = build_method(recipe, student)
    roles = None
    last = _data_file(folder, _last_tuning(folder, recipe.tunings))
    if instructions is not None and rank() == 0 and not last.exists():
        roles = models.roles(recipe)  # before all that takes long; none is asked once the last tuning has its data
    data = {
        stage.name: build_dialogues(recipe, stage_sources[stage.name], student, stage.chat) for stage in recipe.stages
    }
    sources = [*{id(source): source for source in stage_sources.values()}.values()]
    sources += [instructions] if instructions is not None else []
    skipped = SkipLog(
        folder / "skipped.jsonl",
        sum(len(source.conversations) + len(source.skipped) for source in sources),
        recipe.data.max_skipped,
    )
    for source in sources:
        skipped.add(source.skipped)
    left_out = [entry for source in sources for entry in source.set_aside]
    _list_left_out(folder, [*left_out, *(entry for dataset in data.values() for entry in dataset.left_out)])
    fingerprint = "-".join(dict.fromkeys(dataset.fingerprint() for dataset in data.values()))
    record(folder, recipe, fingerprint)

    rounds = None
    if instructions is not None:
        rounds = _Rounds(recipe, folder, method, student, instructions, roles, judge)

    def training_data(stage: Stage) -> TrainingData:
        if stage.name in data:
            return TrainingData(data[stage.name], data[stage.name].collate)
        assert rounds is not None
        dataset = rounds.data(stage)
        return TrainingData(dataset, dataset.collate)

    built = Formats(student.model)
    casts = {stage.name: cast_by(recipe.training | stage.training) for stage in recipe.all_stages}

    def between(stage: Stage) -> None:
        built.restore(student.model, casts[stage.name])
        if rounds is not None:
            rounds.between(stage)

    method.between = between
    try:
        run_stages(
            method,
            training_data,
            folder=folder,
            seed=recipe.seed,
            training=recipe.training,
            schedule=build_schedule(recipe),
            skipped=skipped,
            gradient_share_steps=recipe.gradient_share_steps,
        )
    except _Over as over:
        log.warning("%s", over)
    finally:
        if rounds is not None:
            rounds.close()
    if rank() == 0:
        save_student(folder / "student", student)
        record(folder, recipe, fingerprint, seconds=time.time() - started)


class _Over(Exception):
    """The competition ends before its last tuning: a round has written nothing new."""


class _Rounds:
    """The competition of one run. The first process holds it, the others wait for the data that comes of it.

    Without `roles` nothing is asked any more: every tuning has its data.
    """

    def __init__(
        self,
        recipe: CoMDRecipe,
        folder: Path,
        method: CoMD,
        student: Student,
        instructions: ConversationSource,
        roles: Roles | None,
        judge: Asker | None,
    ) -> None:
        assert recipe.competition is not None
        self.recipe, self.folder, self.method, self.student = recipe, folder, method, student
        self.config: CompetitionConfig = recipe.competition
        self.judge = judge
        self.root = Path(recipe.data.root)
        self.images: dict[str, ImageSource] = pictures_of(instructions, self.root)
        self.numbers = {tuning_name(number): number for number in range(1, recipe.tunings + 1)}
        self.pool: Pool | None = None
        self.competition: Competition | None = None
        if rank() == 0:
            folder.mkdir(parents=True, exist_ok=True)
            self.pool = Pool.open(folder / POOL, create=True)
            self.pool.add_seeds(seeds_of(instructions, self.root))
            self._add_imported(self.pool)
        if self.pool is not None and roles is not None:
            prompts = load_prompts(self.config.prompts, self.root)
            self.competition = Competition(self.pool, roles, prompts, self.config, self.images, seed=recipe.seed)

    def data(self, stage: Stage) -> ProcessedDialogues:
        """The training set of a tuning: the instructions of its pool with the teacher's answers, regrouped.

        Raises _Over where there is none.
        """
        number = self.numbers[stage.name]
        file = _data_file(self.folder, number)
        if self.competition is not None and not file.exists():
            answered = self.competition.answer(number, everything=self.config.tuning.pool == "cache")
            lines = [asdict(each) | {"answer": said} for each, said in answered]
            write_text(file, "".join(json.dumps(line) + "\n" for line in lines))
        while not file.exists():
            time.sleep(WAIT)
        if self.pool is None:
            with Pool.open(self.folder / POOL, readonly=True) as pool:
                self._add_imported(pool)
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        if not lines:
            raise _Over(f"round {number - 1} wrote nothing new: the student of tuning {number - 1} is the last")
        answered = [
            (Instruction(**{name: line[name] for name in line if name != "answer"}), line["answer"]) for line in lines
        ]
        source = regroup(answered, self.images, name=stage.name, fits=fits(self.recipe, self.student))
        dataset = build_dialogues(self.recipe, source, self.student, self.config.tuning.chat)
        _list_left_out(self.folder, dataset.left_out)
        return dataset

    def _add_imported(self, pool: Pool) -> None:
        """The pictures of instructions that `limbeck pool import` added."""
        self.images |= {
            id: FileImage(path) for id, path in pool.images().items() if path is not None and id not in self.images
        }

    def between(self, stage: Stage) -> None:
        """What follows a tuning: the student is tried, competes, and new instructions are written."""
        number = self.numbers.get(stage.name)
        if number is None or self.pool is None:
            return
        writer = GenerativeModel(cast(Any, self.method.student).to(device_here()), self.student.processor)
        place = self.folder / "rounds" / str(number)
        if not is_evaluated(place, self.recipe):
            evaluate(place, writer, self.recipe, self.judge)
        if number < self.recipe.tunings and self.competition is not None:
            self.competition.compete(number, LocalAsker(writer, "student", self.recipe.evaluation.answering.batch_size))
        self._tell()

    def _tell(self) -> None:
        """What the page needs of the pool, with the pictures of the instructions that it shows."""
        assert self.pool is not None
        places = {number: self.folder / "rounds" / str(number) / "evaluation" for number in self.numbers.values()}
        told = account(self.pool, {number: [*place.glob("*_reviews.jsonl")] for number, place in places.items()})
        for example in (each for played in told["rounds"] for each in played["examples"]):
            if example["image"] is not None:
                file = Path("gallery") / f"instruction-{example['instruction']}.png"
                saved = save_picture(self.images[example["image"]], self.folder / file)
                example["picture"] = str(file) if saved else None
        write_text(self.folder / "competition.json", json.dumps(told, ensure_ascii=False, indent=1))

    def close(self) -> None:
        if self.pool is not None:
            self.pool.close()


def _data_file(folder: Path, number: int) -> Path:
    """What tuning `number` is trained on."""
    return folder / "rounds" / str(number) / "data.jsonl"


def _last_tuning(folder: Path, tunings: int) -> int:
    """The number of the last tuning: the one before a round that wrote nothing new, else the recipe's last."""
    empty = [n for n in range(1, tunings + 1) if (file := _data_file(folder, n)).exists() and not file.stat().st_size]
    return empty[0] - 1 if empty else tunings


def save_student(target: Path, student: Student) -> None:
    """The student with its processor, asked by its last template."""
    with whole_folder(target) as draft:
        save_vlm(student.model, student.processor, draft)


def _list_left_out(folder: Path, entries: Sequence[Skipped]) -> None:
    """Add to the list of what is not used, each entry once."""
    if rank() != 0:
        return
    file = folder / "left_out.jsonl"
    known = dict.fromkeys(file.read_text().splitlines()) if file.exists() else {}
    known |= {json.dumps({"id": entry.id, "reason": entry.reason}): None for entry in entries}
    write_text(file, "".join(f"{line}\n" for line in known))
