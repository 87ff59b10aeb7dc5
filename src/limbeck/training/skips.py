"""The account of data that training had to leave out: counted, listed with reasons, and a stop where it is too much."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from limbeck.data.examples import Skipped, check_skipped
from limbeck.distributed import rank
from limbeck.writing import write_text


class SkipLog:
    """Lists each left-out record once in `skipped.jsonl`, those of an earlier call on the same folder included.

    With several processes each must be told of all; the first one writes. Raises DataError from `add` once this call
    had to leave out more than the share `limit` of `total` records.
    """

    def __init__(self, path: Path, total: int, limit: float):
        self.path, self.total, self.limit = path, total, limit
        self.entries: dict[str, Skipped] = {}
        self._listed: set[str] = set()
        if path.exists():
            self._resume(path.read_text().splitlines())

    def add(self, skipped: Iterable[Skipped]) -> None:
        """Take note of records that were left out."""
        new = {entry.id: entry for entry in skipped if entry.id not in self.entries}
        if not new:
            return
        self.entries |= new
        if rank() == 0:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                for entry in new.values():
                    if entry.id not in self._listed:
                        file.write(json.dumps({"id": entry.id, "reason": entry.reason}) + "\n")
        check_skipped(list(self.entries.values()), self.total, self.limit, str(self.path))

    def _resume(self, lines: list[str]) -> None:
        """Remember what is listed, and drop a line that a kill cut off."""
        whole = []
        for line in lines:
            try:
                self._listed.add(json.loads(line)["id"])
            except json.JSONDecodeError:
                continue
            whole.append(line)
        if rank() == 0 and len(whole) < len(lines):
            write_text(self.path, "".join(line + "\n" for line in whole))
