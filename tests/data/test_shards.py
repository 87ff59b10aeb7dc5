"""WebDataset shards: read in place, damage skipped and named."""

import io
import json
import pickle
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from limbeck.data import shard_index
from limbeck.data.examples import ArchiveImage, BrokenImage, DataError, Question
from limbeck.data.records import example_of
from limbeck.data.shard_index import index_folder
from limbeck.data.shards import WebDatasetConfig, expand_braces, load_webdataset
from limbeck.data.sources import load_source


def picture(colour: str, kind: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), colour).save(buffer, kind)
    return buffer.getvalue()


def shard(path, members: dict[str, bytes], mode="w"):
    with tarfile.open(path, mode) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def load(folder, pattern, **fields):
    return load_webdataset(WebDatasetConfig(source="webdataset", shards=pattern, **fields), folder)


def test_members_pair_up_by_key_over_several_shards(tmp_path):
    shard(tmp_path / "s-00.tar", {"a/1.jpg": picture("red"), "a/1.txt": b"one", "b/1.png": picture("blue", "PNG")})
    with pytest.raises(DataError, match=r"b/1: no txt or json beside the picture"):
        load(tmp_path, "s-00.tar")
    questions = [{"question": "what?", "answer": "three"}]
    shard(
        tmp_path / "s-01.tar",
        {
            "2.json": json.dumps({"caption": "two", "questions": questions}).encode(),
            "2.webp": picture("lime", "WEBP"),
            "2.cls": b"5",
        },
    )
    source = load(tmp_path, "s-{00..01}.tar", max_skipped=0.5)
    assert [(e.id, e.captions) for e in source.examples] == [("s-00.tar:a/1", ("one",)), ("s-01.tar:2", ("two",))]
    assert source.examples[1].image.open().getpixel((8, 8))[1] > 250
    assert source.examples[1].questions[0].answers == ("three",)
    assert source.examples[0].image.key != source.examples[1].image.key


def test_broken_members_are_skipped_or_break_when_opened(tmp_path):
    members = {
        "1.jpg": picture("red")[:200],
        "1.txt": b"cut short",
        "2.jpg": picture("red"),
        "2.json": b'{"caption": ',
        "3.txt": b"no picture",
        "4.jpg": picture("red"),
        "4.txt": b"\xff\xfe\xff",
    }
    shard(tmp_path / "s.tar", members)
    source = load(tmp_path, "s.tar", max_skipped=1.0)
    assert [example.captions for example in source.examples] == [("cut short",)]
    with pytest.raises(BrokenImage, match=r"s\.tar:1\.jpg"):
        source.examples[0].image.open()
    reasons = {entry.id.rpartition(":")[2]: entry.reason for entry in source.skipped}
    assert set(reasons) == {"2", "3", "4"}
    assert "no picture (jpg, jpeg, png, webp) beside txt" in reasons["3"]


@pytest.mark.parametrize("damage", ["cut", "overwritten"])
def test_a_damaged_shard_gives_what_is_before_the_damage(tmp_path, damage):
    path = tmp_path / "s.tar"
    shard(path, {f"{n}.{ending}": data for n in range(20) for ending, data in (("jpg", picture("red")), ("txt", b"x"))})
    data = path.read_bytes()
    at = 30 * 512 + 100
    path.write_bytes(data[:at] if damage == "cut" else data[: 30 * 512] + b"\x07" * 2048 + data[30 * 512 + 2048 :])
    source = load(tmp_path, "s.tar", max_skipped=0.5)
    assert 3 < len(source.examples) < 20
    assert any("damaged after byte" in entry.reason for entry in source.skipped)


def test_names_that_lead_elsewhere_are_only_names(tmp_path):
    shard(tmp_path / "s.tar", {"../../evil.jpg": picture("red"), "../../evil.txt": b"x"})
    before = sorted(tmp_path.parent.iterdir())
    assert load(tmp_path, "s.tar").examples[0].image.open().size == (16, 16)
    assert sorted(tmp_path.parent.iterdir()) == before


def test_compressed_and_missing_shards_are_refused(tmp_path):
    shard(tmp_path / "s.tar.gz", {"1.txt": b"x"}, mode="w:gz")
    with pytest.raises(DataError, match="not an uncompressed tar file"):
        load(tmp_path, "s.tar.gz")
    with pytest.raises(DataError, match=r"s-1\.tar: no such file .* has s\.tar\.gz"):
        load(tmp_path, "s-{1..3}.tar")


def pairs(path, count=20):
    """A shard of pairs with questions, the sixth of them without a picture."""
    record = {
        "url": "https://example.org",
        "caption": "a thing, and what it is",
        "questions": [{"question": "what?", "answers": ["it", "that"], "question_id": 7, "answer_type": "other"}],
    }
    members = {}
    for number in range(count):
        members[f"{number}.jpg"] = picture("red")
        members[f"{number}.txt"] = f"pair {number}".encode()
        members[f"{number}.json"] = json.dumps(record | {"id": number}).encode()
    del members["5.jpg"]
    shard(path, members)


def test_an_example_of_a_shard_is_that_of_its_record(tmp_path):
    pairs(tmp_path / "s.tar")
    source = load(tmp_path, "s.tar", max_skipped=0.1)
    image = ArchiveImage(str(tmp_path / "s.tar"), "3.jpg", source.examples[3].image.offset, len(picture("red")))
    questions = [{"question": "what?", "answers": ["it", "that"], "question_id": 7, "answer_type": "other"}]
    assert source.examples[3] == example_of({"caption": "pair 3", "questions": questions}, "s.tar:3", image)
    single = {"question": "what?", "answer": "it", "kind": "other", "id": 9}
    shard(tmp_path / "q.tar", {"1.jpg": picture("red"), "1.json": json.dumps(single).encode()})
    [example] = load(tmp_path, "q.tar").examples
    assert example.questions == (Question("9", "what?", ("it",), "other"),)


def test_a_limit_ends_what_is_used_and_what_is_counted(tmp_path):
    pairs(tmp_path / "a.tar")
    pairs(tmp_path / "b.tar")
    source = load(tmp_path, "{a,b}.tar", max_skipped=0.1, limit=23)
    assert [example.id for example in source.examples][-5:] == ["a.tar:19", *(f"b.tar:{n}" for n in range(4))]
    assert [entry.id for entry in source.skipped] == [f"{tmp_path / 'a.tar'}:5"]
    assert not load(tmp_path, "a.tar", limit=5).skipped


def test_examples_are_chosen_by_their_numbers(tmp_path, readings):
    scores = {"1": 0.3, "2": 0.1, "3": 0.4, "4": "high", "5": 0.5}
    members = {}
    for key, score in scores.items():
        members |= {f"{key}.jpg": picture("red"), f"{key}.txt": b"one"}
        members[f"{key}.json"] = json.dumps({"similarity": score, "width": 300}).encode()
    shard(tmp_path / "s.tar", members)

    def chosen(**fields):
        config = WebDatasetConfig(source="webdataset", shards="s.tar", max_skipped=0.5, **fields)
        return load_webdataset(config, tmp_path, tmp_path / "indexes")

    source = chosen(least={"similarity": 0.3, "width": 300})
    assert [example.id for example in source.examples] == ["s.tar:1", "s.tar:3", "s.tar:5"]
    assert [str(entry) for entry in source.skipped] == [
        f"{tmp_path / 's.tar'}:4: field 'similarity': wanted a number, found a text \"high\""
    ]
    stricter = chosen(least={"similarity": 0.4, "width": 300})
    assert [example.id for example in stricter.examples] == ["s.tar:3", "s.tar:5"]
    first = chosen(least={"similarity": 0.3, "width": 300}, limit=1)
    assert ([example.id for example in first.examples], first.skipped) == (["s.tar:1"], ())
    assert readings == ["s.tar"], "other bounds need no other index"
    assert len(chosen().examples) == 5
    assert len(readings) == 2
    chosen(least={"similarity": 0.3, "width": 300})
    assert len(readings) == 2, "each has a file of its own"
    with pytest.raises(DataError, match=r"no member pair like key\.jpg and key\.txt with at least \{'width': 301\.0\}"):
        chosen(least={"width": 301})
    with pytest.raises(DataError, match=r"s\.tar:1: no field 'similarty'; it has similarity, width, caption"):
        chosen(least={"similarty": 0.3})


def test_an_example_takes_little_memory(tmp_path):
    text = "a caption of about as many words as are usual on the web"
    members = {f"{n:09d}.{end}": data for n in range(2000) for end, data in (("jpg", b"x"), ("txt", text.encode()))}
    shard(tmp_path / "s.tar", members)
    tracemalloc.start()
    source = load(tmp_path, "s.tar")
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(source.examples) == 2000
    assert used / 2000 < 3 * len(text) + 20, "bytes an example"


@pytest.fixture
def readings(monkeypatch) -> list[str]:
    """The shards that were gone through."""
    names = []
    read = shard_index.read_shard
    monkeypatch.setattr(
        shard_index, "read_shard", lambda shard, *given: names.append(shard.name) or read(shard, *given)
    )
    return names


def test_a_shard_is_gone_through_once(tmp_path, readings):
    pairs(tmp_path / "s.tar")
    config, indexes = WebDatasetConfig(source="webdataset", shards="s.tar", max_skipped=0.1), tmp_path / "indexes"
    first, again = (load_webdataset(config, tmp_path, indexes) for _ in range(2))
    assert readings == ["s.tar"]
    assert list(first.examples) == list(again.examples)
    assert first.skipped == again.skipped
    assert [file.suffix for file in indexes.iterdir()] == [".npz"], "and no draft"

    pairs(tmp_path / "s.tar", count=21)
    assert len(load_webdataset(config, tmp_path, indexes).examples) == 20
    [file] = indexes.iterdir()
    file.write_bytes(file.read_bytes()[:-300])
    assert list(load_webdataset(config, tmp_path, indexes).examples)[:19] == list(first.examples)
    assert readings == ["s.tar"] * 3
    load_webdataset(config, tmp_path, indexes)
    assert readings == ["s.tar"] * 3, "a damaged index was made anew"


def test_an_index_runs_no_code(tmp_path, readings):
    pairs(tmp_path / "s.tar")
    config, indexes = WebDatasetConfig(source="webdataset", shards="s.tar", max_skipped=0.1), tmp_path / "indexes"
    load_webdataset(config, tmp_path, indexes)
    [file] = indexes.iterdir()
    with np.load(file, allow_pickle=False) as stored:
        arrays = dict(stored)

    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "evil",))

    for evil in (pickle.dumps(Evil()), None):
        if evil is None:
            np.savez(file, **arrays | {"places": np.array([Evil()], dtype=object)}, allow_pickle=True)
        else:
            file.write_bytes(evil)
        assert len(load_webdataset(config, tmp_path, indexes).examples) == 19
    assert readings == ["s.tar"] * 3
    assert not (tmp_path / "evil").exists()


def test_a_place_that_takes_no_index_is_no_error(tmp_path, readings, caplog):
    for name in "ab":
        pairs(tmp_path / f"{name}.tar")
    (tmp_path / "indexes").touch()
    config = WebDatasetConfig(source="webdataset", shards="{a,b}.tar", max_skipped=0.1)
    for _ in range(2):
        assert len(load_webdataset(config, tmp_path, tmp_path / "indexes").examples) == 38
    assert readings == ["a.tar", "b.tar"] * 2
    assert [record.message.endswith("LIMBECK_CACHE names another folder") for record in caplog.records] == [True, True]


def test_where_indexes_lie(tmp_path, monkeypatch):
    for name in ("LIMBECK_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/someone")
    assert index_folder() == Path("/home/someone/.cache/limbeck/shards")
    monkeypatch.setenv("XDG_CACHE_HOME", "/scratch")
    assert index_folder() == Path("/scratch/limbeck/shards")
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "own"))
    pairs(tmp_path / "s.tar")
    load_source(WebDatasetConfig(source="webdataset", shards="s.tar", max_skipped=0.1), tmp_path)
    assert len(list((tmp_path / "own" / "shards").iterdir())) == 1


def test_braces():
    assert expand_braces("a-{08..10}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar"]
    assert expand_braces("{x,y}/{0..1}.tar") == ["x/0.tar", "x/1.tar", "y/0.tar", "y/1.tar"]
    assert expand_braces("plain.tar") == ["plain.tar"]
    with pytest.raises(DataError, match="neither a range"):
        expand_braces("a-{3..1}.tar")
