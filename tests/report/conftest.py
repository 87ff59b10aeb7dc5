"""Run folders as training, evaluation and profiling leave them, small and made by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from limbeck.report import RunEntry
from limbeck.report.heat import png

QUALITY = {"teacher": 60.0, "plain": 44.0, "distilled": 57.0}
"""TR@1; everything else follows from it"""
COST = {"teacher": (8_000_000, 900_000_000, 20.0, 400.0), "plain": (1_900_000, 200_000_000, 7.5, 180.0)}
COST["distilled"] = COST["plain"]
CAPTIONS = (
    "a red apple above a grey cat",
    "two blue cars",
    "a dog left of a tree",
    "a house",
    "three green pears",
    "a moon",
)
IDS = ("scene-1", "scene-2")


def summary(role: str) -> dict[str, Any]:
    """`evaluation/summary.json`, in per cent and x 100."""
    top = QUALITY[role]
    recalls = {
        f"{way}@{k}": round(min(99.0, top * more), 2)
        for way in ("TR", "IR")
        for k, more in ((1, 1), (5, 1.4), (10, 1.6))
    }
    return {
        "retrieval": {**recalls, "R-mean": round(sum(recalls.values()) / 6, 2)},
        "captioning": {"BLEU-1": top + 9, "BLEU-4": top / 2, "CIDEr": top * 2, "ROUGE-L": top, "tokenizer": "fallback"},
        "vqa": {"accuracy": top + 10, "by_kind": {"where": top, "what": top + 20, "how many": top / 2}},
    }


def log_lines(role: str) -> list[dict[str, Any]]:
    """`log.jsonl`: two stages; the student that is distilled has more terms."""
    terms = ["contrastive", "matching", "language"] + (["hidden_img", "attention_img"] if role == "distilled" else [])
    lines: list[dict[str, Any]] = []
    for stage, steps in (("pretrain", 400), ("answer", 100)):
        for step in range(10, steps + 1, 10):
            values = {
                term: (i + 1) * (0.3 + math.exp(-step / 90) + 0.05 * math.sin(step * (i + 2)))
                for i, term in enumerate(terms)
            }
            line: dict[str, Any] = {
                "stage": stage,
                "step": step,
                "epoch": step / 100,
                "loss": sum(values.values()),
                "learning_rate": 1e-3 * (1 - step / (steps + 10)),
                "terms": values,
                "weights": dict.fromkeys(terms, 1.0),
                "state": {"temperature": 0.07},
                "samples_per_second": 250.0 + step % 30,
            }
            if step % 50 == 0:
                total = sum(values.values())
                line["gradient_share"] = {term: value / total for term, value in values.items()}
            lines.append(line)
    return lines


def square(shade: int) -> bytes:
    """A small picture: one colour with a disc in it."""
    inside = lambda x, y: (x - 20) ** 2 + (y - 26) ** 2 < 120  # noqa: E731
    return png([[(shade, 90, 60, 255) if inside(x, y) else (250, 250, 245, 255) for x in range(48)] for y in range(48)])


def write_run(folder: Path, role: str) -> RunEntry:
    """A whole run folder."""
    (folder / "evaluation").mkdir(parents=True)
    (folder / "gallery").mkdir()
    (folder / "recipe.yaml").write_text(f"method:\n  name: dlip  # {role}\ntraining:\n  learning_rate: 0.001\n")
    write(
        folder / "environment.json",
        {
            "versions": {"python": "3.11.9", "torch": "2.13.0", "limbeck": "0.1.0", "triton": None},
            "seed": 7,
            "data_fingerprint": "b1946ac9",
            "machine": {"system": "Linux", "cpu": "Example CPU", "cores": 2, "threads": 2, "accelerator": None},
            "command": f"limbeck train {role}.yaml",
            "started": "2026-01-02T03:04:05+00:00",
            "seconds": 252.4,
        },
    )
    write_lines(folder / "log.jsonl", log_lines(role))
    write(folder / "evaluation" / "summary.json", summary(role))
    good = role != "plain"
    write_lines(
        folder / "evaluation" / "retrieval.jsonl",
        [
            {
                "id": picture,
                "captions": [CAPTIONS[i]],
                "text_rank": 0 if good else 11,
                "picture_ranks": [0],
                "texts": [
                    {"text": text, "id": picture if good and place == 0 else "elsewhere", "score": 0.9 - place / 10}
                    for place, text in enumerate((CAPTIONS[i], *CAPTIONS[2:]))
                ],
                "pictures": [list(IDS)],
            }
            for i, picture in enumerate(IDS)
        ],
    )
    write_lines(
        folder / "evaluation" / "captioning.jsonl",
        [
            {"id": p, "prediction": CAPTIONS[i] if good else "a thing", "references": [CAPTIONS[i]]}
            for i, p in enumerate(IDS)
        ],
    )
    write_lines(
        folder / "evaluation" / "vqa.jsonl",
        [
            {
                "id": f"{p}-{n}",
                "image_id": p,
                "kind": "what",
                "question": f"what is number {n}?",
                "prediction": "apple" if good or n else "cat",
                "answers": ["apple"],
                "accuracy": 1.0 if good or n else 0.0,
            }
            for p in IDS
            for n in range(2)
        ],
    )
    parameters, macs, latency, memory = COST[role]
    write(
        folder / "profile.json",
        {
            "parameters": parameters,
            "parameters_counted": parameters - 1000,
            "macs": macs,
            "macs_with_attention": macs * 1.1,
            "latency_ms": {"image": latency / 2, "text": latency / 8, "fusion": latency / 4, "whole": latency},
            "peak_memory_mib": memory,
            "by_tower": {},
        },
    )
    for i, picture in enumerate(IDS):
        (folder / "gallery" / f"{picture}.png").write_bytes(square(80 + 100 * i))
    write(
        folder / "gallery" / "gallery.json",
        [
            {
                "id": picture,
                "file": f"{picture}.png",
                "captions": [CAPTIONS[i]],
                "questions": [{"text": f"what is number {n}?", "answers": ["apple"]} for n in range(2)],
                "image_attention": [[math.exp(-((x - 2) ** 2 + (y - 3) ** 2) / 3) for x in range(6)] for y in range(6)],
                "caption_attention": [
                    [math.exp(-((x - 3) ** 2 + (y - 1) ** 2) / 5) for x in range(6)] for y in range(6)
                ],
            }
            for i, picture in enumerate(IDS)
        ],
    )
    return RunEntry(role=role, name=role, folder=folder)


def write(path: Path, value: object) -> None:
    """JSON into a file."""
    path.write_text(json.dumps(value))


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def runs(tmp_path: Path) -> list[RunEntry]:
    """Teacher, plain and distilled student, whole."""
    return [write_run(tmp_path / role, role) for role in QUALITY]


@pytest.fixture
def bare_run(tmp_path: Path) -> Callable[[str], RunEntry]:
    """An empty run folder by role."""

    def make(role: str) -> RunEntry:
        folder = tmp_path / f"bare-{role}"
        folder.mkdir()
        return RunEntry(role=role, name=folder.name, folder=folder)

    return make
