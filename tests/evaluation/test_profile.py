"""The published counts of DLIP's Table 1 and Table 7, and what a profile says of a model."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from limbeck.evaluation import profile as module
from limbeck.evaluation.profile import Count, profile, scale_table
from limbeck.models.blip import Blip
from limbeck.models.clip import ClipConfig, DualEncoder
from limbeck.models.fusion import FusionConfig
from limbeck.models.med import TextConfig
from limbeck.models.scales import Scale, text_config, vision_config
from limbeck.models.vision import VisionConfig

VISION = VisionConfig(width=24, layers=2, heads=2, image_size=16, patch_size=4)
TEXT = TextConfig(
    width=24, layers=2, heads=4, vocab_size=50, max_positions=16, sep_token_id=3, dec_token_id=4, enc_token_id=5
)


@pytest.fixture
def untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the clock out: the large towers take seconds."""
    monkeypatch.setattr(module, "_latency", lambda *_: {"whole": 1.0})
    monkeypatch.setattr(nn.init, "trunc_normal_", lambda tensor, **_: tensor)


@pytest.mark.usefixtures("untimed")
def test_towers_have_the_published_parameters_and_macs() -> None:
    rows = {row["name"]: row for row in scale_table()}
    published = {  # millions of parameters, giga multiply-accumulates, with attention
        "vit-base": (85.65, 16.86, 17.56),
        "vit-middle": (48.31, 9.51, 10.04),
        "vit-small": (21.59, 4.25, 4.60),
        "vit-tiny": (5.49, 1.08, 1.25),
    }
    for name, (parameters, macs, whole) in published.items():
        assert round(rows[name]["parameters"] / 1e6, 2) == parameters
        assert round(rows[name]["macs"] / 1e9, 2) == macs
        assert round(rows[name]["macs_with_attention"] / 1e9, 2) == whole
    assert [round(rows[f"bert-{scale}"]["parameters"] / 1e6, 2) for scale in ("base", "middle", "small", "tiny")] == [
        137.26,
        60.43,
        26.12,
        8.33,
    ]
    assert round(rows["bert-small"]["macs"] / 1e9, 2) == 0.32
    assert round(rows["vit-base"]["parameters_with_positions"] / 1e6, 2) == 85.80


@pytest.mark.usefixtures("untimed")
@pytest.mark.parametrize(("scale", "total"), [("base", 222.9), ("small", 47.7)])
def test_blip_has_the_published_total(scale: Scale, total: float) -> None:
    config = FusionConfig(family="blip", vision=vision_config(scale), text=text_config(scale))
    with torch.device("meta"):
        found = profile(Blip(config), repeats=1)
    towers = found.parameters_by_tower
    assert round((towers["image"] + towers["text"]) / 1e6, 1) == total
    assert round(found.parameters / 1e6, 1) == {"base": 252.4, "small": 51.7}[scale]
    assert found.parameters_without_positions == sum(towers.values())


def test_bert_tiny_with_cross_attention_of_1024_has_the_published_parameters() -> None:
    with torch.device("meta"):
        config = FusionConfig(
            family="blip", vision=VisionConfig(width=1024, heads=16), text=text_config("tiny"), decoder="none"
        )
        text = Blip(config).text
    assert text is not None
    assert round(sum(parameter.numel() for parameter in text.parameters()) / 1e6, 2) == 9.61


@pytest.mark.parametrize("family", ["blip", "clip"])
def test_profile_of_a_model_adds_up(family: str) -> None:
    model: Blip | DualEncoder = Blip(FusionConfig(family="blip", vision=VISION, text=TEXT, embedding=16)).train()
    if family == "clip":
        model = DualEncoder(ClipConfig(vision=VISION, text=TEXT, embedding=16)).train()
    found = profile(model, text_length=8, repeats=2)
    assert model.training
    assert found.parameters == sum(parameter.numel() for parameter in model.parameters())
    positions = 18 * 24
    assert found.parameters - found.parameters_without_positions == positions
    passes = {"image", "text", "fusion"} if family == "blip" else {"image", "text"}
    assert set(found.macs_by_tower) == passes
    assert set(found.latency_ms) == passes | {"whole"}
    assert found.macs == sum(found.macs_by_tower.values())
    assert found.peak_memory_mib > 4 * found.parameters / 2**20
    assert profile(model, batch_size=2, text_length=8, repeats=1).macs == found.macs
    assert found.to_json()["latency_ms"] == found.latency_ms


def counted(build: Callable[[], nn.Module], *inputs: torch.Tensor) -> tuple[tuple[int, int], int]:
    with torch.device("meta"):
        layer = build()
        with Count(layer) as count, torch.no_grad():
            layer(*(each.to("meta") for each in inputs))
    return count.take(), count.peak_bytes


def test_counts_of_single_layers() -> None:
    assert counted(lambda: nn.Linear(3, 5), torch.ones(2, 7, 3))[0] == (2 * 7 * 3 * 5, 2 * 7 * 3 * 5)
    assert counted(lambda: nn.LayerNorm(6), torch.ones(2, 6))[0] == (4 * 12, 0)
    assert counted(lambda: nn.Conv2d(3, 8, 4, stride=4), torch.ones(1, 3, 8, 8))[0][0] == 4 * 8 * 3 * 16


def test_memory_is_of_what_is_alive_at_once() -> None:
    class Chain(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for _ in range(10):
                x = x + 1
            return x

    _, peak = counted(Chain, torch.ones(1000))
    assert 2 * 4000 <= peak <= 3 * 4000, "input, one result and the next, never all ten"
