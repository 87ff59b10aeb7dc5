"""What the evaluators share: texts and pictures as the model reads them, its evaluation mode, and the file of rows."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedTokenizerFast

from limbeck.config import Section
from limbeck.data.dataset import normalize
from limbeck.data.examples import BrokenImage, Example, Skipped, check_skipped
from limbeck.data.tokenizer import SpecialIds
from limbeck.data.transform import TransformConfig, transform
from limbeck.writing import write_text

Row = dict[str, Any]
"""What is kept of one example, as JSON."""


class TaskConfig(Section):
    """What every task has."""

    batch_size: int = Field(default=64, ge=1)
    """pictures at once"""
    bf16: bool = False
    """compute in bfloat16 where that is safe (autocast); about twice as fast where the hardware has it"""
    workers: int = Field(default=0, ge=0)
    """processes that decode pictures; 0 decodes in this one"""
    max_skipped: float = Field(default=0.01, ge=0, le=1)
    """share of broken pictures past which the evaluation stops; what is skipped counts nowhere"""


class _Opened(Dataset[tuple[int, Tensor | Skipped]]):
    """Pictures by index as uint8 [3, size, size]."""

    def __init__(self, examples: Sequence[Example], size: int) -> None:
        self.examples = examples
        self.config = TransformConfig(size=size)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> tuple[int, Tensor | Skipped]:
        example = self.examples[index]
        try:
            return index, torch.from_numpy(transform(example.image.open(), self.config, random.Random(0)))
        except BrokenImage as error:
            return index, Skipped(id=example.id, reason=str(error))


def picture_batches(
    examples: Sequence[Example], size: int, config: TaskConfig, device: torch.device
) -> Iterator[tuple[list[Example], Tensor]]:
    """Examples and their normalised pictures [B, 3, size, size], in order; a broken one is left out.

    Raises DataError, after the last picture, where more than `config.max_skipped` of them are broken.
    """
    loader = DataLoader(
        _Opened(examples, size), config.batch_size, num_workers=config.workers, collate_fn=list, shuffle=False
    )
    skipped: list[Skipped] = []
    for batch in loader:
        skipped += [picture for _, picture in batch if isinstance(picture, Skipped)]
        kept = [(index, picture) for index, picture in batch if isinstance(picture, Tensor)]
        if kept:
            pixels = normalize(torch.stack([picture for _, picture in kept])).to(device)
            yield [examples[index] for index, _ in kept], pixels
    check_skipped(skipped, len(examples), config.max_skipped, "evaluation")


def require_captions(examples: Sequence[Example], where: str) -> None:
    """Raise ValueError where there is no example, or one without a caption."""
    bare = [example.id for example in examples if not example.captions]
    if bare or not len(examples):
        raise ValueError(f"{where}: every example needs a caption; without one: {bare[:5] or 'there is no example'}")


def encode(
    tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], max_length: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Texts to token ids [B, T] int64 and their boolean mask [B, T]; [CLS] first, [SEP] last, the longest cut."""
    special = SpecialIds.of(tokenizer)
    encoded = [encoding.ids for encoding in tokenizer.backend_tokenizer.encode_batch_fast(list(texts))]
    rows = [ids if len(ids) <= max_length else [*ids[: max_length - 1], special.sep] for ids in encoded]
    lengths = np.array([len(ids) for ids in rows])
    mask = np.arange(lengths.max()) < lengths[:, None]
    padded = np.full(mask.shape, special.pad, np.int64)
    padded[mask] = np.concatenate(rows)
    return torch.from_numpy(padded).to(device), torch.from_numpy(mask).to(device)


@contextmanager
def evaluating(model: nn.Module, device: torch.device, bf16: bool) -> Iterator[None]:
    """The model without dropout and gradients, in bfloat16 if asked; every module's mode is put back afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    precision: AbstractContextManager[Any] = torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext()
    try:
        with torch.inference_mode(), precision:
            yield
    finally:
        for module in training:
            module.training = True


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """One JSON object a line; the file is there whole or not at all."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_rows(path: Path) -> list[Row]:
    """The rows that an evaluator wrote. Raises ValueError where the file holds none."""
    with path.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines if line.strip()]
    if not rows:
        raise ValueError(f"{path}: there are no rows, so nothing was evaluated")
    return rows
