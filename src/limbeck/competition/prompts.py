"""What is said to each role: templates in files that a user can replace, known in the pool by a hash of their text.

The roles are `answer` (teacher and student), `assessor` and `augmentor`. The package's own templates stand in
`prompts/<role>/<name>.txt`: for the assessor `comd` (the paper's four criteria, evidence first, two lines of scores)
and `vicuna` (Vicuna's and LLaVA's rule: two numbers, then the explanation), for the augmentor `comd`, and for answers
`plain`, the instruction as it is.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Literal

from pydantic import Field

from limbeck.config import Section
from limbeck.data.conversations import IMAGE
from limbeck.errors import WrongInput

PromptRole = Literal["answer", "assessor", "augmentor"]

FIELDS: Mapping[PromptRole, tuple[str, ...]] = {
    "answer": ("instruction",),
    "assessor": ("instruction", "answer_1", "answer_2"),
    "augmentor": ("instruction",),
}
"""What a role's template must have in braces, each at least once."""

_FIELD = re.compile(r"\{([A-Za-z_][A-Za-z_0-9]*)\}")


class PromptError(WrongInput):
    """A template that cannot be used; the message names its file and what would be right."""


class PromptsConfig(Section):
    """The recipe's `prompts:`. Each is the name of a template of the package, or a file (its path ends in `.txt`)."""

    answer: str = Field(default="plain", min_length=1)
    """what teacher and student are asked; needs {instruction}"""
    assessor: str = Field(default="comd", min_length=1)
    """needs {instruction}, {answer_1} and {answer_2}: `comd`, `vicuna`, or a file"""
    augmentor: str = Field(default="comd", min_length=1)
    """needs {instruction}: `comd`, or a file"""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One role's template."""

    role: PromptRole
    text: str

    @property
    def id(self) -> str:
        """Of role and text: another wording is another prompt in the pool."""
        return hashlib.blake2b(f"{self.role}\n{self.text}".encode(), digest_size=8).hexdigest()

    def fill(self, fields: Mapping[str, str]) -> str:
        """The template with its fields put in, in one pass: what is put in may hold braces and names of fields."""
        return _FIELD.sub(lambda found: fields[found[1]] if found[1] in FIELDS[self.role] else found[0], self.text)


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """The templates of all roles."""

    answer: Prompt
    assessor: Prompt
    augmentor: Prompt

    def ask(self, instruction: str) -> str:
        """What teacher and student are asked."""
        return self.answer.fill({"instruction": instruction})

    def assess(self, instruction: str, answer_1: str, answer_2: str) -> str:
        """What the assessor is asked of two answers, in this order."""
        return self.assessor.fill({"instruction": instruction, "answer_1": answer_1, "answer_2": answer_2})

    def augment(self, instruction: str) -> str:
        """What the augmentor is asked."""
        return self.augmentor.fill({"instruction": instruction})


def load_prompts(config: PromptsConfig, base: Path) -> Prompts:
    """The templates that a recipe names; relative paths start from `base`. Raises PromptError."""
    return Prompts(
        answer=load_prompt("answer", config.answer, base),
        assessor=load_prompt("assessor", config.assessor, base),
        augmentor=load_prompt("augmentor", config.augmentor, base),
    )


def load_prompt(role: PromptRole, name: str, base: Path) -> Prompt:
    """One role's template: the package's of that name, or the file under `base`. Raises PromptError."""
    if name.endswith(".txt"):
        file = base / name
        if not file.is_file():
            raise PromptError(f"{file}: no such file (the {role}'s prompt)")
        try:
            return prompt_of(role, file.read_text(encoding="utf-8"), str(file))
        except UnicodeDecodeError as error:
            raise PromptError(f"{file}: not UTF-8 text: {error}") from error
    names = prompt_names(role)
    if name not in names:
        raise PromptError(
            f"{role}: no prompt {name!r}; there is {', '.join(names)}, and any file whose path ends in .txt"
        )
    return prompt_of(role, _folder(role).joinpath(f"{name}.txt").read_text(encoding="utf-8"), f"{role} {name}")


def prompt_names(role: PromptRole) -> list[str]:
    """The package's own templates for a role."""
    return sorted(entry.name.removesuffix(".txt") for entry in _folder(role).iterdir() if entry.name.endswith(".txt"))


def prompt_of(role: PromptRole, text: str, where: str) -> Prompt:
    """A template with its fields checked; blank space around it does not count. Raises PromptError naming `where`."""
    text = text.strip()
    wanted, found = FIELDS[role], set(_FIELD.findall(text))
    fields = ", ".join(f"{{{field}}}" for field in wanted)
    for field in wanted:
        if field not in found:
            raise PromptError(f"{where}: no {{{field}}} in it; the {role}'s prompt needs {fields}")
    if unknown := sorted(found - set(wanted)):
        raise PromptError(f"{where}: unknown field {{{unknown[0]}}}; the {role}'s prompt has {fields}")
    if IMAGE in text:
        raise PromptError(f"{where}: take {IMAGE} out of it; the picture stands before the prompt by itself")
    return Prompt(role=role, text=text)


def _folder(role: PromptRole) -> Traversable:
    return resources.files("limbeck.competition") / "prompts" / role
