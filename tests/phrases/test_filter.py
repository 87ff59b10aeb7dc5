"""`limbeck filter` from files to files: formats, resuming, broken records, several processes, Ray."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time

import pytest

pytest.importorskip("spacy")
pytest.importorskip("duckdb")

import pyarrow.parquet as pq
import typer
from phrase_captions import CAPTIONS, by_the_book
from PIL import Image
from typer.testing import CliRunner

from limbeck.commands.filter import filter_command
from limbeck.data.examples import DataError
from limbeck.data.shards import WebDatasetConfig, load_webdataset
from limbeck.phrases.choose import ChoiceConfig
from limbeck.phrases.filter import Resources, filter_captions
from limbeck.phrases.inputs import CaptionsConfig, input_files, plan, read_part
from limbeck.phrases.json_lists import JsonList
from limbeck.phrases.nouns import NounPhrases

CHOICE = ChoiceConfig(least=2, most=2)


@pytest.fixture(scope="module")
def expected():
    """Places of the chosen captions of CAPTIONS."""
    return sorted(by_the_book(NounPhrases()(CAPTIONS), CHOICE.least, CHOICE.most, CHOICE.seed))


def jsonl(path, captions):
    path.write_text(
        "".join(json.dumps({"image": f"{n}.jpg", "caption": text}) + "\n" for n, text in enumerate(captions))
    )
    return path


def llava(path, captions):
    records = [
        {
            "id": f"r{n}",
            "image": f"{n}.jpg",
            "conversations": [{"from": "human", "value": "Describe it.\n<image>"}, {"from": "gpt", "value": text}],
        }
        for n, text in enumerate(captions)
    ]
    path.write_text(json.dumps(records, indent=1))
    return records


def shard(path, captions):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, "PNG")
    with tarfile.open(path, "w") as tar:
        for n, text in enumerate(captions):
            for name, data in ((f"a/{n}.png", buffer.getvalue()), (f"a/{n}.txt", text.encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def config(*inputs, **fields):
    return CaptionsConfig(inputs=[str(path) for path in inputs], **fields)


def test_lines_stay_as_they_are(tmp_path, expected):
    path = jsonl(tmp_path / "c.jsonl", CAPTIONS)
    lines = path.read_bytes().splitlines(keepends=True)
    seen = []
    summary = filter_captions(
        config(path, part_records=5), CHOICE, tmp_path / "out", progress=lambda done, parts: seen.append(parts)
    )
    assert (tmp_path / "out" / "chosen" / "000-c.jsonl").read_bytes() == b"".join(lines[n] for n in expected)
    assert 0 < len(expected) < len(CAPTIONS)
    assert (summary.captions, summary.choice.chosen, seen) == (len(CAPTIONS), len(expected), [3, 3, 3])
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["records"] == len(CAPTIONS)


def test_corpora_are_counted_together_each_in_its_own_format(tmp_path, expected):
    jsonl(tmp_path / "a.jsonl", CAPTIONS[:4])
    records = llava(tmp_path / "b.json", CAPTIONS[4:9])
    karpathy = {
        "dataset": "x",
        "images": [{"filename": f"{n}.jpg", "sentences": [{"raw": t}]} for n, t in enumerate(CAPTIONS[9:12])],
        "after": [1, {"images": []}],
    }
    (tmp_path / "k.json").write_text(json.dumps(karpathy, ensure_ascii=False))
    shard(tmp_path / "s-0.tar", CAPTIONS[12:13])
    shard(tmp_path / "s-1.tar", CAPTIONS[13:])
    names = ("a.jsonl", "b.json", "k.json", "s-{0..1}.tar")
    summary = filter_captions(config(*(tmp_path / name for name in names), part_records=3), CHOICE, tmp_path / "out")
    out = tmp_path / "out" / "chosen"
    assert json.loads((out / "001-b.json").read_text()) == [records[n - 4] for n in expected if 4 <= n < 9]
    kept = json.loads((out / "002-k.json").read_text())
    assert list(kept) == ["dataset", "images", "after"]
    assert kept["images"] == [karpathy["images"][n - 9] for n in expected if 9 <= n < 12]
    assert kept["after"] == karpathy["after"]
    shards = {3: range(12, 13), 4: range(13, 14)}
    for number, places in shards.items():
        path = out / f"{number:03d}-s-{number - 3}.tar"
        wanted = [CAPTIONS[n].strip() for n in expected if n in places]
        if wanted:
            found = load_webdataset(WebDatasetConfig(source="webdataset", shards=path.name), out)
            assert [caption for example in found.examples for caption in example.captions] == wanted
    assert sum(file.records for file in summary.written) == len(expected)


def test_a_record_with_several_captions_is_kept_whole_where_one_is_chosen(tmp_path):
    path = tmp_path / "c.jsonl"
    captions = (["a dog", "zebras"], ["the dog", "a dog"], ["one cat"], ["a dog"])
    path.write_text("\n".join(json.dumps({"captions": each}) for each in captions))
    filter_captions(config(path), ChoiceConfig(least=3, most=3), tmp_path / "out")
    kept = [json.loads(line)["captions"] for line in (tmp_path / "out/chosen/000-c.jsonl").read_text().splitlines()]
    assert kept == [captions[0], captions[1], captions[3]]
    assert pq.read_table(tmp_path / "out" / "chosen.parquet")["caption"].to_pylist() == [0, 3, 5]


def test_only_wanted_records_and_only_their_keys(tmp_path):
    path = tmp_path / "c.jsonl"
    lines = [{"id": f"{split}{n}", "split": split, "text": "a dog"} for n in range(3) for split in ("train", "test")]
    path.write_text("\n".join(map(json.dumps, lines)))
    captions = config(path, where={"split": "train"}, caption_field="text")
    summary = filter_captions(captions, ChoiceConfig(), tmp_path / "out", keys_only=True)
    keys = [json.loads(line) for line in (tmp_path / "out" / "keys.jsonl").read_text().splitlines()]
    assert keys == [{"input": str(path), "id": f"train{n}"} for n in range(3)]
    assert summary.captions == 3


def test_what_is_finished_is_not_done_again_and_another_choice_uses_it(tmp_path):
    path = jsonl(tmp_path / "c.jsonl", CAPTIONS)
    out = tmp_path / "out"
    first = filter_captions(config(path, part_records=4), CHOICE, out)
    files = sorted((out / "parts").iterdir())
    before = {file: file.stat().st_mtime_ns for file in files}
    files[1].unlink()
    chosen = (out / "chosen.parquet").read_bytes()
    again = filter_captions(config(path, part_records=4), CHOICE, out)
    after = {file: file.stat().st_mtime_ns for file in sorted((out / "parts").iterdir())}
    assert [file for file in files if after[file] != before[file]] == [files[1]]
    assert (out / "chosen.parquet").read_bytes() == chosen
    assert again.choice == first.choice
    other = filter_captions(config(path, part_records=4), ChoiceConfig(least=1), out)
    assert other.captions_per_second is None
    assert other.choice.chosen > first.choice.chosen


def test_a_killed_run_goes_on(tmp_path, expected):
    path = jsonl(tmp_path / "c.jsonl", CAPTIONS * 100)
    code = (
        "from pathlib import Path; from limbeck.phrases.filter import *; from limbeck.phrases.inputs import *\n"
        "from limbeck.phrases.choose import *\n"
        "if __name__ == '__main__':\n"
        f"    captions = CaptionsConfig(inputs=[{str(path)!r}], part_records=50)\n"
        f"    filter_captions(captions, ChoiceConfig(), Path({str(tmp_path / 'killed')!r}))\n"
    )
    (tmp_path / "run.py").write_text(code)
    process = subprocess.Popen([sys.executable, str(tmp_path / "run.py")], start_new_session=True)
    parts = tmp_path / "killed" / "parts"
    until = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < until and len(list(parts.glob("*.parquet"))) < 3:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    finished = len(list(parts.glob("*.parquet")))
    assert 3 <= finished < 28
    done = []
    captions = config(path, part_records=50)
    filter_captions(captions, ChoiceConfig(), tmp_path / "killed", progress=lambda each, _: done.append(each))
    assert done.count(None) == finished
    filter_captions(captions, ChoiceConfig(), tmp_path / "whole", Resources(processes=2))
    for name in ("chosen.parquet", "phrases.parquet", "chosen/000-c.jsonl"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_folder_of_other_captions_is_refused(tmp_path):
    path = jsonl(tmp_path / "c.jsonl", CAPTIONS)
    filter_captions(config(path), CHOICE, tmp_path / "out")
    jsonl(path, CAPTIONS[:5])
    with pytest.raises(DataError, match=r"out: holds phrases of other files"):
        filter_captions(config(path), CHOICE, tmp_path / "out")


def test_all_broken_records_count_not_only_those_that_are_listed(tmp_path):
    path = jsonl(tmp_path / "c.jsonl", ["a dog"] * 400)
    with path.open("a") as stream:
        stream.write("{torn\n" * 400)
    with pytest.raises(DataError, match=r"(?s)400 of 800 records are broken, more than the 20.0% .*:401: not JSON"):
        filter_captions(config(path), ChoiceConfig(), tmp_path / "out", max_skipped=0.2)


def test_settings_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    def killed(file: int) -> None:
        raise KeyboardInterrupt

    path = jsonl(tmp_path / "c.jsonl", CAPTIONS)
    monkeypatch.setattr("limbeck.writing.os.fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        filter_captions(config(path), CHOICE, tmp_path / "out")
    assert not (tmp_path / "out" / "settings.json").exists()


def test_broken_records_are_counted_and_too_many_stop_it(tmp_path):
    path = jsonl(tmp_path / "c.jsonl", ["a dog"] * 98)
    with path.open("ab") as stream:
        stream.write(b'{"caption": \xff}\n{"image": "x.jpg"}\n')
    with pytest.raises(DataError, match=r"(?s)2 of 100 records are broken.*:99: not JSON.*:100: no caption"):
        filter_captions(config(path), ChoiceConfig(), tmp_path / "out")
    summary = filter_captions(config(path), ChoiceConfig(), tmp_path / "out", max_skipped=0.1)
    assert (summary.broken, summary.captions, summary.captions_per_second) == (2, 98, None)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.json", '[{"caption": "a"}, {"caption"', "byte 19: not JSON"),
        ("c.json", '{"info": 1}', "found an object without 'images'"),
        ("c.json", '"text"', "wanted a list of records"),
        ("c.jsonl", "", "no record in it"),
        ("c.txt", "a dog", r"not from \.txt"),
    ],
)
def test_what_is_no_captions_file_is_said(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        plan(input_files(config(tmp_path / name)), 10)


def test_a_list_larger_than_what_is_read_at_a_time(tmp_path):
    records = [{"caption": f"é{n} " + "x" * (n % 7) * 3000, "n": n} for n in range(400)]
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"a": "[", "images": records, "z": 0}, ensure_ascii=False))
    assert path.stat().st_size > 3 << 20
    content = path.read_bytes()
    assert [json.loads(content[a:b]) for a, b in JsonList(path, "images").spans()] == records
    captions = config(path, part_records=90)
    parts = plan([path], 90)
    read = [json.loads(record.raw)["n"] for part in parts for record in read_part(part, captions)[0]]
    assert (len(parts), read) == (5, list(range(400)))


def test_the_command(tmp_path, expected):
    app = typer.Typer()
    app.command()(filter_command)
    jsonl(tmp_path / "c.jsonl", CAPTIONS)
    words = [
        str(tmp_path / "c.jsonl"),
        "--out",
        str(tmp_path / "out"),
        "--least",
        "2",
        "--most",
        "2",
        "--processes",
        "1",
    ]
    result = CliRunner().invoke(app, [*words, "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["choice"]["chosen"] == len(expected)
    again = CliRunner().invoke(app, words)
    assert f"{len(expected)} captions chosen" in again.output
    wrong = CliRunner().invoke(app, [*words, "--memory", "much"])
    assert "wanted a size such as 2GB" in str(wrong.exception)


@pytest.mark.slow
def test_ray_gives_the_same(tmp_path):
    pytest.importorskip("ray")
    path = jsonl(tmp_path / "c.jsonl", CAPTIONS * 4)
    captions = config(path, part_records=10)
    here = filter_captions(captions, CHOICE, tmp_path / "here", Resources(processes=2))
    ray = filter_captions(captions, CHOICE, tmp_path / "ray", Resources(processes=2, ray="local"))
    assert ray.choice == here.choice
    for name in ("chosen.parquet", "phrases.parquet", "chosen/000-c.jsonl"):
        assert (tmp_path / "ray" / name).read_bytes() == (tmp_path / "here" / name).read_bytes()
