"""A model of this process as an `Asker`: it fills any role of the competition, or judges a benchmark."""

from __future__ import annotations

import time
from collections.abc import Container, Generator, Iterator, Sequence

import torch

from limbeck.competition.asking import Refusal, Reply, Request
from limbeck.data.examples import BrokenImage
from limbeck.evaluation.generative.model import AnsweringConfig, GenerativeModel, no_room, prepare


class LocalAsker:
    """Answers in batches of about one length, the longest first.

    How requests fall into batches depends on all that are asked, `done` ones too, and a batch is answered whole or not
    at all: so a call that goes on where another was cut off gives what that one would have given, samples included.
    """

    def __init__(self, model: GenerativeModel, name: str, batch_size: int) -> None:
        self.model = model
        self.name = name
        self.batch_size = batch_size

    @property
    def fingerprint(self) -> str:
        """Of settings and weights as they are now."""
        return self.model.fingerprint()

    def ask(
        self, requests: Sequence[Request], *, temperature: float, done: Container[str] = ()
    ) -> Generator[tuple[Request, Reply | Refusal], None, None]:
        """Every request that is not `done` with its reply, batch by batch."""
        texts = {request.id: self.model.render(request.prompt, int(request.image is not None)) for request in requests}
        lengths = {id: self.model.length(text) for id, text in texts.items()}

        def likeness(request: Request) -> tuple[bool, int, int, str]:
            return request.image is None, -request.max_new_tokens, -lengths[request.id], request.id

        ordered = sorted(requests, key=likeness)
        for batch in _batches(ordered, self.batch_size):
            if any(request.id not in done for request in batch):
                for request, reply in self._answered(batch, texts, temperature):
                    if request.id not in done:
                        yield request, reply

    def _answered(
        self, batch: Sequence[Request], texts: dict[str, str], temperature: float
    ) -> Generator[tuple[Request, Reply | Refusal], None, None]:
        """A reply to each; one by one, as far as the model's positions reach, where the longest leaves too few."""
        started, opened, images = time.perf_counter(), [], []
        for request in batch:
            try:
                images.append([request.image.open()] if request.image is not None else [])
                opened.append(request)
            except BrokenImage as error:
                yield request, Refusal(reason=str(error))
        if not opened:
            return
        inputs = prepare(self.model.processor, [texts[request.id] for request in opened], images)
        sizes = inputs["attention_mask"].sum(dim=1).tolist()
        most = max(request.max_new_tokens for request in opened)
        room = self.model.room(inputs)
        if room is not None and room < most:
            if len(opened) > 1:
                for request in opened:
                    yield from self._answered([request], texts, temperature)
                return
            if room < 1:
                yield opened[0], Refusal(reason=no_room(inputs))
                return
            most = room
        with torch.random.fork_rng(enabled=temperature > 0):
            if temperature > 0:
                torch.manual_seed(opened[0].seed)
            written = self.model.write_tokens(inputs, most, AnsweringConfig(temperature=temperature))
        seconds = (time.perf_counter() - started) / len(opened)
        for request, tokens, size in zip(opened, written, sizes, strict=True):
            kept = tokens[: request.max_new_tokens]
            yield (
                request,
                Reply(
                    text=self.model.text_of(kept),
                    cut=not kept or kept[-1] not in self.model.stop_ids,
                    prompt_tokens=int(size),
                    new_tokens=len(kept),
                    seconds=seconds,
                ),
            )


def _batches(ordered: Sequence[Request], size: int) -> Iterator[Sequence[Request]]:
    """Neighbours, those with and those without a picture apart."""
    start = 0
    while start < len(ordered):
        end = start
        blind = ordered[start].image is None
        while end < min(start + size, len(ordered)) and (ordered[end].image is None) == blind:
            end += 1
        yield ordered[start:end]
        start = end
