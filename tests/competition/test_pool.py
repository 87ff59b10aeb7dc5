"""The pool: what is written once, what is missing, rounds that close whole, and who may write."""

import os
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from pool_play import ASSESSOR, AUGMENTOR, TEACHER, Play, open_pool, seeds, student

from limbeck.competition.pool import Pool
from limbeck.competition.pool_file import PoolError
from limbeck.competition.pool_records import (
    Answer,
    Assessment,
    Augmentation,
    Author,
    Decision,
    Pair,
    Refused,
    Round,
    Seed,
    Written,
)
from limbeck.competition.pool_stats import histogram, stats, story
from limbeck.competition.pool_tasks import pairs, scores, unanswered, unassessed, unwritten

PLAY = Path(__file__).with_name("pool_play.py")


@pytest.fixture
def pool(tmp_path):
    with open_pool(tmp_path / "pool.sqlite") as opened:
        yield opened


def answer(instruction: int, text: str = "yes", **fields) -> Answer:
    given = {"role": "teacher", "round": 0, "author": TEACHER, "cut": False, **fields}
    return Answer(instruction=instruction, text=text, **given)


def assessment(pair: Pair, order, scores, attempt: int = 0) -> Assessment:
    return Assessment(
        round=1,
        instruction=pair.instruction.id,
        order=order,
        about=pair.about,
        attempt=attempt,
        author=ASSESSOR,
        text=str(scores),
        scores=scores,
    )


def written(seed: int, attempt: int = 0, verdict: str | None = None) -> Augmentation:
    return Augmentation(
        round=1, instruction=seed, attempt=attempt, author=AUGMENTOR, text=f"new {seed}", verdict=verdict
    )


def closing(**changes) -> Round:
    accepted = tuple(Written(seed=seed, attempt=0, author=AUGMENTOR, text=f"new {seed}") for seed in (7, 2))
    decided = (Decision(round=1, instruction=2, difficulty=0.5, kind="hard", chosen=True),)
    round = Round(round=1, settings={"tau": 0.33}, decisions=decided, accepted=accepted, rejected={})
    return replace(round, **changes)


def both_answered(pool: Pool) -> list[Pair]:
    for id in (1, 2):
        pool.add(answer(id, f"truth {id}"))
        pool.add(answer(id, f"guess {id}", role="student", round=1, author=student(1)))
    return pairs(pool, 1, TEACHER, student(1), pool.instructions())


def test_seeds_are_numbered_in_their_order_and_added_once(pool):
    found = pool.instructions()
    assert [each.id for each in found] == list(range(1, 13))
    assert [each.text for each in found] == [seed.text for seed in seeds()]
    assert pool.images()["3.jpg"] == "/photos/3.jpg"
    assert pool.add_seeds(seeds(15)) == 3
    assert pool.add_seeds([]) == 0
    changed = replace(seeds()[4], text="Something else?")
    with pytest.raises(PoolError, match=r"'mix.json\[4\]' says .* there, and 'Something else\?' now; .*a new pool"):
        pool.add_seeds([Seed(name="new", picture=None, text="?"), changed])
    assert len(pool.instructions()) == 15, "all or none"


def test_answers_in_the_data_are_kept_only_as_somebodys(pool, tmp_path):
    assert not pool.answers("teacher", 0, TEACHER)
    pool.add_seeds(seeds(), TEACHER)
    assert pool.answers("teacher", 0, TEACHER)[3].text == "true answer 2"
    assert unanswered(pool, "teacher", 0, TEACHER, pool.instructions()) == []


def test_the_same_is_not_written_twice(pool):
    assert pool.add(answer(1))
    assert not pool.add(answer(1, "no"))
    assert pool.answers("teacher", 0, TEACHER)[1].text == "yes"
    assert pool.add(answer(1, role="student", round=1)), "another role's"
    assert pool.add(answer(1, role="student", round=2)), "another round's"
    assert pool.add(answer(1, author=AUGMENTOR)), "by another prompt"


def test_what_is_unknown_is_refused(pool):
    with pytest.raises(PoolError, match=r"FOREIGN KEY.*added before what refers to them"):
        pool.add(answer(1, author=Author("nobody", TEACHER.prompt)))
    with pytest.raises(PoolError, match="FOREIGN KEY"):
        pool.add(answer(99))
    with pytest.raises(PoolError, match="CHECK"):
        pool.add(answer(1, role="student", round=0))
    with pytest.raises(PoolError, match="prompt 'prompt of answer' is known with another text or role"):
        pool.add_prompt(TEACHER.prompt, "role", "other")
    assert not pool.answers("teacher", 0, TEACHER)


def test_what_is_unanswered(pool):
    everything = pool.instructions()
    pool.add(answer(3))
    pool.add(Refused(role="teacher", round=0, instruction=5, author=TEACHER, reason="400: no picture"))
    assert [each.id for each in unanswered(pool, "teacher", 0, TEACHER, everything)] == [1, 2, 4, *range(6, 13)]
    assert len(unanswered(pool, "teacher", 0, AUGMENTOR, everything)) == 12
    assert [each.reason for each in pool.refusals()] == ["400: no picture"]
    assert pool.forget_refusals() == 1
    assert 5 in [each.id for each in unanswered(pool, "teacher", 0, TEACHER, everything)]


def test_an_assessment_is_asked_again_until_scores_are_read(pool):
    first, second = both_answered(pool)

    def wanted() -> list[tuple[int, str, int]]:
        found = unassessed(pool, 1, ASSESSOR, [first, second], attempts=2)
        return [(pair.instruction.id, order, attempt) for pair, order, attempt in found]

    assert wanted() == [(id, order, 0) for id in (1, 2) for order in ("teacher_first", "student_first")]
    pool.add(assessment(first, "teacher_first", (9.0, 4.0)))
    pool.add(assessment(first, "student_first", None))
    pool.add(assessment(second, "teacher_first", None))
    assert wanted() == [(1, "student_first", 1), (2, "teacher_first", 1), (2, "student_first", 0)]
    pool.add(assessment(first, "student_first", (6.0, 8.0), attempt=1))
    pool.add(assessment(second, "teacher_first", None, attempt=1))
    pool.add(
        Refused(
            role="assessor",
            round=1,
            instruction=2,
            author=ASSESSOR,
            order="student_first",
            about=second.about,
            reason="broken",
        )
    )
    assert wanted() == []
    assert scores(pool, 1, ASSESSOR, [first, second]) == {1: (8.5, 5.0)}, "R_T = (9 + 8) / 2, R_S = (4 + 6) / 2"


def test_an_assessment_of_other_answers_is_not_taken_for_one_of_these(pool):
    first, _ = both_answered(pool)
    pool.add(assessment(first, "teacher_first", (9.0, 4.0)))
    other = replace(first, student="another guess")
    assert len(unassessed(pool, 1, ASSESSOR, [first], 3)) == 1
    assert len(unassessed(pool, 1, ASSESSOR, [other], 3)) == 2


def test_a_seed_is_written_from_until_nothing_speaks_against_it(pool):
    three = pool.instructions()[:3]
    pool.add(written(1))
    pool.add(written(2, verdict="too short"))
    assert [(each.id, attempt) for each, attempt in unwritten(pool, 1, AUGMENTOR, three, 2)] == [(2, 1), (3, 0)]
    assert [(each.id, attempt) for each, attempt in unwritten(pool, 1, AUGMENTOR, three)] == [(3, 0)]
    pool.add(Refused(role="augmentor", round=1, instruction=3, author=AUGMENTOR, reason="broken"))
    assert unwritten(pool, 1, AUGMENTOR, three) == []


def test_a_round_closes_whole_and_once(pool):
    pool.add(written(7))
    pool.add(written(2))
    pool.add(written(3))
    new = pool.close_round(closing(rejected={(3, 0, AUGMENTOR): "known"}))
    assert [(each.id, each.text, each.parent, each.round, each.image) for each in new] == [
        (13, "new 2", 2, 1, "0.jpg"),
        (14, "new 7", 7, 1, "2.jpg"),
    ]
    assert [each.verdict for each in pool.augmentations(1)] == [None, "known", None]
    assert pool.decisions(1) == list(closing().decisions)
    assert pool.closed_rounds() == {1: {"tau": 0.33}}
    assert [each.id for each in pool.instructions(before=1)] == list(range(1, 13))
    digest = pool.digest()
    assert pool.close_round(closing(rejected={(3, 0, AUGMENTOR): "known"})) == new
    assert pool.digest() == digest
    with pytest.raises(PoolError, match="round 1 is closed, with other decisions than these"):
        pool.close_round(closing(settings={"tau": 0.5}))
    with pytest.raises(PoolError, match="'late' comes too late; use a new pool"):
        pool.add_seeds([Seed(name="late", picture=None, text="?")])
    assert pool.add_seeds(seeds()) == 0, "a run that goes on gives its seeds again"


def test_a_round_that_cannot_close_leaves_nothing(pool):
    pool.add(written(2))
    before = pool.digest()
    with pytest.raises(PoolError, match="round 1 has no free attempt 0 from seed 7"):
        pool.close_round(closing())
    with pytest.raises(PoolError, match="round 1 is the next to close, not 2"):
        pool.close_round(closing(round=2))
    pool.add(written(7, verdict="too short"))
    with pytest.raises(PoolError, match="no free attempt 0 from seed 7"):
        pool.close_round(closing())
    assert not pool.closed_rounds()
    assert not pool.decisions(1)
    pool.forget_refusals()
    assert pool.digest() != before, "the augmentation of seed 7 is content"


def test_two_writers_are_one_too_many_and_readers_are_welcome(pool, tmp_path):
    with pytest.raises(PoolError, match=rf"another process writes to it \(process {os.getpid()} on .*Nothing is lost"):
        Pool.open(pool.path)
    with Pool.open(pool.path, readonly=True) as reader:
        pool.add(answer(1))
        assert reader.answers("teacher", 0, TEACHER)[1].text == "yes"
        assert stats(reader)["answers"] == [
            {"role": "teacher", "round": 0, "model": "the big one", "answers": 1, "cut": 0}
        ]
        with pytest.raises(PoolError, match="opened to read only"):
            reader.add(answer(2))


def test_a_reader_who_may_not_write_beside_the_pool_sees_all_of_it(pool, monkeypatch):
    pool.add(answer(1))
    monkeypatch.setattr(os, "access", lambda *_: False)
    with Pool.open(pool.path, readonly=True) as reader:
        assert 1 in reader.answers("teacher", 0, TEACHER)


def test_a_lock_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "pool.sqlite.writer").mkdir()
    with pytest.raises(PoolError, match=r"pool\.sqlite\.writer: cannot be opened as wanted"):
        Pool.open(tmp_path / "pool.sqlite", create=True)


def test_a_pool_that_another_program_locks(pool):
    pool._file.connection.execute("PRAGMA busy_timeout = 50")
    other = sqlite3.connect(pool.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(PoolError, match=r"another program keeps it locked; .*the same command goes on"):
        pool.add(answer(1))
    other.close()
    assert pool.add(answer(1))


def test_a_full_disk_loses_nothing(pool):
    pool.add(answer(1))
    ((pages,),) = pool._file.connection.execute("PRAGMA page_count")
    pool._file.connection.execute(f"PRAGMA max_page_count = {pages + 3}")
    fill = (answer(id, "long " * 2000) for id in range(2, 12))
    with pytest.raises(PoolError, match="the disk is full; make room: what was written before is kept"):
        list(map(pool.add, fill))
    kept = pool.answers("teacher", 0, TEACHER)
    assert 1 in kept
    pool._file.connection.execute("PRAGMA max_page_count = 100000")
    for id in range(2, 13):
        assert pool.add(answer(id)) == (id not in kept)


def test_files_that_are_no_pools(tmp_path):
    with pytest.raises(PoolError, match=r"gone\.sqlite: no such pool"):
        Pool.open(tmp_path / "gone.sqlite")
    with pytest.raises(PoolError, match="no folder"):
        Pool.open(tmp_path / "gone" / "pool.sqlite", create=True)
    (tmp_path / "text").write_text("no database " * 100)
    (tmp_path / "empty").touch()
    sqlite3.connect(tmp_path / "other").execute("CREATE TABLE birds (name TEXT)").connection.close()
    for name, reason in (("text", "nor any SQLite file"), ("empty", "but empty"), ("other", "but 1 tables")):
        with pytest.raises(PoolError, match=f"not a pool of limbeck's, {reason}"):
            Pool.open(tmp_path / name)
    with open_pool(tmp_path / "new") as pool:
        pool._file.connection.execute("PRAGMA user_version = 9")
    with pytest.raises(PoolError, match="a pool of version 9; this limbeck reads version 1"):
        Pool.open(tmp_path / "new", readonly=True)


def test_a_played_competition_is_the_same_in_any_order(tmp_path):
    digests = set()
    for name in ("first", "second"):
        with open_pool(tmp_path / name) as pool:
            Play(pool, tmp_path / "log").whole()
            digests.add(pool.digest())
            found = stats(pool)
    assert len(digests) == 1
    assert [each["round"] for each in found["instructions"]] == [0, 1, 2]
    assert found["instructions"][0] == {"round": 0, "instructions": 12, "images": 4}
    for cost in found["cost"]:
        assert cost["prompt_tokens"] == 10 * cost["calls"]
    log = (tmp_path / "log").read_text().splitlines()
    assert sum(cost["calls"] for cost in found["cost"]) == len(log) / 2, "every call is accounted for"
    assert len(set(log)) == len(log) / 2
    with Pool.open(tmp_path / "first", readonly=True) as pool:
        last = pool.instructions(round=2)[-1]
        told = story(pool, last.id)
        assert [each["round"] for each in [*told["ancestors"], told["instruction"]]] == sorted(
            {each["round"] for each in [*told["ancestors"], told["instruction"]]}
        )
        assert told["ancestors"][0]["name"].startswith("mix.json")
        assert last.id in [each["id"] for each in story(pool, last.parent)["children"]]
        assert story(pool, 1)["assessments"][0]["model"] == "the big one"
        with pytest.raises(PoolError, match="no instruction 999; they go from 1 to"):
            story(pool, 999)


def test_a_histogram_counts_everything_once():
    assert [each["count"] for each in histogram([0.1, 0.3, 0.3, 0.39, 1.0])] == [1, 0, 3, 0, 0, 0, 0, 0, 0, 1]
    assert histogram([-2.0, 1.5])[0] == {"from": -2.0, "to": -1.0, "count": 1}


def test_killed_again_and_again_it_ends_with_the_same_content(tmp_path):
    """kill -9 at many moments; what was asked twice is at most what was in flight."""
    with open_pool(tmp_path / "whole") as pool:
        Play(pool, tmp_path / "whole.log").whole()
        wanted = pool.digest()
    command = [sys.executable, str(PLAY), str(tmp_path / "killed"), str(tmp_path / "killed.log")]
    kills, calls = 0, len((tmp_path / "whole.log").read_text().splitlines())
    log = tmp_path / "killed.log"
    log.touch()
    for stop in range(calls // 6, calls, calls // 6):
        process = subprocess.Popen(command)
        while process.poll() is None and len(log.read_text().splitlines()) < stop:
            pass
        process.kill()
        kills += process.wait() < 0
    subprocess.run(command, check=True)
    with Pool.open(tmp_path / "killed", readonly=True) as pool:
        assert pool.digest() == wanted
    assert kills >= 3
    assert len(log.read_text().splitlines()) <= calls + kills
