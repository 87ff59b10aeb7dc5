"""Built-in scenes teach a small model the roles of the competition, since the truth about them is known.

A conversation is about one scene. In each exchange the model answers a question; or it is given a question and two
answers, says what is right and scores both; or it is given a question and asks another one of the same kind. The
prompts are the files that the competition sends (`competition/prompts`): a role is asked as it was taught.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from limbeck.config import Section
from limbeck.data.conversations import Conversation, Conversations, ConversationSource, Turn
from limbeck.data.examples import DataError
from limbeck.data.records import existing_file
from limbeck.data.scene_facts import pick
from limbeck.data.scene_grades import draw_answer, grade
from limbeck.data.scene_questions import ROLE_KINDS, Asked, all_questions
from limbeck.data.scenes import Scenes, ScenesConfig, load_scenes

PROMPTS = Path(str(files("limbeck"))) / "competition" / "prompts"
"""The package's own prompts, `<role>/<name>.txt`; these are its `laptop`."""


class SharesConfig(Section):
    """How often each role is practised."""

    answer: float = Field(default=0.4, ge=0)
    """a question is answered: the teacher's role"""
    assess: float = Field(default=0.4, ge=0)
    """two answers are scored: the assessor's"""
    ask: float = Field(default=0.2, ge=0)
    """another question is asked: the augmentor's"""

    @model_validator(mode="after")
    def _some(self) -> SharesConfig:
        if self.answer + self.assess + self.ask <= 0:
            raise ValueError("give at least one of `answer`, `assess` and `ask` a share")
        return self


class SceneRolesConfig(Section):
    """Every role of the competition, practised on built-in scenes."""

    source: Literal["scene_roles"]
    of: ScenesConfig
    words: int = Field(default=100, ge=1, le=500)
    """of each conversation, at most: exchanges about one scene follow each other as long as there is room, so that
    all are of about one length; a single exchange may be longer"""
    shares: SharesConfig = SharesConfig()
    assessor: str | None = None
    """file of its prompt, with {instruction}, {answer_1} and {answer_2}; null: the laptop competition's"""
    augmentor: str | None = None
    """file of its prompt, with {instruction}; null: the laptop competition's"""


class SceneInstructionsConfig(Section):
    """Single questions about built-in scenes, in all phrasings: the first pool of a competition.

    A conversation's id ends in its kind. The answers are the truth; a competition leaves them out.
    """

    source: Literal["scene_instructions"]
    of: ScenesConfig
    per_scene: int = Field(default=3, ge=1, le=32)
    """questions about each scene, of as many kinds as possible"""


def load_scene_roles(config: SceneRolesConfig | SceneInstructionsConfig, base: Path = Path()) -> ConversationSource:
    """The conversations; nothing is made before it is wanted. Relative paths start from `base`. Raises DataError."""
    load_scenes(config.of)
    scenes = Scenes(config.of)
    match config:
        case SceneRolesConfig():
            assessor = _prompt(config.assessor, base, "assessor", ("{instruction}", "{answer_1}", "{answer_2}"))
            augmentor = _prompt(config.augmentor, base, "augmentor", ("{instruction}",))
            make, total = _Practice(scenes, config, assessor, augmentor), len(scenes)
        case SceneInstructionsConfig():
            make, total = _Instructions(scenes, config.per_scene), len(scenes) * config.per_scene
    return ConversationSource(
        name=f"{config.source} of builtin:scenes/{config.of.split}", conversations=Conversations(total, make)
    )


def kind_of(id: str) -> str:
    """The kind of question (of ROLE_KINDS) of an id of `scene_instructions`."""
    slug = id.rpartition("#")[2].partition("-")[2]
    [kind] = [kind for kind in ROLE_KINDS if _slug(kind) == slug]
    return kind


def scored(truth: str, first: int, second: int) -> str:
    """What an assessor says: the evidence, then both scores."""
    return f"Evidence: {truth}\nScore of Assistant 1: {first}\nScore of Assistant 2: {second}"


@dataclass(frozen=True)
class _Instructions:
    scenes: Scenes
    per_scene: int

    def __call__(self, index: int) -> Conversation:
        row, number = divmod(index, self.per_scene)
        example = self.scenes[row]
        rng = random.Random(f"instructions {example.id}")
        questions = all_questions(self.scenes.scene(row), self.scenes.config.vocabulary)
        asked = next(islice(_different(rng, questions), number, None))
        turns = (Turn("user", asked.text), Turn("assistant", asked.answer))
        return Conversation(id=f"{example.id}#{number}-{_slug(asked.kind)}", image=example.image, turns=turns)


@dataclass(frozen=True)
class _Practice:
    scenes: Scenes
    config: SceneRolesConfig
    assessor: str
    augmentor: str

    def __call__(self, index: int) -> Conversation:
        example = self.scenes[index]
        rng = random.Random(f"roles {example.id}")
        questions = all_questions(self.scenes.scene(index), self.scenes.config.vocabulary)
        turns: list[Turn] = []
        room = self.config.words
        for asked in _different(rng, questions):
            said, reply = self._exchange(rng, asked, questions)
            room -= len(said.split()) + len(reply.split())
            if turns and room < 0:
                break
            turns += (Turn("user", said), Turn("assistant", reply))
        return Conversation(id=f"{example.id}#roles", image=example.image, turns=tuple(turns))

    def _exchange(self, rng: random.Random, asked: Asked, questions: Sequence[Asked]) -> tuple[str, str]:
        shares, vocabulary = self.config.shares, self.scenes.config.vocabulary
        chance = rng.random() * (shares.answer + shares.assess + shares.ask)
        if chance < shares.answer:
            return asked.text, asked.answer
        if chance < shares.answer + shares.assess:
            first, second = (draw_answer(rng, asked, questions, vocabulary) for _ in range(2))
            said = _filled(self.assessor, {"instruction": asked.text, "answer_1": first, "answer_2": second})
            return said, scored(asked.answer, grade(asked, first), grade(asked, second))
        return _filled(self.augmentor, {"instruction": asked.text}), _another(rng, asked, questions).text


def _different(rng: random.Random, questions: Sequence[Asked]) -> Iterator[Asked]:
    """Questions, no two about the same, of one kind after the other in an order of chance."""
    known: set[tuple[str, ...]] = set()
    kinds: list[str] = []
    while len(known) < len({each.about for each in questions}):
        kinds = kinds or sorted({each.kind for each in questions})
        kind = kinds.pop(int(rng.random() * len(kinds)))
        fresh = [each for each in questions if each.kind == kind and each.about not in known]
        if fresh:
            asked = _balanced(rng, fresh)
            known.add(asked.about)
            yield asked


def _another(rng: random.Random, asked: Asked, questions: Sequence[Asked]) -> Asked:
    """A question of the same kind in another phrasing, about something else where there is something else."""
    same = [each for each in questions if each.about[0] == asked.about[0] and each.phrasing != asked.phrasing]
    return _balanced(rng, [each for each in same if each.about != asked.about] or same)


def _balanced(rng: random.Random, questions: Sequence[Asked]) -> Asked:
    """One of them, what is claimed and what the answer is as evenly as can be: "no" fits far more claims than "yes"."""
    for key in (lambda each: each.about[0], lambda each: each.answer):
        chosen = pick(rng, sorted({key(each) for each in questions}))
        questions = [each for each in questions if key(each) == chosen]
    return pick(rng, questions)


def _prompt(name: str | None, base: Path, role: str, fields: tuple[str, ...]) -> str:
    """A role's prompt as the competition reads it. Raises DataError where the file or a field is missing."""
    shipped = PROMPTS / role / "laptop.txt"
    file = shipped if name is None else existing_file(base, name, f"source scene_roles, field {role}")
    text = file.read_text("utf-8").strip()
    missing = [field for field in fields if field not in text]
    if missing:
        raise DataError(f"{file}: {', '.join(missing)} is missing; the {role}'s prompt needs {', '.join(fields)}")
    return text


def _filled(prompt: str, fields: Mapping[str, str]) -> str:
    """The prompt with its fields filled, in one pass: what is filled in is not looked at again."""
    return re.sub(r"\{(\w+)\}", lambda found: fields.get(found[1], found[0]), prompt).strip()


def _slug(kind: str) -> str:
    return kind.replace(" ", "-").replace("/", "-")
