"""Open-ended question answering, by ranking a list of answers or by writing one. Accuracy in percent.

The fused question is what the answer's decoder looks at (BLIP). Ranking is BLIP's: the `candidates` answers with the
likeliest first token, then the one with the largest summed log-likelihood, under label smoothing as in training.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from limbeck.data.examples import Example, Question
from limbeck.data.transform import clean_answer, clean_caption
from limbeck.evaluation.inputs import (
    Row,
    TaskConfig,
    encode,
    evaluating,
    picture_batches,
    read_rows,
    write_rows,
)
from limbeck.evaluation.metrics.vqa import accuracy, mean_accuracy
from limbeck.losses.language import token_cross_entropy
from limbeck.models.fusion import FusionVLM, Memory
from limbeck.types import IGNORE
from limbeck.writing import write_text

NO_QUESTION = "there is no question; it needs a source with questions (vqa_v2, builtin:scenes, jsonl)"


class VQAConfig(TaskConfig):
    """How questions are answered."""

    mode: Literal["rank", "generate"] = "rank"
    candidates: int = Field(default=128, ge=1)
    """rank: answers whose whole likelihood is computed"""
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    """rank: of that likelihood"""
    pair_batch: int = Field(default=1024, ge=1)
    """rank: question-answer pairs at once"""
    num_beams: int = Field(default=3, ge=1)
    """generate: 1 writes greedily"""
    max_answer_length: int = Field(default=10, ge=3)
    """tokens of an answer, [CLS] and [SEP] included"""
    max_length: int = Field(default=35, ge=3)
    """tokens of a question"""


@dataclass(frozen=True)
class _Choices:
    """The answers to rank."""

    texts: list[str]
    ids: Tensor
    """[A, U]"""
    mask: Tensor
    """[A, U]"""


def common_answers(examples: Sequence[Example], at_least: int = 1) -> list[str]:
    """The answers given to at least so many questions, most frequent first: what `rank` chooses from.

    Take them from training data. BLIP's list of 3,128 answers for VQAv2 was made in this way.
    """
    counts = Counter(
        answer
        for example in examples
        for question in example.questions
        for answer in dict.fromkeys(clean_answer(answer) for answer in question.answers)
    )
    return [answer for answer, count in counts.most_common() if count >= at_least and answer]


def evaluate_vqa(
    model: FusionVLM,
    tokenizer: PreTrainedTokenizerFast,
    examples: Sequence[Example],
    config: VQAConfig,
    *,
    rows: Path,
    device: torch.device,
    answers: Sequence[str] | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Write one row per question, the official results file beside it, and return `accuracy` and `by_kind`.

    Questions without answers, as those of a server's test split, are in the results file and in no figure; without any
    answer the figures are empty.
    `answers` is what "rank" chooses from. Raises ValueError where it is missing, no example has a question or the model
    cannot answer, DataError where too many pictures are broken.
    """
    asked = [example for example in examples if example.questions]
    if not asked:
        raise ValueError(f"vqa: {NO_QUESTION}")
    choices = None
    if config.mode == "rank":
        if not answers:
            raise ValueError('vqa: mode "rank" chooses from a list of answers, and there is none; or choose "generate"')
        texts = [clean_answer(answer) for answer in answers]
        choices = _Choices(list(answers), *encode(tokenizer, texts, config.max_answer_length, device))
    written: list[Row] = []
    total = sum(len(example.questions) for example in asked)
    with (
        evaluating(model, device, config.bf16),
        tqdm(total=total, desc="vqa", unit="question", disable=not progress) as bar,
    ):
        for batch, pixels in picture_batches(asked, model.config.vision.image_size, config, device):
            questions = [question for example in batch for question in example.questions]
            pictures = [row for row, example in enumerate(batch) for _ in example.questions]
            texts = [clean_caption(question.text, 50) for question in questions]
            ids, mask = encode(tokenizer, texts, config.max_length, device)
            memory = model.image_memory(model.encode_image(pixels))
            fused = model.fuse(memory, ids, mask, rows=torch.tensor(pictures, device=device))
            memory = model.question_memory(fused.hidden, mask)
            if choices is None:
                given = _generate(model, tokenizer, memory, len(questions), config, device)
            else:
                given = _rank(model, memory, len(questions), choices, config)
            written += [
                _row(batch[picture], question, answer)
                for picture, question, answer in zip(pictures, questions, given, strict=True)
            ]
            bar.update(len(questions))
    write_rows(rows, written)
    results = [{"question_id": _official_id(row["id"]), "answer": row["prediction"]} for row in written]
    write_text(rows.with_name(f"{rows.stem}_results.json"), json.dumps(results, ensure_ascii=False))
    return recompute(rows)


def recompute(rows: Path) -> dict[str, Any]:
    """The metrics from the rows alone: predictions and answers are compared anew."""
    graded = [row for row in read_rows(rows) if row["answers"]]
    if not graded:
        return {}
    overall, by_kind = mean_accuracy((row["kind"], accuracy(row["prediction"], row["answers"])) for row in graded)
    return {"accuracy": overall, "by_kind": by_kind}


def _rank(model: FusionVLM, memory: Memory, count: int, choices: _Choices, config: VQAConfig) -> list[str]:
    """The likeliest of the choices for each of `count` questions."""
    start = choices.ids[:1, :1].expand(count, 1)
    first = model.answer(memory, start, None).output[:, 0].float()
    candidates = min(config.candidates, len(choices.texts))
    nearest = first.log_softmax(-1)[:, choices.ids[:, 1]].topk(candidates, dim=1).indices
    question = torch.arange(count, device=nearest.device).repeat_interleave(candidates)
    likelihood = torch.cat(
        [
            _likelihood(model, memory, rows, choices.ids[some], choices.mask[some], config.label_smoothing)
            for rows, some in zip(
                question.split(config.pair_batch), nearest.flatten().split(config.pair_batch), strict=True
            )
        ]
    )
    best = likelihood.view(count, candidates).argmax(1, keepdim=True)
    return [choices.texts[index] for index in nearest.gather(1, best).flatten().tolist()]


def _likelihood(
    model: FusionVLM, memory: Memory, rows: Tensor, ids: Tensor, mask: Tensor, label_smoothing: float
) -> Tensor:
    """Summed smoothed log-likelihood [P] of the answers [P, U] to the questions `rows` [P]."""
    longest = int(mask.sum(1).max())
    ids, mask = ids[:, :longest], mask[:, :longest]
    logits = model.answer(memory, ids, mask, rows=rows).output
    labels = ids.masked_fill(~mask, IGNORE)[:, 1:]
    return -token_cross_entropy(logits[:, :-1], labels, label_smoothing).sum(1)


def _generate(
    model: FusionVLM,
    tokenizer: PreTrainedTokenizerFast,
    memory: Memory,
    count: int,
    config: VQAConfig,
    device: torch.device,
) -> list[str]:
    start = encode(tokenizer, [""], config.max_answer_length, device)[0][:, :1].expand(count, 1)
    ids = model.generate(
        memory, start, num_beams=config.num_beams, max_new_tokens=config.max_answer_length - 1, min_new_tokens=1
    )
    return [text.strip() for text in tokenizer.batch_decode(ids[:, 1:], skip_special_tokens=True)]


def _row(example: Example, question: Question, prediction: str) -> Row:
    return {
        "id": question.id,
        "image_id": example.id,
        "kind": question.kind,
        "question": question.text,
        "prediction": prediction,
        "answers": list(question.answers),
        **({"accuracy": round(accuracy(prediction, question.answers), 6)} if question.answers else {}),
    }


def _official_id(question_id: str) -> int | str:
    """The official files want numbers."""
    return int(question_id) if question_id.isdecimal() else question_id
