"""Answers to prompts, in a file that grows as the batches finish and goes on after a kill.

Prompts go through the processor's chat template and are answered in batches of about one length, the longest first.
An item with choices is not answered in words: its answer is the letter of the choice that the model finds likeliest.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers import BatchFeature, ProcessorMixin

from limbeck.data.examples import BrokenImage, DataError, Skipped, check_skipped
from limbeck.evaluation.generative.items import Item
from limbeck.evaluation.generative.likelihood import log_likelihoods, spoken_tokens
from limbeck.evaluation.generative.model import AnsweringConfig, GenerativeModel, no_room, prepare
from limbeck.evaluation.inputs import Row, write_rows
from limbeck.writing import write_text


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What came of the items."""

    rows: list[Row]
    """one for each item that could be answered, in the order of the items"""
    skipped: tuple[Skipped, ...]


def answer_all(
    model: GenerativeModel,
    items: Sequence[Item],
    rows: Path,
    *,
    max_new_tokens: int,
    config: AnsweringConfig | None = None,
    progress: bool = True,
    name: str = "answers",
) -> Answers:
    """Answer every item and leave one row for each in `rows`: its `row`, `id`, `prompt`, `prediction`, `answered_by`.

    Where items have choices, rows also hold the `log_probabilities` of each (natural, summed over its tokens) and its
    number of `tokens`. Rows are appended as batches finish. A second call keeps those that the same model wrote to the
    same prompts with the same settings, drops a line that a kill has torn, and answers the rest; in the end the rows
    stand in the order of the items. Raises ValueError where two items have one id, some have choices and some not, or
    a whole line is no row, DataError where too many pictures are broken or prompts leave no room for an answer.
    """
    config = config or AnsweringConfig()
    if not items or len({item.id for item in items}) < len(items):
        raise ValueError(f"{name}: wanted items with an id of their own each, found {len(items)}, some of one id")
    items = model.shown(items)
    asked = _asked(model, items)
    marks = _marks(model.fingerprint(), asked, max_new_tokens, config)
    wanted = {item.id: mark for item, mark in zip(items, marks)}
    made = ("prediction", "log_probabilities", "tokens") if items[0].choices else ("prediction",)
    done = {
        row["id"]: {field: row[field] for field in made}
        for row in finished_rows(rows, {"id", "prediction", "answered_by"})
        if (row["id"], row["answered_by"]) in wanted.items()
    }

    def line(index: int) -> str:
        return json.dumps(row_of(items[index]), ensure_ascii=False) + "\n"

    def row_of(item: Item) -> Row:
        return {"id": item.id, **item.row, "prompt": item.prompt, **done[item.id], "answered_by": wanted[item.id]}

    write_text(rows, "".join(line(index) for index, item in enumerate(items) if item.id in done))
    batches = _batches(asked, [index for index, item in enumerate(items) if item.id not in done], config.batch_size)
    skipped: list[Skipped] = []
    with (
        rows.open("a", encoding="utf-8") as file,
        tqdm(total=len(items), initial=len(done), desc=name, unit="answer", disable=not progress) as bar,
    ):
        for batch, answers, broken in _answered(model, items, asked, batches, max_new_tokens, config):
            skipped += broken
            done |= {items[index].id: answer for index, answer in zip(batch, answers, strict=True)}
            file.write("".join(line(index) for index in batch))
            file.flush()
            bar.update(len(batch) + len(broken))
    check_skipped(skipped, len(items), config.max_skipped, name)
    answered = [row_of(item) for item in items if item.id in done]
    write_rows(rows, answered)
    return Answers(rows=answered, skipped=tuple(skipped))


def answers_to(
    model: GenerativeModel,
    items: Sequence[Item],
    *,
    max_new_tokens: int,
    config: AnsweringConfig | None = None,
) -> list[str]:
    """The answers alone, in the order of the items, without a file. Raises DataError where a picture is broken or a
    prompt leaves no room for an answer."""
    config, items = config or AnsweringConfig(), model.shown(items)
    asked = _asked(model, items)
    batches = _batches(asked, range(len(items)), config.batch_size)
    found: dict[int, str] = {}
    for batch, answers, broken in _answered(model, items, asked, batches, max_new_tokens, config):
        if broken:
            raise DataError(str(broken[0]))
        found |= {index: answer["prediction"] for index, answer in zip(batch, answers, strict=True)}
    return [found[index] for index in range(len(items))]


def finished_rows(rows: Path, fields: set[str]) -> Iterator[Row]:
    """The rows that are there. A last line without its end was torn by a kill and does not count.

    Raises ValueError where a whole line is no JSON object with all `fields`.
    """
    if not rows.is_file():
        return
    with rows.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith("\n"):
                return
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{rows} line {number}: not JSON: {error}; remove the line or the file") from None
            if not isinstance(row, dict) or not fields <= row.keys():
                raise ValueError(f"{rows} line {number}: no row of answers; remove the file or choose another name")
            yield row


@dataclass(frozen=True)
class _Asked:
    """An item as the model reads it."""

    texts: tuple[str, ...]
    """the prompt, or the prompt with each choice"""
    spoken: tuple[int, ...]
    """tokens of each choice; empty where the model writes"""
    pictures: int
    length: int
    """tokens of the longest text, each picture counted as one"""


def _asked(model: GenerativeModel, items: Sequence[Item]) -> list[_Asked]:
    if len({bool(item.choices) for item in items}) > 1:
        raise ValueError("some items have choices and some have none; evaluate them apart")
    asked = []
    for item in items:
        pictures = len(item.images)
        begun = model.render(item.prompt, pictures)
        texts = tuple(model.render_answered(item.prompt, pictures, choice) for choice in item.choices)
        spoken = tuple(spoken_tokens(model, begun, text) for text in texts)
        texts = texts or (begun,)
        length = model.length(max(texts, key=len))
        asked.append(_Asked(texts=texts, spoken=spoken, pictures=pictures, length=length))
    return asked


def _batches(asked: Sequence[_Asked], todo: Sequence[int], size: int) -> list[list[int]]:
    """Items of one number of pictures together, the longest first: memory runs out at once or never.

    A batch has about `size` texts, so a quarter of that many items with four choices each, but at least one.
    """
    batches: list[list[int]] = []
    size = max(1, size // max((len(asked[index].texts) for index in todo), default=1))
    for pictures in sorted({asked[index].pictures for index in todo}, reverse=True):
        same = [index for index in todo if asked[index].pictures == pictures]
        same.sort(key=lambda index: (-asked[index].length, index))
        batches += [same[start : start + size] for start in range(0, len(same), size)]
    return batches


def _answered(
    model: GenerativeModel,
    items: Sequence[Item],
    asked: Sequence[_Asked],
    batches: Sequence[list[int]],
    max_new_tokens: int,
    config: AnsweringConfig,
) -> Iterator[tuple[list[int], list[Row], list[Skipped]]]:
    """Of each batch: the items answered, what was made of each, and what was left out.

    A batch whose longest prompt leaves too few of the model's positions is answered item by item, each as far as they
    reach, so that no answer depends on the prompts beside it.
    """
    prepared = _Prepared(model.processor, items, asked, batches)
    loader = DataLoader(prepared, None, num_workers=config.workers, collate_fn=_as_it_is, generator=torch.Generator())
    for batch, inputs, broken in loader:
        if inputs is None:
            yield batch, [], broken
            continue
        ranked = bool(asked[batch[0]].spoken)
        wanted = 0 if ranked else max_new_tokens
        room = model.room(inputs)
        room = wanted if room is None else min(room, wanted)
        if room < wanted and len(batch) > 1:
            yield [], [], broken
            alone, here = [[index] for index in batch], config.model_copy(update={"workers": 0})
            yield from _answered(model, items, asked, alone, max_new_tokens, here)
        elif room < min(wanted, 1):
            yield [], [], [*broken, Skipped(id=items[batch[0]].id, reason=no_room(inputs))]
        elif ranked:
            yield batch, _ranked(model, inputs, [asked[index].spoken for index in batch]), broken
        else:
            with torch.random.fork_rng(enabled=config.temperature > 0):
                if config.temperature > 0:
                    torch.manual_seed(random.Random(f"{config.seed} {items[batch[0]].id}").getrandbits(63))
                written = model.write(inputs, room, config)
            yield batch, [{"prediction": text} for text in written], broken


def _ranked(model: GenerativeModel, inputs: BatchFeature, spoken: Sequence[tuple[int, ...]]) -> list[Row]:
    """The likeliest choice of each item, the first of those that are even, and how likely each is."""
    found = iter(log_likelihoods(model, inputs, [tokens for each in spoken for tokens in each]))
    answers = []
    for each in spoken:
        values = [round(next(found), 5) for _ in each]
        letter = ascii_uppercase[values.index(max(values))]
        answers.append({"prediction": letter, "log_probabilities": values, "tokens": list(each)})
    return answers


class _Prepared(Dataset[tuple[list[int], BatchFeature | None, list[Skipped]]]):
    """Batches as the model takes them; pictures are opened here, in a worker where there are any."""

    def __init__(
        self, processor: ProcessorMixin, items: Sequence[Item], asked: Sequence[_Asked], batches: Sequence[list[int]]
    ) -> None:
        self._processor = processor
        self._items = items
        self._asked = asked
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, number: int) -> tuple[list[int], BatchFeature | None, list[Skipped]]:
        kept: list[int] = []
        texts: list[str] = []
        images: list[list[Image.Image]] = []
        broken: list[Skipped] = []
        for index in self._batches[number]:
            try:
                opened = [image.open() for image in self._items[index].images]
            except BrokenImage as error:
                broken.append(Skipped(id=self._items[index].id, reason=str(error)))
                continue
            kept.append(index)
            texts += self._asked[index].texts
            images += [opened] * len(self._asked[index].texts)
        if not kept:
            return kept, None, broken
        side = "right" if self._asked[kept[0]].spoken else "left"
        return kept, prepare(self._processor, texts, images, padding_side=side), broken


def _as_it_is(batch: Any) -> Any:
    return batch


def _marks(fingerprint: str, asked: Sequence[_Asked], max_new_tokens: int, config: AnsweringConfig) -> list[str]:
    """What an answer depends on, as a short mark: model, settings that matter, and text."""
    settings = config.model_dump_json(exclude={"batch_size", "workers", "max_skipped"})
    if asked[0].spoken:
        settings, max_new_tokens = "likelihood", 0
    start = hashlib.blake2b(f"{fingerprint} {settings} {max_new_tokens} ".encode(), digest_size=8)
    marks = []
    for each in asked:
        digest = start.copy()
        digest.update("\0".join(each.texts).encode())
        marks.append(digest.hexdigest())
    return marks
