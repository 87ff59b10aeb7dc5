"""Scenes: captions are true, answers exact, splits disjoint in combinations, everything a function of its name."""

import hashlib
import re
import subprocess
import sys
from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from limbeck.data.scene_facts import BACKGROUNDS, PLACES, SIZES, Scene
from limbeck.data.scene_texts import INVERSE, KINDS, holds
from limbeck.data.scene_words import NUMBERS, plural, things
from limbeck.data.scenes import Scenes, ScenesConfig, draw

SPLITS = ("train", "val", "test")


def scenes(split="train", **fields) -> Scenes:
    return Scenes(ScenesConfig(source="builtin:scenes", split=split, objects=4, questions=7, **fields))


def place_in(text: str) -> str:
    found = re.search(r"(?:on the|at the|in the) (top left|top right|bottom left|bottom right|\w+)", text)
    assert found
    return found[1]


def named(scene: Scene, name: str):
    return [placed for placed in scene.placed if placed.thing.name == name]


def expected_answer(scene: Scene, text: str, kind: str) -> str:
    """The answer, worked out from the words of the question and the facts alone."""
    if kind in ("what", "group"):
        (placed,) = [placed for placed in scene.placed if placed.place == place_in(text)]
        return placed.thing.name if kind == "what" else placed.thing.group
    if kind == "colour":
        return scene.background
    if kind == "how many":
        (word,) = re.findall("how many (.*) are there", text)
        counted = [p for p in scene.placed if word in ("things", plural(p.thing.name), plural(p.thing.group))]
        return str(len(counted))
    if kind == "where":
        (placed,) = named(scene, re.findall("where is the (.*)[?]", text)[0])
        return placed.place
    if kind == "relation":
        relation, name = re.findall(rf"what is ({'|'.join(INVERSE)}) the (.*)[?]", text)[0]
        (other,) = named(scene, name)
        (placed,) = [placed for placed in scene.placed if holds(placed, relation, other)]
        return placed.thing.name
    return "yes" if said_is_true(scene, text) else "no"


def said_is_true(scene: Scene, text: str) -> bool:
    if found := re.fullmatch(r"is there an? (.*)[?]", text):
        return bool(named(scene, found[1]))
    if found := re.fullmatch(r"is the background (.*)[?]", text):
        return scene.background == found[1]
    if found := re.fullmatch(rf"is the (.*) ({'|'.join(INVERSE)}) the (.*)[?]", text):
        (first,), (second,) = named(scene, found[1]), named(scene, found[3])
        return holds(first, found[2], second)
    name, size = re.findall(r"is the (.*) (big|small)[?]", text)[0]
    (placed,) = named(scene, name)
    return placed.size == size


@pytest.mark.parametrize("split", SPLITS)
def test_every_answer_follows_from_the_facts(split):
    examples = scenes(split)
    asked = Counter()
    for index in range(400):
        scene = examples.scene(index)
        for question in examples[index].questions:
            assert question.kind is not None
            assert question.answers == (expected_answer(scene, question.text, question.kind),), (scene, question)
            asked[question.kind] += 1
    assert set(asked) == set(KINDS)


def test_yes_is_as_frequent_as_no():
    answers = Counter(
        question.answers[0] for e in scenes()[:2000] for question in e.questions if question.kind == "yes/no"
    )
    assert 0.46 < answers["yes"] / answers.total() < 0.54


def test_captions_name_what_is_there_and_nothing_else():
    examples = scenes("train", count=400)
    names = {thing.name: thing for thing in things()}
    longest_first = sorted({*names, *map(plural, names)}, key=len, reverse=True)
    for index, example in enumerate(examples):
        scene = examples.scene(index)
        shown = {placed.thing.name for placed in scene.placed}
        allowed = shown | {plural(name) for name in shown}
        assert len(example.captions) == 5
        for caption in example.captions:
            mentioned = set(re.findall(rf"\b({'|'.join(map(re.escape, longest_first))})\b", caption))
            assert mentioned, caption
            assert mentioned <= allowed, (caption, shown)
            assert not {colour for colour in BACKGROUNDS if re.search(rf"\b{colour}\b", caption)} - {scene.background}
            for number, name in re.findall(r"\b(two|three|four) ([\w ]+?)(?:,| and| on| in front|$)", caption):
                counts = Counter(word for p in scene.placed for word in (plural(p.thing.name), plural(p.thing.group)))
                bare = name.removeprefix("big ").removeprefix("small ")
                if bare != "things" and name == bare:
                    assert counts[name] == NUMBERS.index(number), (caption, scene)


@pytest.mark.parametrize("vocabulary", [36, 96, 144])
def test_no_combination_of_one_split_is_seen_in_another(vocabulary):
    pairs, grounds = {}, {}
    for split in SPLITS:
        examples = scenes(split, vocabulary=vocabulary)
        pairs[split], grounds[split] = set(), set()
        for index in range(1500):
            scene = examples.scene(index)
            kinds = sorted({placed.thing.name for placed in scene.placed})
            pairs[split] |= set(combinations(kinds, 2))
            grounds[split] |= {(kind, scene.background) for kind in kinds}
        assert len(pairs[split]) > 30
    for first, second in combinations(SPLITS, 2):
        assert not pairs[first] & pairs[second]
        assert not grounds[first] & grounds[second]
    single = {split: {kind for kind, _ in grounds[split]} for split in SPLITS}
    assert single["test"] <= single["train"], "every kind of thing is seen in training"


def test_another_seed_gives_other_scenes_with_the_same_held_out_combinations():
    first, second = scenes("test", seed=0), scenes("test", seed=1)
    assert [first.scene(i) for i in range(20)] != [second.scene(i) for i in range(20)]
    train = {pair for i in range(1500) for pair in combinations(sorted(_names(scenes("train").scene(i))), 2)}
    test = {pair for i in range(500) for pair in combinations(sorted(_names(second.scene(i))), 2)}
    assert test
    assert not train & test


def _names(scene: Scene) -> set[str]:
    return {placed.thing.name for placed in scene.placed}


def test_the_picture_shows_the_facts():
    examples = scenes()
    for index in range(50):
        scene = examples.scene(index)
        picture = draw(scene, 64).astype(int)
        ground = np.clip(np.array(BACKGROUNDS[scene.background]) + scene.tint, 0, 255)
        painted = (np.abs(picture - ground) > 40).any(-1)
        for place, (x, y) in PLACES.items():
            middle = painted[int(64 * y) - 6 : int(64 * y) + 6, int(64 * x) - 6 : int(64 * x) + 6]
            inside = [p for p in scene.placed if p.place == place]
            if inside:
                assert middle.any(), (scene, place)
        boxes = sum(round(64 * SIZES[placed.size] + 1) ** 2 for placed in scene.placed)
        assert painted.sum() <= boxes


def test_a_big_thing_is_bigger_than_a_small_one():
    examples = scenes(count=300)
    areas = {"big": [], "small": []}
    for index in range(300):
        scene = examples.scene(index)
        if len(scene.placed) == 1:
            picture = draw(scene, 64).astype(int)
            painted = (np.abs(picture - picture[0, 0]) > 25).any(-1)
            areas[scene.placed[0].size].append(max(np.ptp(axis) + 1 for axis in np.nonzero(painted)))
    assert min(areas["big"]) > max(areas["small"])


def test_a_scene_is_the_same_in_another_process():
    code = (
        "from limbeck.data.scenes import Scenes, ScenesConfig, draw\nimport hashlib\n"
        "s = Scenes(ScenesConfig(source='builtin:scenes', objects=4, questions=7))\n"
        "print(hashlib.sha256(b''.join(draw(s.scene(i), 64).tobytes() + repr((s[i].captions, s[i].questions)).encode()"
        " for i in range(20))).hexdigest())"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    examples = scenes()
    here = b"".join(
        draw(examples.scene(i), 64).tobytes() + repr((examples[i].captions, examples[i].questions)).encode()
        for i in range(20)
    )
    assert hashlib.sha256(here).hexdigest() == other


def test_fields_out_of_range_are_refused():
    for wrong in ({"objects": 5}, {"vocabulary": 145}, {"count": 0}, {"colour": "red"}, {"seed": "1"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            ScenesConfig.model_validate({"source": "builtin:scenes", **wrong})
