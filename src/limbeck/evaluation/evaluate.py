"""Run the tasks that a recipe asks for, and leave their rows and one summary in the run folder."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedTokenizerFast

from limbeck.config import Section
from limbeck.data.examples import Example, Source
from limbeck.data.sources import SourceConfig, load_sources
from limbeck.evaluation import captioning, retrieval, vqa
from limbeck.evaluation.captioning import CaptioningConfig, evaluate_captioning
from limbeck.evaluation.inputs import require_captions
from limbeck.evaluation.retrieval import RetrievalConfig, evaluate_retrieval
from limbeck.evaluation.vqa import NO_QUESTION, VQAConfig, common_answers, evaluate_vqa
from limbeck.models.clip import DualEncoder
from limbeck.models.fusion import FusionConfig, FusionVLM
from limbeck.writing import write_text

TaskName = Literal["retrieval", "captioning", "vqa"]


class RetrievalTask(RetrievalConfig):
    """Retrieval, and what on."""

    data: tuple[SourceConfig, ...] = ()
    """held-out sources, joined; empty: `evaluation.data`"""


class CaptioningTask(CaptioningConfig):
    """Captioning, and what on."""

    data: tuple[SourceConfig, ...] = ()
    """held-out sources, joined; empty: `evaluation.data`"""


class VQATask(VQAConfig):
    """Question answering, and what on."""

    data: tuple[SourceConfig, ...] = ()
    """held-out sources, joined; empty: `evaluation.data`"""
    answers: str | None = None
    """rank: a JSON list of answers to choose from; null: those of the training data"""


class EvaluationConfig(Section):
    """What a model is tried on. A task that is left out does not run."""

    data: tuple[SourceConfig, ...] = ()
    """held-out sources, joined, for every task that names none of its own"""
    retrieval: RetrievalTask | None = None
    captioning: CaptioningTask | None = None
    vqa: VQATask | None = None

    @property
    def tasks(self) -> dict[TaskName, RetrievalTask | CaptioningTask | VQATask]:
        """The tasks to run, in their order."""
        every: dict[TaskName, RetrievalTask | CaptioningTask | VQATask | None] = {
            "retrieval": self.retrieval,
            "captioning": self.captioning,
            "vqa": self.vqa,
        }
        return {name: task for name, task in every.items() if task is not None}


def load_tasks(config: EvaluationConfig, base: Path = Path()) -> dict[TaskName, Source]:
    """The held-out data of every task that runs; relative paths start from `base`.

    Tasks on the same sources share them. Raises DataError, and ValueError where a task has no data.
    """
    loaded: dict[str, Source] = {}
    sources: dict[TaskName, Source] = {}
    for name, task in config.tasks.items():
        data = task.data or config.data
        if not data:
            raise ValueError(f"evaluation.{name}.data: nothing to evaluate on; give it, or evaluation.data, a source")
        key = repr(data)
        if key not in loaded:
            loaded[key] = load_sources(data, base, f"evaluation.{name}.data" if task.data else "evaluation.data")
        sources[name] = loaded[key]
    return sources


def evaluate(
    model: FusionVLM | DualEncoder,
    tokenizer: PreTrainedTokenizerFast,
    config: EvaluationConfig,
    examples: Mapping[TaskName, Sequence[Example]],
    *,
    folder: Path,
    device: torch.device,
    answers: Sequence[str] | None = None,
    base: Path = Path(),
    progress: bool = True,
) -> dict[str, Any]:
    """Evaluate on every task and write ``<folder>/evaluation/<task>.jsonl`` and ``summary.json``, which is returned.

    The summary holds, for the tasks that ran, `retrieval` {TR@1, ..., R-mean}, `captioning` {BLEU-1, ..., CIDEr,
    tokenizer} and `vqa` {accuracy, by_kind}: percent, and caption metrics times 100. `answers` is what "rank" chooses
    from where the config names no file. Raises ValueError where the model cannot do a task, before any of them runs.
    """
    check_model(model, config)
    out = folder / "evaluation"
    summary: dict[str, Any] = {}
    if config.retrieval is not None:
        summary["retrieval"] = evaluate_retrieval(
            model,
            tokenizer,
            examples["retrieval"],
            config.retrieval,
            rows=out / "retrieval.jsonl",
            device=device,
            progress=progress,
        )
    if config.captioning is not None and isinstance(model, FusionVLM):
        summary["captioning"] = evaluate_captioning(
            model,
            tokenizer,
            examples["captioning"],
            config.captioning,
            rows=out / "captioning.jsonl",
            device=device,
            progress=progress,
        )
    if config.vqa is not None and isinstance(model, FusionVLM):
        summary["vqa"] = evaluate_vqa(
            model,
            tokenizer,
            examples["vqa"],
            config.vqa,
            rows=out / "vqa.jsonl",
            device=device,
            answers=answers if config.vqa.answers is None else read_answers(base / config.vqa.answers),
            progress=progress,
        )
    return _write_summary(out, summary)


def check_model(model: FusionVLM | DualEncoder, config: EvaluationConfig, role: str = "model") -> None:
    """Raise ValueError where the model lacks a part that a task needs; `role` is what the message calls it."""
    parts = model.config
    fuses = isinstance(parts, FusionConfig)
    needs: dict[TaskName, tuple[bool, str]] = {
        "retrieval": (not fuses or parts.heads, "contrastive and matching heads to rank with"),
        "captioning": (fuses and parts.decoder != "none", "decoder to write with"),
        "vqa": (
            fuses and parts.answers,
            "text encoder and answer decoder to answer with (answer_decoder: tied also wants both towers of one width)",
        ),
    }
    for task in config.tasks:
        has, part = needs[task]
        if not has:
            raise ValueError(f"evaluation.{task}: the {role} ({parts.family}) has no {part}; leave the task out")


def check_data(
    config: EvaluationConfig,
    examples: Mapping[TaskName, Sequence[Example]],
    training: Sequence[Example],
    base: Path = Path(),
) -> None:
    """Raise ValueError where a task's examples lack what it asks about, or there are no answers to rank.

    Answers are those of the `training` examples where the config names no file.
    """
    for task in ("retrieval", "captioning"):
        if task in examples:
            require_captions(examples[task], f"evaluation.{task}.data")
    if "captioning" in examples:
        repeated = [name for name, count in Counter(each.id for each in examples["captioning"]).items() if count > 1]
        if repeated:
            raise ValueError(
                f"evaluation.captioning.data: COCO's metrics want one id for each picture; several have {repeated[:2]}"
            )
    if config.vqa is None:
        return
    if not any(example.questions for example in examples["vqa"]):
        raise ValueError(f"evaluation.vqa.data: {NO_QUESTION}")
    if config.vqa.mode == "rank" and config.vqa.answers is not None:
        read_answers(base / config.vqa.answers)
    elif config.vqa.mode == "rank" and not any(common_answers([example]) for example in training):
        raise ValueError(
            "evaluation.vqa.mode: rank chooses from the answers of the training data, and there are none; "
            "name a file in evaluation.vqa.answers, or set mode: generate"
        )


def recompute(folder: Path) -> dict[str, Any]:
    """The summary anew from the rows that a run folder holds, without its model; it is written and returned."""
    out = folder / "evaluation"
    again = {"retrieval": retrieval.recompute, "captioning": captioning.recompute, "vqa": vqa.recompute}
    summary = {name: task(out / f"{name}.jsonl") for name, task in again.items() if (out / f"{name}.jsonl").is_file()}
    if not summary:
        raise ValueError(f"{out}: no rows to compute from; wanted retrieval.jsonl, captioning.jsonl or vqa.jsonl")
    return _write_summary(out, summary)


def read_answers(path: Path) -> list[str]:
    """A JSON list of answers. Raises ValueError."""
    if not path.is_file():
        raise ValueError(f"evaluation.vqa.answers: there is no file {path}")
    try:
        answers = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"evaluation.vqa.answers: {path}: not JSON: {error}") from None
    if not isinstance(answers, list) or not answers or not all(isinstance(answer, str) for answer in answers):
        found = type(answers).__name__
        raise ValueError(f"evaluation.vqa.answers: {path}: wanted a list of answers, found {found}")
    return answers


def _write_summary(out: Path, found: dict[str, Any]) -> dict[str, Any]:
    """The figures of the tasks that have some."""
    summary = {name: figures for name, figures in found.items() if figures}
    write_text(out / "summary.json", json.dumps(summary, indent=2) + "\n")
    return summary
