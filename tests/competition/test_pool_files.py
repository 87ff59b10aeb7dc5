"""Instructions and answers in and out: unrolled, regrouped, exported so that limbeck's own loaders read them."""

import csv
import json
import re
from pathlib import Path

import pytest
from PIL import Image
from pool_play import TEACHER, Play, open_pool
from typer.testing import CliRunner

from limbeck.commands.pool import app
from limbeck.competition.pool import Pool
from limbeck.competition.pool_conversations import pictures_of, regroup, seeds_of, unroll
from limbeck.competition.pool_export import export, teacher_of
from limbeck.competition.pool_file import PoolError
from limbeck.competition.pool_import import read_seeds
from limbeck.competition.pool_records import Author, Instruction, Picture, Seed
from limbeck.data.conversations import Conversation, ConversationSource, Turn
from limbeck.data.examples import DataError, FileImage, MadeImage
from limbeck.data.llava import LlavaConfig, load_llava
from limbeck.data.messages import MessagesConfig, load_messages

ME = Author("me", "plain")


@pytest.fixture
def photos(tmp_path) -> Path:
    """A folder with a.png and deep/b.png."""
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    for name in ("a.png", "deep/b.png"):
        Image.new("RGB", (4, 4)).save(folder / name)
    return folder


@pytest.fixture
def mix(photos) -> Path:
    """LLaVA's JSON: two dialogues about one picture, one about the other, one about none."""

    def said(*texts: str) -> list[dict[str, str]]:
        return [{"from": ("human", "gpt")[number % 2], "value": text} for number, text in enumerate(texts)]

    records = [
        {"id": 1, "image": "a.png", "conversations": said("<image>\nWho {is} ünder it?", "A 猫.", "Where?", "Here.")},
        {"id": 2, "image": "deep/b.png", "conversations": said("How many?\n<image>", "Two,\nor three.")},
        {"id": 3, "conversations": said("Hello", "Hi")},
        {"id": 4, "image": "a.png", "conversations": said("<image>\nWhy?", "Because.")},
    ]
    file = photos.parent / "mix.json"
    file.write_text(json.dumps(records), "utf-8")
    return file


@pytest.fixture
def answered(mix, photos, tmp_path):
    """A pool of the mix, its answers kept as the teacher's."""
    seeds, _ = read_seeds(mix, photos)
    with Pool.open(tmp_path / "pool.sqlite", create=True) as pool:
        pool.add_model("me", "me")
        pool.add_prompt("plain", "answer", "{instruction}")
        pool.add_seeds(seeds, ME)
        yield pool


WHOLE = [
    ("a.png", ["Who {is} ünder it?", "A 猫.", "Where?", "Here.", "Why?", "Because."]),
    ("b.png", ["How many?", "Two,\nor three."]),
    (None, ["Hello", "Hi"]),
]


def plain(conversation: Conversation) -> tuple[str | None, list[str]]:
    name = Path(conversation.image.key).name if conversation.image else None
    return name, [turn.text for turn in conversation.turns]


def test_dialogues_become_single_turns(mix, photos):
    seeds, skipped = read_seeds(mix, photos)
    assert [(seed.name, seed.picture and seed.picture.id, seed.text, seed.answer) for seed in seeds] == [
        ("mix.json[0]#0", "a.png", "Who {is} ünder it?", "A 猫."),
        ("mix.json[0]#1", "a.png", "Where?", "Here."),
        ("mix.json[1]", "deep/b.png", "How many?", "Two,\nor three."),
        ("mix.json[2]", None, "Hello", "Hi"),
        ("mix.json[3]", "a.png", "Why?", "Because."),
    ]
    assert not skipped
    source = load_llava(LlavaConfig(source="llava", path="mix.json", images="photos"), mix.parent)
    assert list(seeds_of(source, photos)) == seeds, "a recipe's source gives the same"
    assert set(pictures_of(source, photos)) == {"a.png", "deep/b.png"}


def test_what_was_unrolled_is_regrouped_by_picture(mix, photos):
    source = load_llava(LlavaConfig(source="llava", path="mix.json", images="photos"), mix.parent)
    dialogue = source.conversations[0]
    assert [plain(each)[1] for each in unroll(dialogue)] == [["Who {is} ünder it?", "A 猫."], ["Where?", "Here."]]
    pictures, said = pictures_of(source, photos), []
    for number, seed in enumerate(seeds_of(source, photos), start=1):
        image = seed.picture.id if seed.picture else None
        said.append(
            (Instruction(id=number, name=seed.name, image=image, text=seed.text, round=0, parent=None), seed.answer)
        )
    back = regroup(said[::-1], pictures, name="back")
    assert [plain(each) for each in back.conversations] == WHOLE
    short = regroup(said, pictures, name="short", fits=lambda conversation: len(conversation.exchanges) <= 2)
    assert [plain(each)[1] for each in short.conversations][:2] == [WHOLE[0][1][:4], WHOLE[0][1][4:]]
    alone = regroup(said, pictures, name="alone", fits=lambda conversation: False)
    assert len(alone.conversations) == len(said), "an exchange that does not fit by itself is still there"
    assert len({each.id for each in alone.conversations}) == len(said)


def test_empty_answers_are_set_aside_and_placeholders_taken_out():
    def asked(id: int, text: str) -> Instruction:
        return Instruction(id=id, name=None, image="x", text=text, round=1, parent=1)

    said = [(asked(1, "What is <image>?"), "A <image>thing"), (asked(2, "And?"), " <image> ")]
    source = regroup(said, {"x": FileImage("x.png")}, name="pool")
    assert [plain(each)[1] for each in source.conversations] == [["What is ?", "A thing"]]
    assert [str(entry) for entry in source.set_aside] == ["pool: instruction 2: the answer is empty"]


def test_export_is_read_by_limbecks_own_loaders(answered, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    assert export(answered, out / "mix.json", "llava") == 5
    assert export(answered, out / "mix.jsonl", "messages") == 5
    llava = load_llava(LlavaConfig(source="llava", path="mix.json", images="."), out)
    messages = load_messages(MessagesConfig(source="messages", path="mix.jsonl"), out)
    for source in (llava, messages):
        assert not source.skipped
        assert [plain(each) for each in source.conversations[:]] == WHOLE
        for each in source.conversations[:2]:
            assert each.image.open().size == (4, 4)
    assert json.loads((out / "mix.json").read_text())[0]["conversations"][0]["value"] == "<image>\nWho {is} ünder it?"
    assert not list(out.glob("*.part"))


@pytest.mark.parametrize("name", ["back.json", "back.jsonl", "back.csv"])
def test_what_was_exported_can_be_imported(answered, tmp_path, name):
    formats = {"back.json": "llava", "back.jsonl": "messages", "back.csv": "csv"}
    export(answered, tmp_path / name, formats[name])
    seeds, skipped = read_seeds(tmp_path / name)
    assert not skipped
    order = [0, 1, 2, 3, 4] if name.endswith("csv") else [0, 1, 4, 2, 3]
    answers = answered.answers("teacher", 0, ME)
    assert [(seed.text, seed.answer) for seed in seeds] == [
        (answered.instructions()[at].text, answers[at + 1].text) for at in order
    ]
    assert {seed.picture.path for seed in seeds if seed.picture} == set(answered.images().values())


def test_only_some_rounds_and_only_one_teacher(tmp_path):
    with open_pool(tmp_path / "pool.sqlite") as pool:
        with pytest.raises(PoolError, match="no answers of a teacher"):
            export(pool, tmp_path / "out.csv", "csv")
        Play(pool, tmp_path / "log").whole()
        count = export(pool, tmp_path / "out.csv", "csv", rounds=[1])
        with (tmp_path / "out.csv").open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        assert count == len(rows) == len(pool.instructions(round=1))
        assert {row["round"] for row in rows} == {"1"}
        assert all(int(row["parent"]) <= 12 for row in rows)
        pool.add_model("rival", "another")
        first = pool.instructions()[0]
        again = Seed(name=str(first.name), picture=Picture(id=str(first.image), path=None), text=first.text, answer="x")
        pool.add_seeds([again], Author("rival", TEACHER.prompt))
        with pytest.raises(PoolError, match=r"several teachers answered, say which: the big one \(fingerprint big"):
            export(pool, tmp_path / "out.csv", "csv")
        assert teacher_of(pool, "rival") == Author("rival", TEACHER.prompt)


def test_pictures_that_are_no_files_go_into_csv_alone(tmp_path):
    drawn = MadeImage("scenes/train/7@64", lambda: Image.new("RGB", (4, 4)))
    turns = (Turn("user", "How many?"), Turn("assistant", "2"))
    conversation = Conversation(id="q", image=drawn, turns=turns)
    source = ConversationSource(name="scenes", conversations=[conversation])
    with Pool.open(tmp_path / "pool.sqlite", create=True) as pool:
        pool.add_model("me", "me")
        pool.add_prompt("plain", "answer", "{instruction}")
        pool.add_seeds(seeds_of(source), ME)
        assert pool.images() == {"scenes/train/7@64": None}
        with pytest.raises(PoolError, match=r"1 pictures are no files .*use csv"):
            export(pool, tmp_path / "out.json", "llava")
        export(pool, tmp_path / "out.csv", "csv")
    assert "1,scenes/train/7@64,0,,How many?,2" in (tmp_path / "out.csv").read_text()


def test_instructions_without_answers(photos, tmp_path):
    records = {
        "llava.jsonl": {"image": "a.png", "conversations": [{"from": "human", "value": "<image>\nWho?"}]},
        "messages.jsonl": {
            "messages": [
                {"role": "system", "content": "Be kind."},
                {"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "Who?"}]},
            ]
        },
        "plain.jsonl": {"id": "x", "image": "a.png", "question": "Who?", "kind": "who"},
    }
    for name, record in records.items():
        (tmp_path / name).write_text(json.dumps(record))
    (tmp_path / "table.csv").write_text("image,instruction,answer\na.png,Who?,\n")
    for name in [*records, "table.csv"]:
        ((seed,), _) = read_seeds(tmp_path / name, photos)
        assert (seed.text, seed.answer, seed.picture) == ("Who?", None, Picture(id="a.png", path=str(photos / "a.png")))


def test_what_is_broken_is_listed_with_its_reason(photos, tmp_path):
    broken = {
        "no picture .*gone.png": {"image": "gone.png", "question": "Who?"},
        "field 'image': wanted a text": {"image": 3, "question": "Who?"},
        "no field 'instruction'; it has image": {"image": "a.png"},
        "turn 1 asks nothing": {"image": "a.png", "question": " <image> "},
        "turn 1 answers, and nothing was asked": {"conversations": [{"from": "gpt", "value": "Me."}]},
        "turn 1: wanted one of human, .*found 'bing'": {"conversations": [{"from": "bing", "value": "hm"}]},
        "2 pictures; it may have one": {"messages": [{"role": "user", "content": "?"}], "images": ["a.png", "b.png"]},
        'found a text "https://e.org/a.png"': {"messages": [], "images": ["https://e.org/a.png"]},
        "wanted an object, found a number 17": 17,
    }
    lines = [json.dumps(record) for record in broken.values()]
    good = json.dumps({"image": "a.png", "question": "Who?"})
    (tmp_path / "mix.jsonl").write_text("\n".join([good, "{torn", *lines]))
    seeds, skipped = read_seeds(tmp_path / "mix.jsonl", photos, max_skipped=1)
    assert len(seeds) == 1
    assert [entry.id for entry in skipped] == [f"mix.jsonl:{number}" for number in range(2, 12)]
    for entry, reason in zip(skipped, ["not JSON", *broken], strict=True):
        assert re.search(reason, entry.reason), entry
    with pytest.raises(DataError, match="10 of 11 records are broken"):
        read_seeds(tmp_path / "mix.jsonl", photos)
    (tmp_path / "list.json").write_text('{"a": 1}')
    with pytest.raises(DataError, match="wanted a list of records, found an object"):
        read_seeds(tmp_path / "list.json", photos)
    with pytest.raises(DataError, match=r"wanted a file that ends in .json, .jsonl or .csv"):
        read_seeds(photos / "a.png")


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(each) for each in arguments])
    if result.exception:
        raise result.exception
    return result.stdout


def test_the_commands(mix, photos, tmp_path):
    pool = tmp_path / "pool.sqlite"
    assert "5 new instructions of 5" in run("import", pool, mix, "--images", photos, "--answers-of", "gpt")
    assert "0 new instructions of 5" in run("import", pool, mix, "--images", photos)
    found = json.loads(run("stats", pool, "--json"))
    assert found["instructions"] == [{"round": 0, "instructions": 5, "images": 2}]
    assert found["answers"][0]["model"] == "gpt"
    assert "instructions" in run("stats", tmp_path), "the folder that has it"
    assert "A 猫." in run("show", pool, 1)
    assert json.loads(run("show", pool, 1, "--json"))["answers"][0]["text"] == "A 猫."
    run("export", pool, tmp_path / "out.jsonl")
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 3
    assert "0 refused calls" in run("forget", pool)
    with pytest.raises(DataError, match=r"wanted a file that ends in .json, .jsonl, .csv, or --format"):
        run("export", pool, tmp_path / "out.txt")


def test_the_commands_on_a_whole_competition(tmp_path):
    with open_pool(tmp_path / "pool.sqlite") as pool:
        Play(pool, tmp_path / "log").whole()
        last = pool.instructions()[-1]
        shown = run("stats", tmp_path)  # while it is open
    for word in ("teacher", "student", "assessor", "augmentor", "difficulty in round 2", "hard", "seconds"):
        assert word in shown
    shown = run("show", tmp_path, last.id)
    assert last.text in shown
    assert "round 0" in shown
    assert "score_1" in run("show", tmp_path, 1)


def test_two_files_may_each_have_a_picture_of_one_name(tmp_path):
    for folder, colour in (("A", "red"), ("B", "blue")):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (4, 4), colour).save(tmp_path / folder / "1.png")
        (tmp_path / folder / f"{folder}.csv").write_text("image,instruction\n1.png,What is it?\n")
        run("import", tmp_path / "pool.sqlite", tmp_path / folder / f"{folder}.csv")
    with Pool.open(tmp_path / "pool.sqlite", readonly=True) as pool:
        shown = [pool.images()[str(each.image)] for each in pool.instructions()]
    assert shown == [str(tmp_path / "A" / "1.png"), str(tmp_path / "B" / "1.png")]


def test_a_picture_of_a_known_name_may_be_moved_but_not_be_another(photos, tmp_path):
    old, new = photos / "a.png", tmp_path / "a.png"

    def seed(path: Path) -> Seed:
        return Seed(name="q", picture=Picture(id="a.png", path=str(path)), text="Who?")

    new.write_bytes(old.read_bytes())
    with Pool.open(tmp_path / "pool.sqlite", create=True) as pool:
        pool.add_seeds([seed(old)])
        pool.add_seeds([seed(new)])
        assert pool.images() == {"a.png": str(new)}, "a copy is the same picture"
        Image.new("RGB", (4, 4), "red").save(old)
        with pytest.raises(PoolError, match=r"the picture 'a.png' is .* there, and .* now: two pictures of one name"):
            pool.add_seeds([seed(old)])
        new.unlink()
        pool.add_seeds([seed(old)])
        assert pool.images() == {"a.png": str(old)}
