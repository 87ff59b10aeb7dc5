"""Mistakes in plain words: what pydantic finds wrong with a recipe, what may have been meant, a damaged file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails


def explain(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """One line per mistake: key path, what was found, what would be right."""
    mistakes = error.errors()
    inner = {mistake["loc"][:depth] for mistake in mistakes for depth in range(len(mistake["loc"]))}
    return [_line(mistake, model) for mistake in mistakes if mistake["loc"] not in inner]


def _line(mistake: ErrorDetails, model: type[BaseModel]) -> str:
    path, context = _path(model, mistake["loc"]), mistake.get("ctx", {})
    found = f" (found {mistake['input']!r})"
    match mistake["type"]:
        case "extra_forbidden":
            choices = _keys_at(model, mistake["loc"][:-1])
            hint = nearest(str(mistake["loc"][-1]), choices)
            return f"{path}: unknown key{hint} (valid here: {', '.join(choices)})"
        case "missing":
            return f"{path}: missing"
        case "union_tag_invalid":
            choices = context["expected_tags"].replace("'", "").split(", ")
            key = context["discriminator"].strip("'")
            hint = nearest(context["tag"], choices)
            return f"{path}.{key}: {context['tag']!r} is none of {', '.join(choices)}{hint}"
        case "union_tag_not_found":
            return f"{path}.{context['discriminator'].strip(chr(39))}: missing{found}"
        case "literal_error":
            choices = context["expected"].replace(" or ", ", ").replace("'", "").split(", ")
            return f"{path}: wanted {context['expected']}{found}{nearest(str(mistake['input']), choices)}"
        case "value_error":
            message = mistake["msg"].removeprefix("Value error, ")
            return f"{path}: {message}" if path else message
    return f"{path}: {mistake['msg']}{found}"


def nearest(found: str, choices: Iterable[str]) -> str:
    """The end of a message: what may have been meant, or nothing."""
    near = get_close_matches(found, list(choices), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def damaged(file: Path, reason: str) -> str:
    """What is wrong with a file that cannot be read: `reason`, unless Git LFS left a pointer in the file's place."""
    if is_pointer(file):
        reason = "a pointer of Git LFS, not the file itself; `git lfs pull` in its repository fetches that"
    return f"{file}: {reason}"


def is_pointer(file: Path) -> bool:
    """Whether a file is what Git LFS leaves in the place of one that was not fetched."""
    with file.open("rb") as stream:
        return stream.read(len(_POINTER)) == _POINTER


_POINTER = b"version https://git-lfs"


def _path(model: type[BaseModel], loc: Sequence[int | str]) -> str:
    """The key path of a mistake; pydantic also names the kind of a source or tokenizer, which is no key."""
    keys: list[int | str] = []
    sections: list[type[BaseModel]] = [model]
    for part in loc[:-1]:
        sections, is_key = _enter(sections, part)
        keys += [part] if is_key else []
    return ".".join(str(part) for part in [*keys, *loc[-1:]])


def _keys_at(model: type[BaseModel], loc: Sequence[int | str]) -> list[str]:
    """The keys that the section at `loc` of a recipe may have."""
    sections: list[type[BaseModel]] = [model]
    for part in loc:
        sections, _ = _enter(sections, part)
    return sorted({key for section in sections for key in _fields(section)})


def _enter(sections: list[type[BaseModel]], part: int | str) -> tuple[list[type[BaseModel]], bool]:
    """The sections that one part of a location leads to, and whether it is a key of the recipe."""
    keyed = [section for section in sections if isinstance(part, str) and part in _fields(section)]
    if keyed:
        inner = [found for section in keyed for found in _sections(_fields(section)[str(part)].annotation)]
        return inner or sections, True
    tagged = [section for section in sections if part in _tags(section)]
    return (tagged, False) if tagged else (sections, True)


def _fields(section: type[BaseModel]) -> dict[str, FieldInfo]:
    """A section's fields by the keys that a recipe calls them (`lambda` is no name in Python)."""
    return {field.alias or name: field for name, field in section.model_fields.items()}


def _sections(annotation: Any) -> list[type[BaseModel]]:
    """The section classes within an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Union, UnionType, tuple, list, Annotated):
        return [found for part in get_args(annotation) if part is not NoneType for found in _sections(part)]
    return []


def _tags(section: type[BaseModel]) -> set[Any]:
    """What names a section of a union: its discriminator's values, or its class where that has none."""
    return {section.__name__} | {
        value
        for field in section.model_fields.values()
        if get_origin(field.annotation) is Literal
        for value in get_args(field.annotation)
    }
