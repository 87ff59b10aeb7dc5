"""By which rules a competition is held: what counts as hard, what new instructions are written from, who writes how."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from pydantic import Field, model_validator

from limbeck.competition.pool_records import Decision, Kind
from limbeck.competition.prompts import PromptsConfig
from limbeck.competition.replies import IS_HARD, DifficultyRule, difficulty
from limbeck.config import Section


class AskingConfig(Section):
    """How a role writes."""

    temperature: float = Field(default=0.5, ge=0)
    """the paper's, for all three roles"""
    max_new_tokens: int = Field(default=512, ge=1)


class Rules(Section):
    """The rules of the loop (the paper's section 3.3)."""

    tau: float = Field(default=0.33, ge=0, le=1)
    """difficulty from which an instruction is hard"""
    difficulty: DifficultyRule = "comd"
    """Eq. 6, or Lion's rule: hard where the teacher's score is at least one above the student's"""
    use_hard: bool = True
    use_easy: bool = True
    """which instructions new ones are written from"""
    balance: bool = True
    """from at most as many easy as hard ones, drawn by chance"""
    novelty: float = Field(default=0.7, gt=0, le=1)
    """a new instruction's ROUGE-L with every other of its picture stays below"""
    attempts: int = Field(default=3, ge=1)
    """how often an assessor is asked until its scores can be read; once at temperature 0"""
    prompts: PromptsConfig = PromptsConfig()
    answer: AskingConfig = AskingConfig()
    """the teacher's and the student's answers"""
    assess: AskingConfig = AskingConfig()
    augment: AskingConfig = AskingConfig(max_new_tokens=256)
    """the length is bounded by the given instruction's besides: four tokens for each of its words"""

    @model_validator(mode="after")
    def _something_to_write_from(self) -> Rules:
        if not (self.use_hard or self.use_easy):
            raise ValueError("use_hard, use_easy: one of them must be true, or nothing new is ever written")
        return self


def decide(
    round: int, instructions: Sequence[int], scores: Mapping[int, tuple[float, float]], rules: Rules, seed: int
) -> tuple[Decision, ...]:
    """Which instructions are hard, which easy, and from which new ones are to be written (Eq. 6).

    `scores` are (R_T, R_S) by instruction; one without is in neither set. Where `rules.balance`, easy ones are drawn
    without replacement, as many as there are hard ones.
    """
    is_hard = IS_HARD[rules.difficulty]
    hard = [each for each in instructions if each in scores and is_hard(*scores[each], rules.tau)]
    easy = [each for each in instructions if each in scores and not is_hard(*scores[each], rules.tau)]
    drawn = easy
    if rules.balance and rules.use_hard and len(easy) > len(hard):
        drawn = random.Random(f"{seed}/{round}/easy").sample(easy, len(hard))
    chosen = {*(hard if rules.use_hard else ()), *(drawn if rules.use_easy else ())}
    kinds: dict[int, Kind] = {**dict.fromkeys(hard, "hard"), **dict.fromkeys(easy, "easy")}
    return tuple(
        Decision(
            round=round,
            instruction=each,
            difficulty=difficulty(*scores[each]) if each in scores else None,
            kind=kinds.get(each, "unparsed"),
            chosen=each in chosen,
        )
        for each in instructions
    )
