"""A recipe: strict YAML that says everything a run does. Reading one finds every mistake before anything trains.

A recipe can start from another one (`base: other.yaml`, a path beside it) and say only what differs, of a list of named
things (`stages`) too: `stages: {tune: {lambda: 0.1}}`. Dotted overrides (`training.learning_rate=1e-4`) come last.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from limbeck.explain import explain, nearest
from limbeck.recipe.comd import CoMDRecipe
from limbeck.recipe.ctvlm import CTVLMRecipe
from limbeck.recipe.dlip import DLIPRecipe
from limbeck.recipe.shared import RecipeError

ROLES = ("teacher", "assessor", "augmentor", "judge")
"""Sections of CoMD's recipe that are a model's folder or a server."""
SHIPPED = Path(str(files("limbeck"))) / "recipes"

Recipe = DLIPRecipe | CTVLMRecipe | CoMDRecipe

METHODS: Mapping[str, type[Recipe]] = {"dlip": DLIPRecipe, "ctvlm": CTVLMRecipe, "comd": CoMDRecipe}
"""The recipe's class by its `method`."""


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe by path or by shipped name, apply overrides, check everything. Raises RecipeError."""
    path = find_recipe(name)
    values = _read(path, ())
    for override in overrides:
        _override(values, override)
    method = values.get("method", "dlip")
    if not isinstance(method, str) or method not in METHODS:
        raise RecipeError(f"{path}: method: {method!r} is none of {', '.join(METHODS)}{nearest(str(method), METHODS)}")
    kind = METHODS[method]
    try:
        return kind.model_validate_json(json.dumps(values))
    except ValidationError as error:
        raise RecipeError(f"{path}:\n" + "\n".join(f"  {line}" for line in explain(error, kind))) from None


def recipe_schema() -> dict[str, Any]:
    """The JSON Schema of a recipe's file, for editors.

    Nothing is required that a `base` can bring, and where a list of the base is changed by name, a mapping is as good.
    """
    schema = TypeAdapter(Recipe).json_schema()
    sections: dict[str, dict[str, Any]] = schema["$defs"]
    names = [kind.__name__ for kind in METHODS.values()]
    for name in names:
        sections[name]["properties"]["base"] = {"type": "string", "description": "the recipe that this one changes"}
    for name in names:  # grows by what is found
        sections[name].pop("required", None)
        for part in sections[name].get("properties", {}).values():
            names += [found for found in _loosened(part) if found not in names]
    return schema


_BY_NAME = {
    "type": "object",
    "additionalProperties": {"type": ["object", "null"]},
    "description": "changes to the items of the base's list by their `name`; null takes one out",
}


def _loosened(part: dict[str, Any]) -> list[str]:
    """The sections that a part of a schema refers to outside of lists; changes the part as `recipe_schema` says."""
    found = [part["$ref"].rpartition("/")[2]] if "$ref" in part else []
    if "oneOf" in part:  # sections that nothing is required of fit several
        part["anyOf"] = part.pop("oneOf")
    for choice in part.get("anyOf", []):
        found += _loosened(choice)
    if part.get("type") == "array" and {"$ref", "oneOf", "anyOf"} & part.get("items", {}).keys():
        array = {key: part.pop(key) for key in tuple(part) if key not in ("default", "description", "title")}
        part["anyOf"] = [array, _BY_NAME]
    return found


def find_recipe(name: str) -> Path:
    """The file of a recipe: a path, or a shipped name such as `dlip/quickstart` or `recipes/dlip/quickstart.yaml`."""
    path = Path(name)
    if path.is_file():
        return path
    short = name.removeprefix("recipes/").removesuffix(".yaml")
    if (SHIPPED / f"{short}.yaml").is_file():
        return SHIPPED / f"{short}.yaml"
    hint = nearest(short, shipped_recipes()) or "; `limbeck recipe list` shows those that ship"
    raise RecipeError(f"{name}: no such file and no shipped recipe{hint}")


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with limbeck."""
    return sorted(str(path.relative_to(SHIPPED).with_suffix("")) for path in SHIPPED.rglob("*.yaml"))


class _StrictLoader(yaml.SafeLoader):
    """YAML's safe loader, to which a key given twice is an error, 5e-4 a number, `no` and a date text (YAML 1.2).

    A key is a single value, and no value is of YAML's types that JSON does not have.
    """


def _mapping(loader: _StrictLoader, node: yaml.MappingNode) -> dict:
    seen = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            found = "a mapping, as of a template's {{ }}" if isinstance(key, yaml.MappingNode) else "a list"
            raise yaml.constructor.ConstructorError(
                None, None, f"wanted a name as key, found {found}; put quotes around a text", key.start_mark
            )
        if key.value in seen:
            raise yaml.constructor.ConstructorError(None, None, f"the key {key.value!r} is given twice", key.start_mark)
        seen.add(key.value)
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
for _kind in ("binary", "omap", "pairs", "set", "timestamp"):
    _StrictLoader.add_constructor(f"tag:yaml.org,2002:{_kind}", yaml.SafeLoader.construct_undefined)
_BOOL = "tag:yaml.org,2002:bool"
_OLD = (_BOOL, "tag:yaml.org,2002:timestamp")
_StrictLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _OLD]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_StrictLoader.add_implicit_resolver(_BOOL, re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in seen:
        raise RecipeError(f"{path}: `base` leads back to itself")
    if not path.is_file():
        raise RecipeError(f"{seen[-1]}: base: there is no file {path}")
    try:
        with path.open(encoding="utf-8") as file:
            values = yaml.load(file, Loader=_StrictLoader)
    except (yaml.YAMLError, ValueError, KeyError) as error:  # the last two: no UTF-8, `!!int x`, `!!bool x`
        raise RecipeError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of keys to values, found {type(values).__name__}")
    base = values.pop("base", None)
    if base is None:
        return values
    return _merge(_read(path.parent / str(base), (*seen, path.resolve())), values, f"{path}: ")


def _merge(base: dict[str, Any], values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """`values` over `base`, mappings key by key, everything else whole; so is a tokenizer or a role of another kind.

    A mapping over a list changes the items that it names. `where` begins the message of what goes wrong.
    """
    merged = dict(base)
    for key, value in values.items():
        old = merged.get(key)
        if isinstance(old, list) and isinstance(value, dict):
            value = _merge_named(old, value, f"{where}{key}.")
        elif isinstance(old, dict) and isinstance(value, dict) and _same_kind(key, old, value):
            value = _merge(old, value, f"{where}{key}.")
        merged[key] = value
    return merged


def _same_kind(key: str, old: Mapping[str, Any], value: Mapping[str, Any]) -> bool:
    """Whether a section changes another one, and does not take its place: a server's role that of a model's folder."""
    places = {"endpoint", "folder"}
    return old.get(key) == value.get(key, old.get(key)) and (
        key not in ROLES or not places & value.keys() or places & value.keys() == places & old.keys()
    )


def _merge_named(items: list, changes: Mapping[str, Any], where: str) -> list:
    """A list's items, of which `changes` changes some, by their `name`, or takes them out by null."""
    names = _names(items)
    for name, change in changes.items():
        if name not in names:
            known = list(filter(None, names))
            choices = f"its names are {', '.join(known)}" if known else "its items have no names"
            raise RecipeError(f"{where}{name}: the base has no such item{nearest(str(name), known)}; {choices}")
        if not isinstance(change, dict | None):
            raise RecipeError(f"{where}{name}: wanted what changes, or null to take it out (found {change!r})")
    return [
        _merge(item, changes[name], f"{where}{name}.") if name in changes else item
        for name, item in zip(names, items, strict=True)
        if changes.get(name, {}) is not None
    ]


def _names(items: list) -> list[str]:
    """Each item's `name`, "" where it has none."""
    return [str(item.get("name", "")) if isinstance(item, dict) else "" for item in items]


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RecipeError(f"override {override!r}: write key.path=value, for example training.learning_rate=1e-4")
    try:
        value = yaml.load(text, Loader=_StrictLoader)
    except (yaml.YAMLError, ValueError, KeyError) as error:
        raise RecipeError(f"override {override!r}: {text!r} is not valid YAML: {error}") from None
    *parents, last = key.split(".")
    node: Any = values
    for depth, part in enumerate(parents):
        if isinstance(node, list):
            node = node[_index(node, part, override)]
            continue
        child = node.setdefault(part, {})
        if not isinstance(child, dict | list):
            raise RecipeError(f"override {override!r}: {'.'.join(parents[: depth + 1])} is no section, it is {child!r}")
        node = child
    if isinstance(node, list):
        node[_index(node, last, override)] = value
    else:
        node[last] = value


def _index(items: list, part: str, override: str) -> int:
    """The place of a list's item, which an override gives as a number or as the item's `name`."""
    if part.isdigit() and int(part) < len(items):
        return int(part)
    names = _names(items)
    if part and part in names:
        return names.index(part)
    known = ", ".join(filter(None, names))
    raise RecipeError(
        f"override {override!r}: {part!r} is no index of a list of {len(items)}{known and f' and none of {known}'}"
    )
