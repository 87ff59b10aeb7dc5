"""The competition (CoMD's section 3.3): what happens between two tunings of the student, over one pool.

Everything that a model said is in the pool before it is used, so each of these steps asks for what is missing there and
for nothing else: a run that was cut off goes on by calling them again.

    answers = competition.answer(number)         # the teacher, to the instructions that the last round has written
    ...                                          # the student is tuned on them
    competition.compete(number, student)         # assess both on all instructions, decide, write new ones
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from limbeck.competition.asking import Asker, Reply, Request
from limbeck.competition.keeping import Call, CompetitionError, Legible, ask, counted
from limbeck.competition.novelty import Novelty
from limbeck.competition.pool import Pool
from limbeck.competition.pool_records import (
    ORDERS,
    TEACHER_ROUND,
    Answer,
    Answerer,
    Assessment,
    Augmentation,
    Author,
    Cost,
    Instruction,
    Order,
    Pair,
    Refused,
    Round,
    Written,
)
from limbeck.competition.pool_tasks import pairs, unanswered, unassessed, unwritten
from limbeck.competition.pool_tasks import scores as mean_scores
from limbeck.competition.prompts import Prompt, Prompts
from limbeck.competition.replies import Rejected, instruction, instruction_budget, scores
from limbeck.competition.rules import Rules, decide
from limbeck.data.examples import ImageSource

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Roles:
    """Who teaches, assesses and augments; the student is named in each round, since it changes."""

    teacher: Asker
    assessor: Asker
    augmentor: Asker


class Competition:
    """A competition's rounds, counted from 1: round n lies between tunings n and n + 1."""

    def __init__(
        self,
        pool: Pool,
        roles: Roles,
        prompts: Prompts,
        rules: Rules,
        images: Mapping[str, ImageSource],
        *,
        seed: int,
        progress: bool = True,
    ) -> None:
        """`images` by their ids in the pool."""
        self.pool = pool
        self.roles = roles
        self.prompts = prompts
        self.rules = rules
        self.seed = seed
        self._images = images
        self._ask = partial(ask, pool, progress=progress)
        for prompt in (prompts.answer, prompts.assessor, prompts.augmentor):
            pool.add_prompt(prompt.id, prompt.role, prompt.text)

    def answer(self, number: int, *, everything: bool = False) -> list[tuple[Instruction, str]]:
        """The data of tuning `number`: what round `number - 1` has written, and the teacher's answers to it (D_T, A_T).

        With `everything` all instructions so far stand there (D_C). Those that the teacher could not or did not answer
        are left out. Empty where that round wrote nothing: the competition is over. Raises CompetitionError where no
        instruction is answered.
        """
        asked = self.pool.instructions(round=number - 1)
        if not asked:
            return []
        author = self._answers("teacher", TEACHER_ROUND, self.roles.teacher, asked, f"tuning {number}: teacher answers")
        said = self.pool.answers("teacher", TEACHER_ROUND, author)
        among = self.pool.instructions(before=number) if everything else asked
        answered = [(each, said[each.id].text) for each in among if each.id in said and said[each.id].text.strip()]
        if not answered:
            raise CompetitionError(f"tuning {number}: the teacher answered none of {len(among)} instructions")
        return answered

    def compete(self, number: int, student: Asker) -> list[Instruction]:
        """Round `number`: both answer all instructions, are assessed, and new instructions are written and accepted.

        Returns the new ones, D_T of the next tuning; none where nothing that was written is new, which is logged.
        Raises CompetitionError where no scores can be read, or nothing was written at all.
        """
        if number in self.pool.closed_rounds():
            return self.pool.instructions(round=number)
        both = self._pairs(number, student)
        assessor = self._assess(number, both)
        ratings = mean_scores(self.pool, number, assessor, both)
        everything = self.pool.instructions(before=number)
        if not ratings:
            raise CompetitionError(
                f"round {number}: none of {len(everything)} instructions has scores that can be read in both orders; "
                "`limbeck pool show` has what the assessor said. With another prompt (`competition.prompts.assessor`) "
                "this run goes on"
            )
        decisions = decide(number, [each.id for each in everything], ratings, self.rules, self.seed)
        chosen = {decision.instruction for decision in decisions if decision.chosen}
        seeds = [each for each in everything if each.id in chosen]
        augmentor = self._augment(number, seeds)
        written = self.pool.augmentations(number, augmentor)
        if seeds and not written:
            raise CompetitionError(
                f"round {number}: {self.roles.augmentor.name} refused all {len(seeds)} calls; `limbeck pool forget` "
                "lets them be asked again"
            )
        accepted, rejected = self._novel(number, augmentor, everything, chosen)
        if not accepted:
            found = Counter(decision.kind for decision in decisions)
            reasons = Counter(each.verdict for each in written if each.verdict) + Counter(rejected.values())
            log.warning(
                "round %d: no new instruction is left, so the competition ends with tuning %d; of %d instructions %d "
                "are hard, %d easy, %d have no scores that can be read; %s",
                number,
                number,
                len(everything),
                *(found[kind] for kind in ("hard", "easy", "unparsed")),
                counted(reasons) or "from none of them is written",
            )
        settings = {
            "difficulty": self.rules.difficulty,
            "tau": self.rules.tau,
            "use_hard": self.rules.use_hard,
            "use_easy": self.rules.use_easy,
            "balance": self.rules.balance,
            "novelty": self.rules.novelty,
            "seed": self.seed,
        }
        return self.pool.close_round(
            Round(round=number, settings=settings, decisions=decisions, accepted=accepted, rejected=rejected)
        )

    def _pairs(self, number: int, student: Asker) -> list[Pair]:
        """Both answers to every instruction so far (D_C), the student's as it is now.

        The student is asked what the teacher has answered: nothing else can be assessed.
        """
        everything = self.pool.instructions(before=number)
        teacher = self._answers(
            "teacher", TEACHER_ROUND, self.roles.teacher, everything, f"round {number}: teacher answers"
        )
        taught = self.pool.answers("teacher", TEACHER_ROUND, teacher)
        answered = [each for each in everything if each.id in taught]
        learner = self._answers("student", number, student, answered, f"round {number}: student answers")
        return pairs(self.pool, number, teacher, learner, answered)

    def _answers(self, role: Answerer, round: int, asker: Asker, among: Sequence[Instruction], name: str) -> Author:
        """Ask for the answers that are missing."""
        author, writing = self._author(asker, self.prompts.answer), self.rules.answer
        missing = {each.id for each in unanswered(self.pool, role, round, author, among)}

        def call(each: Instruction) -> Call:
            prompt = self.prompts.ask(each.text)
            key = {"instruction": each.id, "role": role, "round": round, "author": author}
            return (
                self._request(each, f"{role}/{round}", prompt, writing.max_new_tokens),
                lambda reply: Answer(**key, text=reply.text, cut=reply.cut, cost=_cost(reply)),
                lambda reason: Refused(**key, reason=reason),
            )

        if missing:
            self._ask(asker, writing, {each.id: call(each) for each in among}, missing, name)
        return author

    def _assess(self, number: int, both: Sequence[Pair]) -> Author:
        """Both orders of every pair, again while the scores cannot be read; at temperature 0 once."""
        asker, writing = self.roles.assessor, self.rules.assess
        author = self._author(asker, self.prompts.assessor)
        attempts = self.rules.attempts if writing.temperature > 0 else 1
        legible = Legible(f"round {number}: {asker.name} assesses", self.pool.assessments(number, author))

        def call(pair: Pair, order: Order, attempt: int) -> Call:
            answers = (pair.teacher, pair.student) if order == "teacher_first" else (pair.student, pair.teacher)
            prompt = self.prompts.assess(pair.instruction.text, *answers)
            key = {
                "round": number,
                "instruction": pair.instruction.id,
                "order": order,
                "about": pair.about,
                "attempt": attempt,
                "author": author,
            }
            what = f"assessor/{number}/{order}/{attempt}"
            return (
                self._request(pair.instruction, what, prompt, writing.max_new_tokens),
                lambda reply: Assessment(**key, text=reply.text, scores=scores(reply.text), cost=_cost(reply)),
                lambda reason: Refused(**key, role="assessor", reason=reason),
            )

        wanted: list[tuple[Pair, Order]] = [(pair, order) for pair in both for order in ORDERS]
        for attempt in range(attempts):
            open_ones = {
                (pair.instruction.id, order)
                for pair, order, next_one in unassessed(self.pool, number, author, both, attempts)
                if next_one == attempt
            }
            if open_ones:
                again = f", attempt {attempt + 1}" if attempt else ""
                calls = {(pair.instruction.id, order): call(pair, order, attempt) for pair, order in wanted}
                self._ask(asker, writing, calls, open_ones, f"round {number}: assessment{again}", kept=legible.see)
            unread = self._unread(number, author, attempt)
            wanted = [(pair, order) for pair, order in wanted if (pair.instruction.id, order, pair.about) in unread]
        return author

    def _unread(self, number: int, author: Author, attempt: int) -> set[tuple[int, Order, str]]:
        """What was assessed in an attempt without scores that can be read."""
        return {
            (each.instruction, each.order, each.about)
            for each in self.pool.assessments(number, author)
            if each.attempt == attempt and each.scores is None
        }

    def _augment(self, number: int, seeds: Sequence[Instruction]) -> Author:
        """One new instruction from each seed."""
        asker, writing = self.roles.augmentor, self.rules.augment
        author = self._author(asker, self.prompts.augmentor)

        def call(each: Instruction) -> Call:
            key = {"round": number, "instruction": each.id, "author": author}

            def written(reply: Reply) -> Augmentation:
                found = instruction(reply.text, reply.cut, each.text)
                verdict = found.reason if isinstance(found, Rejected) else None
                return Augmentation(**key, attempt=0, text=reply.text, verdict=verdict, cost=_cost(reply))

            limit = min(writing.max_new_tokens, instruction_budget(each.text))
            return (
                self._request(each, f"augmentor/{number}", self.prompts.augment(each.text), limit),
                written,
                lambda reason: Refused(**key, role="augmentor", reason=reason),
            )

        missing = {each.id for each, _ in unwritten(self.pool, number, author, seeds)}
        if missing:
            calls = {each.id: call(each) for each in seeds}
            self._ask(asker, writing, calls, missing, f"round {number}: new instructions")
        return author

    def _novel(
        self, number: int, author: Author, everything: Sequence[Instruction], chosen: Container[int]
    ) -> tuple[tuple[Written, ...], dict[tuple[int, int, Author], str]]:
        """What was written from the `chosen` and is like no other instruction of its picture, and why not the rest.

        What was written from others is passed over: refusals that were forgotten since can change what is chosen.
        """
        by_id = {each.id: each for each in everything}
        novelty = Novelty()
        for each in everything:
            novelty.add(each.image, each.text)
        accepted, rejected = [], {}
        for each in self.pool.augmentations(number, author):
            if each.instruction not in chosen:
                continue
            seed = by_id[each.instruction]
            found = instruction(each.text, False, seed.text) if each.verdict is None else None
            if not isinstance(found, str):
                continue
            likeness = novelty.best(seed.image, found)
            if likeness < self.rules.novelty:
                novelty.add(seed.image, found)
                accepted.append(Written(seed=seed.id, attempt=each.attempt, author=author, text=found))
            else:
                rejected[seed.id, each.attempt, author] = "too much like another instruction of its picture"
        return tuple(accepted), rejected

    def _request(self, each: Instruction, what: str, prompt: str, max_new_tokens: int) -> Request:
        return Request(
            id=f"{what}/{each.id}",
            prompt=prompt,
            image=None if each.image is None else self._images[each.image],
            max_new_tokens=max_new_tokens,
            seed=int.from_bytes(hashlib.blake2b(f"{self.seed}/{what}/{each.id}".encode(), digest_size=7).digest()),
        )

    def _author(self, asker: Asker, prompt: Prompt) -> Author:
        """Who says it, made known to the pool."""
        self.pool.add_model(asker.fingerprint, asker.name)
        return Author(model=asker.fingerprint, prompt=prompt.id)


def _cost(reply: Reply) -> Cost:
    return Cost(prompt_tokens=reply.prompt_tokens, new_tokens=reply.new_tokens, seconds=reply.seconds)
