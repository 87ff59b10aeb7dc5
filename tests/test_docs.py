"""The documents are true: their runnable blocks run, their names and links exist, their tables are the code's."""

import importlib
import importlib.util
import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from limbeck.cli import app
from limbeck.recipe import METHODS, shipped_recipes

ROOT = Path(__file__).parents[1]
PAGES = [
    path
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
    if path.exists()
]
BLOCK = re.compile(r"^```(\w+) (run|recipe)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = [
    pytest.param(language, kind, code, id=f"{page.name}-{number}")
    for page in PAGES
    for number, (language, kind, code) in enumerate(BLOCK.findall(page.read_text()))
]


@pytest.mark.parametrize(("language", "kind", "code"), BLOCKS)
def test_a_block_marked_as_runnable_runs(language, kind, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    match language, kind:
        case "python", "run":
            exec(compile(code, "block", "exec"), {"__name__": "__main__"})
        case "bash", "run":
            for line in filter(None, code.splitlines()):
                command, *words = shlex.split(line, comments=True)
                assert command == "limbeck", f"a runnable bash block has limbeck commands alone, found {line!r}"
                result = CliRunner().invoke(app, words)
                assert result.exit_code == 0, f"{line}\n{result.output}\n{result.exception!r}"
        case "yaml", "recipe":
            values = yaml.safe_load(code)
            METHODS[values.get("method", "dlip")].model_validate(values, strict=False)
        case _:
            pytest.fail(f"no block is run as {language} {kind}")


def test_there_are_blocks_of_every_kind():
    assert {(block.values[0], block.values[1]) for block in BLOCKS} == {
        ("python", "run"),
        ("bash", "run"),
        ("yaml", "recipe"),
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_within_the_repository_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(), flags=re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}, (
                target
            )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_of_code_in_backticks_exist(page):
    for name in re.findall(r"`(limbeck(?:\.\w+)+)`", page.read_text()):
        module, attributes = name, []
        while not _is_module(module):
            module, _, attribute = module.rpartition(".")
            assert module, f"{page.name}: there is no {name}"
            attributes.insert(0, attribute)
        found = importlib.import_module(module)
        for attribute in attributes:
            assert attribute in vars(found), f"{page.name}: {name}"
            found = vars(found)[attribute]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_recipes_that_are_named_ship(page):
    named = set(re.findall(r"(?<![\w/])(dlip/[a-z]\w*(?:-debug)?)(?![\w/.*])", page.read_text()))
    assert named <= {*shipped_recipes()}, named - {*shipped_recipes()}


def test_the_tables_of_recipe_fields_are_the_codes():
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        script = importlib.import_module("make_recipes_table")
    finally:
        sys.path.pop(0)
    page = (ROOT / "docs" / "recipes.md").read_text()
    assert script.page_with_tables(page) == page, "run: python docs/make_recipes_table.py"


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False
