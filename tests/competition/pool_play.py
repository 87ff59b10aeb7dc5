"""A competition of scripted models over a pool, whole; `python pool_play.py POOL LOG` plays it in a process to kill.

What the models say depends on what they are asked alone; the order in which they are asked is another each time.
"""

import hashlib
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from limbeck.competition.novelty import Novelty
from limbeck.competition.pool import Pool
from limbeck.competition.pool_records import (
    TEACHER_ROUND,
    Answer,
    Answerer,
    Assessment,
    Augmentation,
    Author,
    Cost,
    Decision,
    Instruction,
    Picture,
    Round,
    Seed,
    Written,
)
from limbeck.competition.pool_tasks import pairs, scores, unanswered, unassessed, unwritten

TEACHER, ASSESSOR, AUGMENTOR = (Author("big", f"prompt of {role}") for role in ("answer", "assessor", "augmentor"))
ATTEMPTS = 3
ROUNDS = 2
T = TypeVar("T")


def seeds(count: int = 12) -> list[Seed]:
    """Three instructions for each picture."""
    return [
        Seed(
            name=f"mix.json[{number}]",
            picture=Picture(id=f"{number // 3}.jpg", path=f"/photos/{number // 3}.jpg"),
            text=f"What is thing {word(number)} beside {word(number, 'b')}?",
            answer=f"true answer {number}",
        )
        for number in range(count)
    ]


def word(*parts: object) -> str:
    """A word that stands for some values."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:6]


def number(limit: int, *parts: object) -> int:
    """A number under a limit that stands for some values."""
    return int(word(*parts), 16) % limit


def student(round: int) -> Author:
    """The student that a round has trained."""
    return Author(f"small {round}", TEACHER.prompt)


def open_pool(path: Path) -> Pool:
    """A pool with all that is known before anything is asked."""
    pool = Pool.open(path, create=True)
    pool.add_seeds(seeds())
    for author in (TEACHER, ASSESSOR, AUGMENTOR, *map(student, range(1, ROUNDS + 1))):
        pool.add_model(author.model, f"the {author.model} one")
        pool.add_prompt(author.prompt, "role", author.prompt)
    return pool


class Play:
    """The scripted models; each call is a line of the log."""

    def __init__(self, pool: Pool, log: Path) -> None:
        self.pool = pool
        self.log = log

    def whole(self) -> None:
        """All rounds."""
        for round in range(1, ROUNDS + 1):
            self.answer("teacher", TEACHER_ROUND, TEACHER, self.pool.instructions(round=round - 1))
            everything = self.pool.instructions(before=round)
            self.answer("student", round, student(round), everything)
            decided = self.assess(round, everything)
            chosen = {each.instruction for each in decided if each.chosen}
            self.augment(round, [each for each in everything if each.id in chosen])
            self.close(round, everything, decided)

    def answer(self, role: Answerer, round: int, author: Author, among: Sequence[Instruction]) -> None:
        for each in shuffled(unanswered(self.pool, role, round, author, among)):
            cost = self.call(role, round, each.id)
            said = f"{role} {author.model} says {word(author.model, each.text)}"
            self.pool.add(
                Answer(instruction=each.id, role=role, round=round, author=author, text=said, cut=False, cost=cost)
            )

    def assess(self, round: int, everything: Sequence[Instruction]) -> tuple[Decision, ...]:
        both = pairs(self.pool, round, TEACHER, student(round), everything)
        while wanted := unassessed(self.pool, round, ASSESSOR, both, ATTEMPTS):
            for pair, order, attempt in shuffled(wanted):
                id = pair.instruction.id
                cost = self.call("assessor", round, id, order, attempt)
                read = number(10, round, id, order, attempt) < 7
                found = float(1 + number(9, order, id)), float(1 + number(8, order, id, 2))
                self.pool.add(
                    Assessment(
                        round=round,
                        instruction=id,
                        order=order,
                        about=pair.about,
                        attempt=attempt,
                        author=ASSESSOR,
                        text=f"{found}" if read else "hm",
                        scores=found if read else None,
                        cost=cost,
                    )
                )
        means = scores(self.pool, round, ASSESSOR, both)
        found = []
        for each in everything:
            teacher, learner = means.get(each.id, (0.0, 0.0))
            difficulty = (abs(learner - teacher) + 1) / max(learner, teacher) if each.id in means else None
            kind = "unparsed" if difficulty is None else "hard" if difficulty >= 0.33 else "easy"
            found.append(
                Decision(
                    round=round, instruction=each.id, difficulty=difficulty, kind=kind, chosen=difficulty is not None
                )
            )
        return tuple(found)

    def augment(self, round: int, seeds: Sequence[Instruction]) -> None:
        while wanted := unwritten(self.pool, round, AUGMENTOR, seeds, 2):
            for seed, attempt in shuffled(wanted):
                cost = self.call("augmentor", round, seed.id, attempt)
                bad = number(4, round, seed.id, attempt) == 0
                again = number(3, round, seed.id) == 0
                text = seed.text if again else f"Where is {word(round, seed.id)} near {word(seed.id)}?"
                self.pool.add(
                    Augmentation(
                        round=round,
                        instruction=seed.id,
                        attempt=attempt,
                        author=AUGMENTOR,
                        text=text,
                        verdict="too short" if bad else None,
                        cost=cost,
                    )
                )

    def close(self, round: int, everything: Sequence[Instruction], decided: tuple[Decision, ...]) -> None:
        by_id = {each.id: each for each in everything}
        known = Novelty((each.image, each.text) for each in everything)
        accepted, rejected = [], {}
        for each in self.pool.augmentations(round, AUGMENTOR):
            image = by_id[each.instruction].image
            if each.verdict is None and known.best(image, each.text) < 0.7:
                known.add(image, each.text)
                accepted.append(Written(seed=each.instruction, attempt=each.attempt, author=AUGMENTOR, text=each.text))
            elif each.verdict is None:
                rejected[each.instruction, each.attempt, AUGMENTOR] = "known"
        self.pool.close_round(
            Round(round=round, settings={"tau": 0.33}, decisions=decided, accepted=tuple(accepted), rejected=rejected)
        )

    def call(self, *key: object) -> Cost:
        with self.log.open("a") as stream:
            stream.write(f"{key}\n")
        return Cost(prompt_tokens=10, new_tokens=5, seconds=random.random())


def shuffled(items: Sequence[T]) -> list[T]:
    """The items in an order of chance."""
    return random.sample(items, len(items))


if __name__ == "__main__":
    with open_pool(Path(sys.argv[1])) as opened:
        Play(opened, Path(sys.argv[2])).whole()
