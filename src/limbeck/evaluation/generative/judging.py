"""A judge's reviews of answers, in a file that grows as they come and goes on after a kill."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import Field
from tqdm import tqdm

from limbeck.competition.asking import Asker, Refusal, Request
from limbeck.competition.replies import scores
from limbeck.data.examples import number_of
from limbeck.evaluation.generative.answering import finished_rows
from limbeck.evaluation.generative.items import CommonConfig
from limbeck.evaluation.inputs import Row, write_rows

ATTEMPTS = 3
"""How often a judge is asked whose scores cannot be read."""


class JudgedConfig(CommonConfig):
    """Fields of every benchmark whose answers are read by a judge."""

    judge_temperature: float = Field(default=0.2, ge=0)
    """of sampling the review"""
    judge_new_tokens: int = Field(default=1024, ge=1)
    """most of a review"""


def review_all(
    judge: Asker,
    rows: Sequence[Row],
    prompt_of: Callable[[Row], str],
    path: Path,
    config: JudgedConfig,
    *,
    progress: bool = True,
    name: str = "reviews",
) -> list[Row]:
    """The rows, each with the `judge`'s name and its `review`: None, with `refused`, where it would not write one.

    A review in which no scores can be read is asked for again, up to ATTEMPTS times; the last stays. Every review is
    written to `path` as it comes, with its cost, and a second call asks only for what the same judge has not yet said
    of the same prompts. What it refused is asked again then. EndpointGone comes through; what was said is kept.
    """
    prompts = {row["id"]: prompt_of(row) for row in rows}
    marks = {id: _mark(judge.fingerprint, prompt, config) for id, prompt in prompts.items()}
    said: dict[tuple[str, int], Row] = {
        (review["id"], review["attempt"]): review
        for review in finished_rows(path, {"id", "attempt", "review", "reviewed_by"})
        if marks.get(review["id"]) == review["reviewed_by"]
    }
    latest = {id: said[id, attempt] for id, attempt in sorted(said)}
    refused: dict[str, str] = {}
    write_rows(path, said.values())
    with (
        path.open("a", encoding="utf-8") as file,
        tqdm(total=len(rows), desc=name, unit="review", disable=not progress) as bar,
    ):
        bar.update(sum(scores(review["review"]) is not None for review in latest.values()))
        for attempt in range(1, (ATTEMPTS if config.judge_temperature > 0 else 1) + 1):
            due = [id for id in prompts if attempt == 1 or _unread(said.get((id, attempt - 1)))]
            done = {id for id in due if (id, attempt) in said}
            requests = [
                Request(
                    id=id,
                    prompt=prompts[id],
                    image=None,
                    max_new_tokens=config.judge_new_tokens,
                    seed=number_of(f"{id} {attempt}") % 2**31,
                )
                for id in due
            ]
            if len(done) == len(due):
                continue
            for request, reply in judge.ask(requests, temperature=config.judge_temperature, done=done):
                if isinstance(reply, Refusal):
                    refused[request.id] = reply.reason
                    continue
                review = {
                    "id": request.id,
                    "attempt": attempt,
                    "judge": judge.name,
                    "review": reply.text,
                    "prompt_tokens": reply.prompt_tokens,
                    "new_tokens": reply.new_tokens,
                    "seconds": round(reply.seconds, 4),
                    "reviewed_by": marks[request.id],
                }
                said[request.id, attempt] = latest[request.id] = review
                file.write(json.dumps(review, ensure_ascii=False) + "\n")
                file.flush()
                bar.update(scores(reply.text) is not None)
    places = {id: place for place, id in enumerate(prompts)}
    write_rows(path, [said[key] for key in sorted(said, key=lambda key: (places[key[0]], key[1]))])
    return [_reviewed(row, judge.name, latest.get(row["id"]), refused.get(row["id"])) for row in rows]


def _unread(review: Row | None) -> bool:
    """Whether there is a review and it has no scores."""
    return review is not None and scores(review["review"]) is None


def _reviewed(row: Row, judge: str, review: Row | None, refused: str | None) -> Row:
    said = {"judge": judge, "review": None if review is None else review["review"]}
    return {**row, **said, **({"refused": refused} if refused is not None else {})}


def _mark(fingerprint: str, prompt: str, config: JudgedConfig) -> str:
    """What a review depends on, as a short mark: judge, settings and prompt."""
    text = f"{fingerprint} {config.judge_temperature} {config.judge_new_tokens} {prompt}"
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
