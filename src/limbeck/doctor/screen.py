"""Findings as one table on the screen."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from limbeck.doctor.finding import Finding, Status, failed

COLOURS: dict[Status, str] = {"ok": "green", "warning": "yellow", "failed": "bold red", "skipped": "dim"}


def print_findings(console: Console, recipe: str, findings: Sequence[Finding]) -> None:
    """Every check with what it found, and the sum of it."""
    table = Table(title=escape(recipe), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    table.add_column("check", no_wrap=True, style="bold")
    table.add_column("finding", ratio=1)
    table.add_column("", no_wrap=True)
    for finding in findings:
        colour = COLOURS[finding.status]
        table.add_row(escape(finding.check), escape(finding.text), f"[{colour}]{finding.status}[/{colour}]")
    console.print(table, highlight=False)
    warnings = sum(finding.status == "warning" for finding in findings)
    if failed(findings):
        broken = [finding.check for finding in findings if finding.status == "failed"]
        console.print(f"[bold red]not fit to train:[/bold red] {escape(', '.join(broken))}")
    else:
        console.print(f"fit to train{f', {warnings} to think about' if warnings else ''}")
