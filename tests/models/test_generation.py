"""Cached writing is what writing without a cache gives."""

from collections.abc import Callable

import torch
from torch import Tensor

from limbeck.models.blip import Blip

MakeBlip = Callable[..., Blip]


def greedy(model: Blip, memory, prompt: Tensor, steps: int) -> list[list[int]]:
    """Whole forward passes, one for every new token."""
    ids, done = prompt.clone(), torch.zeros(len(prompt), dtype=torch.bool)
    ids[:, 0] = 5
    for _ in range(steps):
        following = model.decode(memory, ids, None).output[:, -1].argmax(-1).masked_fill(done, 0)
        ids = torch.cat((ids, following[:, None]), dim=1)
        done |= following == 3
        if done.all():
            break
    return ids.tolist()


@torch.no_grad()
def test_greedy_with_cache_is_greedy_without(make_blip: MakeBlip, pixels: Tensor) -> None:
    prompt = torch.tensor([[2, 9, 10]]).expand(3, -1)
    for seed in range(4):
        model = make_blip(seed=seed)
        memory = model.image_memory(model.encode_image(pixels))
        assert model.generate(memory, prompt, max_new_tokens=12).tolist() == greedy(model, memory, prompt, 12)


@torch.no_grad()
def test_least_length_and_padding(make_blip: MakeBlip, pixels: Tensor) -> None:
    model = make_blip()
    assert model.text is not None
    assert model.text.head is not None
    model.text.head.bias[3] = 50.0  # it always wants to end at once
    memory = model.image_memory(model.encode_image(pixels))
    prompt = torch.full((3, 1), 2)
    assert model.generate(memory, prompt, max_new_tokens=8).tolist() == [[5, 3]] * 3
    longer = model.generate(memory, prompt, max_new_tokens=8, min_new_tokens=4, num_beams=2)
    assert (longer[:, 1:5] != 3).all()
    assert (longer[:, 5] == 3).all()


@torch.no_grad()
def test_several_prompts_of_one_picture(make_blip: MakeBlip, pixels: Tensor) -> None:
    model = make_blip()
    memory = model.image_memory(model.encode_image(pixels))
    prompts = torch.tensor([[2, 9], [2, 20]])
    both = model.generate(memory, prompts, rows=torch.tensor([1, 1]), num_beams=3, max_new_tokens=6)
    alone = model.image_memory(model.encode_image(pixels[1:2]))
    for row in range(2):
        single = model.generate(alone, prompts[row : row + 1], num_beams=3, max_new_tokens=6)
        assert both[row, : single.shape[1]].tolist() == single[0].tolist()
