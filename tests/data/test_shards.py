"""WebDataset shards: read in place, damage skipped and named."""

import io
import json
import tarfile

import pytest
from PIL import Image

from limbeck.data.examples import BrokenImage, DataError
from limbeck.data.shards import WebDatasetConfig, expand_braces, load_webdataset


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


def test_braces():
    assert expand_braces("a-{08..10}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar"]
    assert expand_braces("{x,y}/{0..1}.tar") == ["x/0.tar", "x/1.tar", "y/0.tar", "y/1.tar"]
    assert expand_braces("plain.tar") == ["plain.tar"]
    with pytest.raises(DataError, match="neither a range"):
        expand_braces("a-{3..1}.tar")
