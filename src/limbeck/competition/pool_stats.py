"""What a pool holds, in numbers and instruction by instruction: for `limbeck pool` and the page."""

from __future__ import annotations

from collections import Counter
from typing import Any

from limbeck.competition import pool_rows as rows
from limbeck.competition.pool import Pool
from limbeck.competition.pool_file import PoolError

_COUNTS = {
    "instructions": "SELECT round, count(*) AS instructions, count(DISTINCT image) AS images "
    "FROM instructions GROUP BY round ORDER BY round",
    "answers": "SELECT role, answers.round, coalesce(name, model) AS model, count(*) AS answers, sum(cut) AS cut "
    "FROM answers LEFT JOIN models ON fingerprint = model GROUP BY role, answers.round, model, prompt "
    "ORDER BY role DESC, answers.round, min(answers.rowid)",
    "assessments": 'SELECT round, "order", count(*) AS assessments, count(score_1) AS parsed '
    'FROM assessments GROUP BY round, "order" ORDER BY round, "order" DESC',
    "decisions": "SELECT round, sum(kind = 'hard') AS hard, sum(kind = 'easy') AS easy, "
    "sum(kind = 'unparsed') AS unparsed, sum(chosen) AS chosen FROM decisions GROUP BY round ORDER BY round",
    "augmentations": "SELECT round, count(*) AS written, sum(verdict IS NULL) AS free "
    "FROM augmentations GROUP BY round ORDER BY round",
    "refusals": "SELECT role, round, count(*) AS refused, min(reason) AS example "
    "FROM refusals GROUP BY role, round ORDER BY round, role",
    "cost": """
        SELECT role, round, count(*) AS calls, sum(prompt_tokens) AS prompt_tokens, sum(new_tokens) AS new_tokens,
            sum(seconds) AS seconds
        FROM (
            SELECT role, iif(role = 'teacher', instructions.round + 1, answers.round) AS round, prompt_tokens,
                new_tokens, seconds
            FROM answers JOIN instructions ON instructions.id = instruction
            UNION ALL SELECT 'assessor', round, prompt_tokens, new_tokens, seconds FROM assessments
            UNION ALL SELECT 'augmentor', round, prompt_tokens, new_tokens, seconds FROM augmentations
        )
        GROUP BY role, round ORDER BY round, instr('teacher student assessor augmentor', role)
    """,
}


def stats(pool: Pool) -> dict[str, Any]:
    """Counts by round, the histogram of difficulty, and cost, as JSON holds it; seconds are summed over the calls.

    A teacher's calls count in the round that tunes on them. `difficulty` is by round a list of {from, to, count}.
    """
    found: dict[str, Any] = {"pool": str(pool.path), "rounds_closed": len(pool.closed_rounds())}
    found["images"] = len(pool.images())
    found |= {name: pool.select(query) for name, query in _COUNTS.items()}
    by_round: dict[int, list[float]] = {}
    for each in pool.select("SELECT round, difficulty FROM decisions WHERE difficulty IS NOT NULL ORDER BY round"):
        by_round.setdefault(each["round"], []).append(each["difficulty"])
    found["difficulty"] = {round: histogram(values) for round, values in by_round.items()}
    return found


def histogram(values: list[float]) -> list[dict[str, float]]:
    """How many values fall from one tenth (Eq. 6's are at most 1.1) or, of a wider range, one whole to the next."""
    wide = min(values) < 0 or max(values) > 1.1
    per_unit = 1 if wide else 10
    counts = Counter(int((value * per_unit + 1e-9) // 1) for value in values)
    return [
        {"from": number / per_unit, "to": (number + 1) / per_unit, "count": counts[number]}
        for number in range(min(counts), max(counts) + 1)
    ]


def story(pool: Pool, id: int) -> dict[str, Any]:
    """An instruction with all that was made of it: its ancestors (the seed first), picture, answers, assessments,
    decisions, what the augmentor wrote from it, and the instructions that came of that. Raises PoolError.
    """
    names = pool.models()
    lineage = pool.select(
        "WITH RECURSIVE line AS (SELECT *, 0 AS depth FROM instructions WHERE id = ? UNION ALL "
        "SELECT instructions.*, depth + 1 FROM instructions JOIN line ON instructions.id = line.parent) "
        f"SELECT {rows.INSTRUCTION} FROM line ORDER BY depth DESC",
        (id,),
    )
    if not lineage:
        raise PoolError(f"{pool.path}: no instruction {id}; they go from 1 to {len(pool.instructions())}")
    *ancestors, own = lineage

    def said(table: str, columns: str, order: str) -> list[dict[str, Any]]:
        found = pool.select(f"SELECT {columns} FROM {table} WHERE instruction = ? ORDER BY {order}", (id,))
        return [{**each, "model": names[each["model"]]} if "model" in each else each for each in found]

    return {
        "instruction": own,
        "picture": pool.images().get(own["image"]),
        "ancestors": ancestors,
        "answers": said("answers", rows.ANSWER, "round, role DESC, model, prompt"),
        "assessments": said("assessments", rows.ASSESSMENT, 'round, "order" DESC, about, attempt, model, prompt'),
        "decisions": said("decisions", rows.DECISION, "round"),
        "augmentations": said("augmentations", rows.AUGMENTATION, "round, attempt, model, prompt"),
        "refusals": said("refusals", rows.REFUSAL, 'round, role, "order", attempt'),
        "children": pool.select(f"SELECT {rows.INSTRUCTION} FROM instructions WHERE parent = ? ORDER BY id", (id,)),
    }
