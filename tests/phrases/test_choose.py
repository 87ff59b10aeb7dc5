"""Counting and choosing in DuckDB is the paper's loop."""

import random

import pytest

pytest.importorskip("duckdb")

import pyarrow as pa
import pyarrow.parquet as pq
from phrase_captions import by_the_book

from limbeck.data.examples import DataError
from limbeck.phrases.choose import Choice, ChoiceConfig, choose

MEMORY = 1 << 30


def write_parts(folder, phrases, sizes):
    """The captions' phrases in parts of these sizes."""
    folder.mkdir()
    start = 0
    for part, size in enumerate(sizes):
        rows = [(part, place, phrase) for place, found in enumerate(phrases[start : start + size]) for phrase in found]
        columns = zip(*rows) if rows else ([], [], [])
        types = (("part", pa.int32()), ("caption", pa.int32()), ("phrase", pa.string()))
        arrays = {name: pa.array(column, kind) for (name, kind), column in zip(types, columns)}
        pq.write_table(pa.table(arrays), folder / f"{part}.parquet")
        start += size
    return folder


def chosen(folder):
    return pq.read_table(folder / "chosen.parquet")["caption"].to_pylist()


def many(count=2000, seed=0):
    """Captions with few phrases that are very frequent, and many that are rare; some phrases are no ASCII."""
    rng = random.Random(seed)
    return [{f"é'{min(rng.paretovariate(0.6), 900):.0f}" for _ in range(rng.randint(0, 5))} for _ in range(count)]


@pytest.mark.parametrize(("least", "most", "seed"), [(3, 100, 0), (3, 100, 1), (1, 1, 0), (5, 20, 7), (2, 5000, 0)])
def test_the_same_captions_as_by_the_loop(tmp_path, least, most, seed):
    phrases = many()
    parts = write_parts(tmp_path / "parts", phrases, (700, 1, 0, 1299))
    config = ChoiceConfig(least=least, most=most, seed=seed)
    found = choose(parts, (700, 1, 0, 1299), config, tmp_path, memory=MEMORY, threads=2)
    expected = by_the_book(phrases, least, most, seed)
    assert chosen(tmp_path) == sorted(expected)
    assert found.chosen == len(expected)
    assert found.rows == sum(map(len, phrases))
    assert found.phrases == len(set().union(*phrases))


def test_a_choice_worked_by_hand(tmp_path):
    #         a: 4 captions, drawn 2; b: 3 captions, just enough; c: 2, too few; caption 6 has a rare phrase alone
    phrases = [{"a"}, {"a"}, {"a", "b"}, {"a", "b"}, {"b"}, {"c"}, {"c"}, set()]
    parts = write_parts(tmp_path / "parts", phrases, (8,))
    found = choose(parts, (8,), ChoiceConfig(least=3, most=3), tmp_path, memory=MEMORY, threads=1)
    assert found == Choice(rows=11 - 2, phrases=3, kept_phrases=2, sampled_phrases=1, chosen=found.chosen)
    assert {2, 3, 4} <= set(chosen(tmp_path)) <= {0, 1, 2, 3, 4}
    table = pq.read_table(tmp_path / "phrases.parquet").to_pylist()
    assert table == [{"phrase": "b", "captions": 3, "taken": 3}, {"phrase": "a", "captions": 4, "taken": 3}]
    assert not (tmp_path / "scratch").exists()


def test_parts_threads_and_memory_change_nothing(tmp_path):
    phrases = many(3000, seed=3)
    results = []
    for name, sizes, threads, memory in (("one", (3000,), 1, MEMORY), ("two", (1000, 1500, 500), 2, 256 << 20)):
        folder = tmp_path / name
        folder.mkdir()
        choose(
            write_parts(folder / "parts", phrases, sizes), sizes, ChoiceConfig(), folder, memory=memory, threads=threads
        )
        results.append(chosen(folder))
    assert results[0] == results[1]


def test_another_seed_draws_others_and_each_caption_alike_often(tmp_path):
    parts = write_parts(tmp_path / "parts", [{"a"}] * 50, (50,))
    times = [0] * 50
    for seed in range(20):
        choose(parts, (50,), ChoiceConfig(most=25, seed=seed), tmp_path, memory=MEMORY, threads=1)
        drawn = chosen(tmp_path)
        assert len(drawn) == 25
        for caption in drawn:
            times[caption] += 1
    # binomial(20, 1/2): mean 10, standard deviation 2.2
    assert min(times) >= 1
    assert max(times) <= 19


def test_too_little_memory_is_said(tmp_path):
    parts = write_parts(tmp_path / "parts", many(60_000), (60_000,))
    with pytest.raises(DataError, match="too few to count"):
        choose(parts, (60_000,), ChoiceConfig(), tmp_path, memory=2 << 20, threads=1)
    assert not (tmp_path / "scratch").exists()
