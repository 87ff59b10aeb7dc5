"""The account of data that training had to leave out: counted, listed with reasons, and a stop where it is too much."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from limbeck.data.examples import Skipped, check_skipped


class SkipLog:
    """Appends each left-out record once to `skipped.jsonl`.

    Raises DataError from `add` once more than the share `limit` of `total` records had to be left out.
    """

    def __init__(self, path: Path, total: int, limit: float):
        self.path, self.total, self.limit = path, total, limit
        self.entries: dict[str, Skipped] = {}

    def add(self, skipped: Iterable[Skipped]) -> None:
        """Take note of records that were left out."""
        new = [entry for entry in skipped if entry.id not in self.entries]
        if not new:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            for entry in new:
                self.entries[entry.id] = entry
                file.write(json.dumps({"id": entry.id, "reason": entry.reason}) + "\n")
        check_skipped(list(self.entries.values()), self.total, self.limit, str(self.path))
