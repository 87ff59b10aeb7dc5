"""What of a competition is still to be asked, and what the assessments come to, as the pool has it."""

from __future__ import annotations

from collections.abc import Sequence

from limbeck.competition.pool import Pool
from limbeck.competition.pool_records import ORDERS, TEACHER_ROUND, Answerer, Author, Instruction, Order, Pair


def unanswered(
    pool: Pool, role: Answerer, round: int, author: Author, among: Sequence[Instruction]
) -> list[Instruction]:
    """Those of `among` that are still to be asked: no answer, no refusal."""
    done = pool.answers(role, round, author).keys() | {each.instruction for each in pool.refusals(role, round, author)}
    return [instruction for instruction in among if instruction.id not in done]


def pairs(pool: Pool, round: int, teacher: Author, student: Author, among: Sequence[Instruction]) -> list[Pair]:
    """Both answers to each of `among` that has both: the teacher's, and that round's student's."""
    taught = pool.answers("teacher", TEACHER_ROUND, teacher)
    learned = pool.answers("student", round, student)
    return [
        Pair(instruction=each, teacher=taught[each.id].text, student=learned[each.id].text)
        for each in among
        if each.id in taught and each.id in learned
    ]


def unassessed(
    pool: Pool, round: int, author: Author, pairs: Sequence[Pair], attempts: int
) -> list[tuple[Pair, Order, int]]:
    """What is still to be asked: pair, order, and the number of the attempt, 0 <= number < `attempts`.

    An order is done when scores were read or the call was refused, and all are when the round is closed.
    """
    if round in pool.closed_rounds():
        return []
    next_attempt: dict[tuple[int, str | None, str | None], int] = {}
    for each in pool.assessments(round, author):
        key = each.instruction, each.order, each.about
        again = each.attempt + 1 if each.scores is None else attempts
        next_attempt[key] = max(next_attempt.get(key, 0), again)
    for refused in pool.refusals("assessor", round, author):
        next_attempt[refused.instruction, refused.order, refused.about] = attempts
    return [
        (pair, order, number)
        for pair in pairs
        for order in ORDERS
        if (number := next_attempt.get((pair.instruction.id, order, pair.about), 0)) < attempts
    ]


def scores(pool: Pool, round: int, author: Author, pairs: Sequence[Pair]) -> dict[int, tuple[float, float]]:
    """Instruction to (R_T, R_S) of CoMD's Eq. 6: the mean scores of teacher and student over both orders.

    Pairs without scores in both orders are left out.
    """
    read: dict[tuple[int, str], dict[Order, tuple[float, float]]] = {}
    for each in pool.assessments(round, author):
        if (both := each.teacher_and_student) is not None:
            read.setdefault((each.instruction, each.about), {})[each.order] = both
    found = {}
    for pair in pairs:
        orders = read.get((pair.instruction.id, pair.about), {})
        if len(orders) == len(ORDERS):
            teacher, student = zip(*orders.values(), strict=True)
            found[pair.instruction.id] = (sum(teacher) / len(ORDERS), sum(student) / len(ORDERS))
    return found


def unwritten(
    pool: Pool, round: int, author: Author, seeds: Sequence[Instruction], attempts: int = 1
) -> list[tuple[Instruction, int]]:
    """Seeds from which to write still, and the number of the attempt, 0 <= number < `attempts`.

    A seed is done when an attempt has no verdict against it or the call was refused, and all are when the round is
    closed.
    """
    if round in pool.closed_rounds():
        return []
    next_attempt: dict[int, int] = {}
    for each in pool.augmentations(round, author):
        again = attempts if each.verdict is None else each.attempt + 1
        next_attempt[each.instruction] = max(next_attempt.get(each.instruction, 0), again)
    next_attempt |= {each.instruction: attempts for each in pool.refusals("augmentor", round, author)}
    return [(seed, number) for seed in seeds if (number := next_attempt.get(seed.id, 0)) < attempts]
