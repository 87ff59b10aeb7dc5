"""A limbeck image tower as transformers' ViT."""

import pytest
import torch

from limbeck.models.eyes import as_vit
from limbeck.models.vision import VisionConfig, VisionTransformer


@pytest.mark.parametrize("layers", [1, 3])
def test_a_tower_as_vit_has_the_same_hidden_states(layers):
    torch.manual_seed(0)
    vision = VisionTransformer(VisionConfig(width=24, layers=layers, heads=3, image_size=32, patch_size=8)).eval()
    with torch.no_grad():
        for parameter in vision.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        pictures = torch.randn(2, 3, 32, 32)
        torch.testing.assert_close(as_vit(vision)(pictures).last_hidden_state, vision(pictures)[0])
