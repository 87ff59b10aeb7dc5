"""ScienceQA's official files: problems as LLaVA asks and answers them, and its train split as conversations.

The form is LLaVA's and CoMD's QCM-LEA: question, context and options in, lecture, explanation and answer out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any, Literal

from limbeck.data.conversations import ConversationSource, Turn, conversation_of
from limbeck.data.examples import DataError, Skipped, check_skipped
from limbeck.data.records import (
    BrokenRecord,
    FilesConfig,
    existing_file,
    existing_folder,
    field,
    image_file,
    kind_of,
    listed,
    read_json,
)

SUBJECTS = {"natural science": "NAT", "social science": "SOC", "language science": "LAN"}
"""A problem's subject and its column in papers."""


class ScienceQaSourceConfig(FilesConfig):
    """ScienceQA's problems with lecture and explanation, one conversation each, to train on; 12,726 in `train`."""

    source: Literal["scienceqa"]
    problems: str
    """problems.json"""
    splits: str | None = None
    """pid_splits.json; null: every problem of `problems`"""
    split: str = "train"
    images: str
    """the split's folder of pictures, which has <id>/image.png"""
    subset: Literal["all", "image"] = "all"
    """image: only problems with a picture"""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One problem."""

    id: str
    question: str
    hint: str
    """"" where it has none"""
    options: tuple[str, ...]
    """two to five"""
    answer: str
    """the right option's letter"""
    lecture: str
    solution: str
    image: str | None
    """<id>/<file> in the split's folder"""
    subject: str
    """of NAT, SOC, LAN"""
    grade: int

    @property
    def columns(self) -> list[str]:
        """Those of papers' tables that count it: subject; TXT, IMG (both, where there are both) or NO; grades."""
        given = [*(["TXT"] if self.hint else []), *(["IMG"] if self.image else [])]
        return [self.subject, *(given or ["NO"]), "G1-6" if self.grade <= 6 else "G7-12"]

    @property
    def lea_prompt(self) -> str:
        """QCM, without the word "Question: ", as LLaVA leaves it out."""
        options = " ".join(f"({letter}) {option}" for letter, option in zip(ascii_uppercase, self.options))
        return _written(f"{self.question}\nContext: {self.hint.strip() or 'N/A'}\nOptions: {options}")

    @property
    def lea_answer(self) -> str:
        """LEA."""
        return _written(f"{self.lecture} {self.solution} The answer is {self.answer}.")


def problem_of(id: str, record: Any) -> Problem:
    """A record of problems.json. Raises BrokenRecord."""
    options, number = field(record, "choices", list), field(record, "answer", int)
    if not 0 <= number < len(options) <= 5 or not all(isinstance(option, str) for option in options):
        raise BrokenRecord(f"wanted two to five texts as choices and the number of one, found {number} of {options}")
    subject, grade = field(record, "subject", str), field(record, "grade", str)
    if subject not in SUBJECTS or not grade.removeprefix("grade").isdecimal():
        raise BrokenRecord(f"wanted a subject of {', '.join(SUBJECTS)} and a grade like grade7: {subject}, {grade}")
    image = field(record, "image", (str, type(None)))
    return Problem(
        id=id,
        question=field(record, "question", str),
        hint=field(record, "hint", str),
        options=tuple(options),
        answer=ascii_uppercase[number],
        lecture=field(record, "lecture", str),
        solution=field(record, "solution", str),
        image=f"{id}/{image}" if image else None,
        subject=SUBJECTS[subject],
        grade=int(grade.removeprefix("grade")),
    )


def read_problems(
    base: Path, problems: str, splits: str | None, split: str, what: str
) -> tuple[Path, Iterator[tuple[str, Any]]]:
    """problems.json, and the id and record of every problem of a split. Raises DataError; `what` names who asks."""
    file = existing_file(base, problems, f"{what}, field problems")
    content = read_json(file)
    if not isinstance(content, dict):
        raise DataError(f"{file}: wanted an object of problems by id, found {kind_of(content)}")
    ids = list(content)
    if splits is not None:
        splits_file = existing_file(base, splits, f"{what}, field splits")
        ids = [str(id) for id in listed(read_json(splits_file), split, splits_file)]
        if absent := [id for id in ids if id not in content]:
            raise DataError(f"{file}: lacks {len(absent)} problems that {splits_file} lists, the first {absent[:5]}")
    return file, ((id, content[id]) for id in ids)


def load_scienceqa_conversations(config: ScienceQaSourceConfig, base: Path) -> ConversationSource:
    """One conversation per problem, in the split's order. Raises DataError."""
    file, records = read_problems(base, config.problems, config.splits, config.split, "source scienceqa")
    folder = existing_folder(base, config.images, "source scienceqa, field images")
    made, skipped = [], []
    for id, record in records:
        try:
            problem = problem_of(id, record)
            if config.subset == "image" and problem.image is None:
                continue
            image = image_file(folder, problem.image) if problem.image else None
            turns = (Turn("user", problem.lea_prompt), Turn("assistant", problem.lea_answer))
            made.append(conversation_of(id, image, turns))
        except BrokenRecord as error:
            skipped.append(Skipped(f"{file.name}:problem {id}", str(error)))
        if len(made) == config.limit:
            break
    check_skipped(skipped, len(made) + len(skipped), config.max_skipped, str(file))
    if not made:
        raise DataError(f"{file}: no problem in it{' with a picture' if config.subset == 'image' else ''}")
    return ConversationSource(name=config.problems, conversations=tuple(made), skipped=tuple(skipped))


def _written(text: str) -> str:
    """LLaVA's clean-up: two spaces, as an empty part leaves them, to one."""
    return text.replace("  ", " ").strip()
