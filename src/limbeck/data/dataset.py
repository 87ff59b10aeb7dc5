"""Pairs: a map-style torch dataset over a source; collate; the order of an epoch.

What item `(index, epoch)` gives depends on nothing else but the seed, so workers, processes and a resumed run agree.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NotRequired

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from limbeck.config import Section
from limbeck.data.encoding import CHUNK, Encoder
from limbeck.data.examples import BrokenImage, DataError, Skipped, Source, number_of
from limbeck.data.normalization import CLIP, Normalization
from limbeck.data.substitutes import whole_item
from limbeck.data.tokenizer import SpecialIds
from limbeck.data.transform import TransformConfig, clean_answer, clean_caption, transform
from limbeck.types import Batch


class PairsConfig(Section):
    """What a dataset takes from each example."""

    captions: Literal["one", "all"] = "one"
    """one, drawn anew in each epoch: as many items as pictures; or all, each an item of its own"""
    questions: int = Field(default=0, ge=0)
    """most questions drawn per item"""
    prompt: str = ""
    """stands before every caption ("a picture of ")"""
    max_words: int = Field(default=30, ge=1)
    """of a caption; a question may have 50"""
    max_length: int = Field(default=40, ge=3)
    """tokens of any text, [CLS] and [SEP] included; what is longer is cut"""
    cache: bool = False
    """keep every picture in memory, size x size x 3 bytes each; only where the transform leaves nothing to chance"""


class LoadedBatch(Batch):
    """A batch, and what had to be left out of it."""

    skipped: NotRequired[list[Skipped]]


@dataclass(frozen=True)
class Asked:
    """One question: token ids, its different answers, and the share of people who gave each."""

    ids: np.ndarray
    answers: tuple[np.ndarray, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True)
class Item:
    """One encoded picture-text pair."""

    image: np.ndarray
    """uint8 [3, R, R]"""
    image_id: int
    caption: np.ndarray
    """int32 [T]"""
    questions: tuple[Asked, ...]
    draws: np.ndarray
    """float32 [T, 2], uniform in [0, 1)"""
    skipped: tuple[Skipped, ...] = ()
    """what was broken where this item stands in its place"""


class Pairs(Dataset[Item]):
    """Encoded examples by index or (index, epoch). Texts are encoded once, at the start.

    Another item, drawn by seed, epoch and index, takes the place of one whose picture does not decode, and carries it
    along as `skipped`.
    """

    def __init__(
        self,
        source: Source,
        tokenizer: PreTrainedTokenizerFast,
        transform: TransformConfig,
        config: PairsConfig | None = None,
        seed: int = 0,
    ) -> None:
        self.source = source
        self.config = config or PairsConfig()
        self.transform = transform
        self.seed = seed
        if self.config.cache and not transform.is_deterministic:
            raise DataError("cache: true keeps finished pictures, so crop, flip and randaugment must be off")
        self.without_caption = 0
        """examples whose caption is empty, since they have none"""
        self._read_texts(tokenizer)
        self.collate = Collator(
            pad=SpecialIds.of(tokenizer).pad, with_questions=self.config.questions > 0 and len(self._questions) > 0
        )
        self._images: np.ndarray | None = None
        self._broken: dict[int, Skipped] = {}
        if self.config.cache:
            self._fill_cache()

    def __len__(self) -> int:
        return len(self._captions) if self.config.captions == "all" else len(self.source.examples)

    def __getitem__(self, key: int | tuple[int, int]) -> Item:
        index, epoch = (key, 0) if isinstance(key, int) else key
        if not 0 <= index < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        chance = f"{self.seed}/{epoch}/{index}"
        item, skipped = whole_item(lambda each: self._item(each, epoch), index, len(self), chance)
        return replace(item, skipped=skipped) if skipped else item

    def _item(self, index: int, epoch: int) -> Item | Skipped:
        rng = random.Random(f"{self.seed}/{epoch}/{index}")
        if self.config.captions == "all":
            caption = index
            index = int(np.searchsorted(self._first_caption, caption, side="right")) - 1
        else:
            first, end = self._first_caption[index : index + 2]
            caption = int(first) + int(rng.random() * int(end - first))
        image = self._image(index, rng)
        if isinstance(image, Skipped):
            return image
        return Item(
            image=image,
            image_id=int(self._image_ids[index]),
            caption=self._captions[caption],
            questions=self._ask(index, rng),
            draws=np.array([(rng.random(), rng.random()) for _ in self._captions[caption]], np.float32),
        )

    def fingerprint(self) -> str:
        """A hash of every id and text and of the settings: equal for equal data, on any machine."""
        settings = f"{self.config.model_dump_json()}{self.transform.model_dump_json()}{self.seed}{len(self)}"
        return hashlib.sha256(f"{self._texts_hash}{settings}".encode()).hexdigest()[:16]

    def _read_texts(self, tokenizer: PreTrainedTokenizerFast) -> None:
        """Encode all captions, questions and answers, and hash them; one pass over the examples."""
        config, examples = self.config, self.source.examples
        captions, questions = Encoder(tokenizer, config.max_length), Encoder(tokenizer, config.max_length)
        answers = Encoder(tokenizer, config.max_length)
        first_caption, first_question, first_answer = [0], [0], [0]
        image_ids, weights = [], []
        digest = hashlib.sha256()
        starts = range(0, len(examples), CHUNK)
        for start in tqdm(starts, desc=f"reading {self.source.name}", disable=len(starts) < 5):
            for example in examples[start : start + CHUNK]:
                digest.update(repr((example.id, example.captions, example.questions)).encode())
                image_ids.append(number_of(example.image.key))
                self.without_caption += not example.captions
                captions.add(
                    [config.prompt + clean_caption(text, config.max_words) for text in example.captions or ("",)]
                )
                first_caption.append(len(captions))
                if config.questions:
                    questions.add([clean_caption(question.text, 50) for question in example.questions])
                    for question in example.questions:
                        given = Counter(clean_answer(answer) for answer in question.answers)
                        answers.add(list(given))
                        weights += [number / given.total() for number in given.values()]
                        first_answer.append(len(answers))
                first_question.append(len(questions))
        self._captions, self._questions, self._answers = captions.done(), questions.done(), answers.done()
        self._first_caption, self._first_question = np.asarray(first_caption), np.asarray(first_question)
        self._first_answer, self._weights = np.asarray(first_answer), np.asarray(weights, np.float32)
        self._image_ids = np.asarray(image_ids, np.int64)
        self._texts_hash = digest.hexdigest()

    def _fill_cache(self) -> None:
        examples, size = self.source.examples, self.transform.size
        images = np.zeros((len(examples), 3, size, size), np.uint8)
        for index in tqdm(range(len(examples)), desc=f"decoding {self.source.name}", unit="picture"):
            image = self._image(index, random.Random(0))
            if isinstance(image, Skipped):
                self._broken[index] = image
            else:
                images[index] = image
        self._images = images

    def _image(self, index: int, rng: random.Random) -> np.ndarray | Skipped:
        if self._images is not None:
            return self._broken[index] if index in self._broken else self._images[index]
        example = self.source.examples[index]
        try:
            return transform(example.image.open(), self.transform, rng)
        except BrokenImage as error:
            return Skipped(id=example.id, reason=str(error))

    def _ask(self, index: int, rng: random.Random) -> tuple[Asked, ...]:
        """Different questions about one picture, with all their answers."""
        first, end = self._first_question[index : index + 2]
        remaining = list(range(first, end))
        asked = []
        while remaining and len(asked) < self.config.questions:
            question = remaining.pop(int(rng.random() * len(remaining)))
            rows = range(*self._first_answer[question : question + 2])
            answers = tuple(self._answers[row] for row in rows)
            asked.append(Asked(self._questions[question], answers, tuple(float(self._weights[row]) for row in rows)))
        return tuple(asked)


@dataclass(frozen=True)
class Collator:
    """Items to a batch: pads texts to the longest, normalises pictures, reports what was broken."""

    pad: int
    with_questions: bool = False

    def __call__(self, items: Sequence[Item]) -> LoadedBatch:
        input_ids, attention_mask = self._padded([item.caption for item in items])
        draws = torch.zeros(*attention_mask.shape, 2)
        draws[attention_mask] = torch.from_numpy(np.concatenate([item.draws for item in items]))
        batch = LoadedBatch(
            pixel_values=normalize(torch.from_numpy(np.stack([item.image for item in items]))),
            input_ids=input_ids,
            attention_mask=attention_mask,
            image_id=torch.tensor([item.image_id for item in items]),
            draws=draws,
        )
        if self.with_questions:
            asked = [(row, asked) for row, item in enumerate(items) for asked in item.questions]
            batch["question_ids"], batch["question_mask"] = self._padded([question.ids for _, question in asked])
            batch["question_image"] = torch.tensor([row for row, _ in asked], dtype=torch.long)
            answers = [
                (row, ids, weight)
                for row, (_, question) in enumerate(asked)
                for ids, weight in zip(question.answers, question.weights, strict=True)
            ]
            batch["answer_ids"], batch["answer_mask"] = self._padded([ids for _, ids, _ in answers])
            batch["answer_question"] = torch.tensor([row for row, _, _ in answers], dtype=torch.long)
            batch["answer_weight"] = torch.tensor([weight for _, _, weight in answers], dtype=torch.float32)
        if skipped := [entry for item in items for entry in item.skipped]:
            batch["skipped"] = skipped
        return batch

    def _padded(self, texts: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
        """Token ids int64 [rows, longest] and the boolean mask of those that are real."""
        lengths = np.array([len(text) for text in texts], np.int64)
        mask = np.arange(lengths.max(initial=1)) < lengths[:, None]
        ids = np.full(mask.shape, self.pad, np.int64)
        if texts:
            ids[mask] = np.concatenate(texts)
        return torch.from_numpy(ids), torch.from_numpy(mask)


def normalize(pictures: Tensor, by: Normalization = CLIP) -> Tensor:
    """uint8 [B, 3, R, R] to float32 with a mean and deviation."""
    scale = torch.tensor([1 / (255 * std) for std in by.std]).view(3, 1, 1)
    shift = torch.tensor([-mean / std for mean, std in zip(by.mean, by.std, strict=True)]).view(3, 1, 1)
    return pictures.to(torch.float32).mul_(scale).add_(shift)
