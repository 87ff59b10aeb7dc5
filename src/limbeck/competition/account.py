"""What a competition came to, round by round: scores, difficulty, the assessor's bias, what was written."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from limbeck.competition.pool import Pool
from limbeck.competition.pool_records import ORDERS, Assessment, Decision, Instruction, Order
from limbeck.competition.pool_stats import stats
from limbeck.competition.replies import flips

SHOWN = 6
"""Hard instructions of each round that are shown with what was written from them."""


def account(pool: Pool, reviews: Mapping[int, Sequence[Path]] | None = None) -> dict[str, Any]:
    """`stats` of the pool and, of every closed round, `rounds`; all of it JSON.

    `reviews` are files of a judge's reviews by the tuning whose student they are about; they count as the judge's cost.
    """
    told = {**stats(pool), "rounds": [_round(pool, number) for number in pool.closed_rounds()]}
    told["cost"] += [cost for number, files in (reviews or {}).items() if (cost := _reviewed(number, files))]
    return told


def _reviewed(number: int, files: Sequence[Path]) -> dict[str, Any] | None:
    """What reviews after a tuning cost, a row of `stats`' cost; None without any."""
    lines = [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    sums = {key: sum(each[key] for each in lines) for key in ("prompt_tokens", "new_tokens", "seconds")}
    return {"role": "judge", "round": number, "calls": len(lines), **sums} if lines else None


def _round(pool: Pool, number: int) -> dict[str, Any]:
    decisions, new = pool.decisions(number), pool.instructions(round=number)
    orders = _readable(pool.assessments(number))
    both = {id: pair for id, pair in orders.items() if len(pair) == len(ORDERS)}
    marks = {
        id: tuple(map(mean, zip(*(_by_role(each) for each in pair.values()), strict=True))) for id, pair in both.items()
    }
    verdicts = Counter(each.verdict for each in pool.augmentations(number) if each.verdict is not None)
    return {
        "round": number,
        "settings": pool.closed_rounds()[number],
        "instructions": len(decisions),
        **Counter(decision.kind for decision in decisions),
        "chosen": sum(decision.chosen for decision in decisions),
        "accepted": len(new),
        "rejected": dict(verdicts.most_common()),
        "teacher": mean(teacher for teacher, _ in marks.values()) if marks else None,
        "student": mean(student for _, student in marks.values()) if marks else None,
        "bias": _bias(both),
        "examples": [_example(pool, number, decision, new, marks) for decision in _shown(decisions, new)],
    }


def _readable(assessments: Sequence[Assessment]) -> dict[int, dict[Order, Assessment]]:
    """Instruction to its assessments whose scores were read, by order."""
    found: dict[int, dict[Order, Assessment]] = {}
    for each in assessments:
        if each.scores is not None:
            found.setdefault(each.instruction, {})[each.order] = each
    return found


def _by_role(assessment: Assessment) -> tuple[float, float]:
    scores = assessment.teacher_and_student
    assert scores is not None
    return scores


def _bias(both: dict[int, dict[Order, Assessment]]) -> dict[str, float] | None:
    """How the order of the answers sways the assessor: shares of instructions, or None where nothing was assessed."""
    if not both:
        return None
    scores = [(pair["teacher_first"].scores, pair["student_first"].scores) for pair in both.values()]
    calls = [each for pair in scores for each in pair if each is not None]
    return {
        "flips": mean(flips(first, second) for first, second in scores if first is not None and second is not None),
        "first_better": mean(first > second for first, second in calls),
        "second_better": mean(second > first for first, second in calls),
    }


def _shown(decisions: Sequence[Decision], new: Sequence[Instruction]) -> list[Decision]:
    """The hardest of those from which something new was written."""
    parents = {each.parent for each in new}
    fruitful = [each for each in decisions if each.instruction in parents and each.difficulty is not None]
    return sorted(fruitful, key=lambda each: (-(each.difficulty or 0), each.instruction))[:SHOWN]


def _example(
    pool: Pool, number: int, decision: Decision, new: Sequence[Instruction], marks: dict[int, tuple[float, ...]]
) -> dict[str, Any]:
    """One instruction: both answers as they were assessed, and what was written from it."""
    [own] = pool.select("SELECT image, text FROM instructions WHERE id = ?", (decision.instruction,))
    answers = pool.select(
        "SELECT role, text FROM answers WHERE instruction = ? AND (role = 'teacher' OR round = ?)",
        (decision.instruction, number),
    )
    return {
        "instruction": decision.instruction,
        "image": own["image"],
        "text": own["text"],
        "answers": {each["role"]: each["text"] for each in answers},
        "scores": list(marks.get(decision.instruction, ())),
        "difficulty": decision.difficulty,
        "kind": decision.kind,
        "written": next(each.text for each in new if each.parent == decision.instruction),
    }
