"""Writes the tables of every recipe field into docs/recipes.md, from the sections' own docstrings.

python docs/make_recipes_table.py          write
python docs/make_recipes_table.py --check  exit code 1 where the file is out of date
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from limbeck.config import Section
from limbeck.recipe import METHODS

PAGE = Path(__file__).parent / "recipes.md"
BEGIN, END = "<!-- fields: begin -->", "<!-- fields: end -->"


def page_with_tables(page: str) -> str:
    """The page with the text between its two marks replaced."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n{tables()}\n{END}{rest.partition(END)[2]}"


def tables() -> str:
    """One table per section, from the recipe itself downwards; a section that stands in two places is shown once."""
    parts, waiting, shown = [], [("", recipe) for recipe in METHODS.values()], set()
    while waiting:
        path, section = waiting.pop(0)
        if section in shown:
            continue
        shown.add(section)
        parts.append(table(path, section))
        following = []
        for name, field in section.model_fields.items():
            inside = sections(field.annotation)
            listed = "." if not is_list(field.annotation) else ".N"
            following += [(f"{path}{name}{listed}".rstrip(".") + ".", each) for each in inside]
        waiting = following + waiting
    return "\n".join(parts)


def table(path: str, section: type[Section]) -> str:
    """Heading, purpose and fields of one section."""
    kind = tag(section)
    method = "" if path else get_args(section.model_fields["method"].annotation)[0]
    title = f"`{path.rstrip('.')}`" if path else f"A recipe of `{method}`"
    lines = [f"### {title}{f' with `{kind}`' if kind else ''}", "", first_paragraph(section), ""]
    lines += ["| field | type | default | meaning |", "|---|---|---|---|"]
    for name, field in section.model_fields.items():
        meaning = " ".join((field.description or "").split())
        cells = [f"`{field.alias or name}`", spell(field.annotation), default(field), meaning]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join([*lines, ""])


def tag(section: type[Section]) -> str | None:
    """What tells this section from the others of its union, such as `source: jsonl`."""
    for name in ("source", "tokenizer"):
        field = section.model_fields.get(name)
        if field is not None and get_origin(field.annotation) is Literal:
            return f"{name}: {get_args(field.annotation)[0]}"
    return None


def first_paragraph(section: type[Section]) -> str:
    return " ".join((section.__doc__ or "").strip().partition("\n\n")[0].split())


def sections(annotation: Any) -> list[type[Section]]:
    """The section classes inside a field's type."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [found for part in get_args(annotation) for found in sections(part)]


def is_list(annotation: Any) -> bool:
    return get_origin(annotation) is tuple or any(is_list(part) for part in get_args(annotation))


def spell(annotation: Any) -> str:
    """A type in YAML's words."""
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return spell(inside[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inside)
    if origin in (Union, UnionType):
        words = dict.fromkeys(spell(part) for part in inside)
        return " or ".join(words)
    if origin is tuple:
        return f"list of {spell(inside[0])}" if inside[-1] is Ellipsis else f"list of {len(inside)}: {spell(inside[0])}"
    if origin is dict:
        return "mapping"
    if annotation is NoneType:
        return "null"
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return "section"
    return {str: "text", int: "integer", float: "number", bool: "true or false"}.get(annotation, "any")


def default(field: FieldInfo) -> str:
    """The default as YAML would have it; a section's defaults stand in its own table."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is PydanticUndefined or isinstance(value, Section):
        return ""
    if isinstance(value, tuple) and any(isinstance(item, Section) for item in value):
        return "one with its defaults"
    return f"`{json.dumps(value)}`"


def main() -> int:
    old = PAGE.read_text()
    new = page_with_tables(old)
    if "--check" in sys.argv[1:]:
        return int(old != new)
    PAGE.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
