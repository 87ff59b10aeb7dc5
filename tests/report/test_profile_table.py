"""The table of `limbeck profile`: whole numbers however narrow the console and however many the models."""

from __future__ import annotations

import re
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from limbeck.cli import app
from limbeck.profiles import print_profiles

NAMES = [f"dlip/paper/a_rather_long_name_{number}" for number in range(5)]


def pairs(number: int) -> dict[str, Any]:
    return {
        "name": NAMES[number],
        "batch_size": 1,
        "parameters": 223_456_789 + number * 1e7,
        "parameters_without_positions": 222_345_678 + number * 1e7,
        "macs": 16_123e6 + number * 1e7,
        "macs_with_attention": 18_765e6 + number * 1e7,
        "latency_ms": {"image": 1234.56 + number, "text": 12.34 + number, "whole": 12345.67 + number},
        "peak_memory_mib": 10987.6 + number,
    }


def writer(number: int) -> dict[str, Any]:
    return {
        **pairs(number),
        "new_tokens": 16,
        "words": 16,
        "parameters_by_tower": {"eye": 86_543_210, "connectors": 1_234_567},
        "macs_by_part": {"first_token": 17e9, "next_token": 1.5e9},
        "macs_with_attention_by_part": {"first_token": 18e9, "next_token": 1.6e9},
        "latency_ms": {"first_token": 4321.09 + number, "next_token": 98.76, "whole": 54321.09 + number},
        "tokens_per_second": 123456.7 + number,
    }


@pytest.mark.parametrize(("make", "last"), [(pairs, "peak MiB"), (writer, "tokens a second")])
@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_numbers_are_never_cut(make, last, width, count):
    console = Console(record=True, width=width)
    rows = [make(number) for number in range(count)]
    print_profiles(console, rows)
    text = console.export_text()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    key = {"peak MiB": "peak_memory_mib", "tokens a second": "tokens_per_second"}[last]
    lines = [line for line in text.splitlines() if last in line]
    assert re.findall(r"\d+\.\d", " ".join(lines)) == [f"{row[key]:.1f}" for row in rows]
    for row in rows:
        assert f"{row['latency_ms']['whole']:.2f}" in text
        assert f"{row['parameters'] / 1e6:.2f}M" in text


def test_markup_in_a_name_is_part_of_the_name():
    console = Console(record=True, width=80)
    print_profiles(console, [pairs(0) | {"name": "runs/[bold]x[/bold]"}])
    assert "runs/[bold]x[/bold]" in console.export_text()


def test_there_is_no_batch_of_nothing():
    done = CliRunner().invoke(app, ["profile", "dlip/quickstart", "--batch-size", "0"])
    assert done.exit_code == 2
    assert "batch-size" in done.output
