"""A report of run folders, as tests read it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from limbeck.quickstart import report_runs
from limbeck.report import ReportPaths


def report(out: Path, *folders: Path) -> tuple[ReportPaths, str, list[dict[str, Any]]]:
    """The files, the page's text, and the list of models."""
    paths = report_runs(out, list(folders), "A title")
    return paths, paths.html.read_text(), json.loads(paths.json.read_text())


def section(page: str, name: str) -> str:
    return page.partition(f'<section id="{name}">')[2].partition("</section>")[0]
