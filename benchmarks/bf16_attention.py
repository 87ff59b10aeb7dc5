"""Attention trained in bfloat16 on the CPU: torch's flash attention beside plain products, forward and backward.

    python benchmarks/bf16_attention.py [--smoke] [--json FILE] [--write-docs] [--rounds N]

It is why limbeck trains attention over fewer than 256 tokens by plain products where a CPU trains in bfloat16
(`StageTrainer`), and lets torch keep them in bfloat16: by itself it would do them in float32.
"""

from __future__ import annotations

from functools import partial

import torch
from harness import Claim, at_least, milliseconds, parse, publish
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

SHAPES = {
    "tower, 17 tokens": (64, 6, 17, 32),
    "caption, 45 tokens": (64, 4, 45, 24),
    "dialogue, 200 tokens": (16, 8, 200, 32),
}
"""rows, heads, tokens, width of a head"""
FLASH, PLAIN = SDPBackend.FLASH_ATTENTION, SDPBackend.MATH
WAYS = {
    "flash, bfloat16": (FLASH, torch.bfloat16, True),
    "plain products, bfloat16": (PLAIN, torch.bfloat16, True),
    "plain products, bfloat16 multiplied in float32": (PLAIN, torch.bfloat16, False),
    "flash, float32": (FLASH, torch.float32, True),
    "plain products, float32": (PLAIN, torch.float32, True),
}
"""torch's way, what comes in, and whether products may be done in what comes in"""


def main() -> None:
    args = parse(__doc__)
    shapes = dict(list(SHAPES.items())[:1]) if args.smoke else SHAPES
    rows: list[dict[str, str | float]] = []
    claims: list[Claim] = []
    for name, shape in shapes.items():
        variants = {way: partial(work, shape, *WAYS[way]) for way in WAYS}
        found = milliseconds(variants, args.rounds, args.device)
        rows += [{"shape": name, "way": way, "ms": value} for way, value in found.items()]
        times = found["flash, bfloat16"] / found["plain products, bfloat16"]
        claims.append(at_least(f"{name}: flash takes so many times as long in bfloat16", 1.3, times))
    publish("bf16_attention", rows, claims, args)


def work(shape: tuple[int, int, int, int], way: SDPBackend, dtype: torch.dtype, reduced: bool) -> None:
    """One layer's attention over causal sequences and its gradients."""
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(reduced)
    query, key, value = (torch.randn(shape, dtype=dtype, requires_grad=True) for _ in range(3))
    mask = torch.ones(shape[2], shape[2], dtype=torch.bool).tril()
    with sdpa_kernel(way):
        scaled_dot_product_attention(query, key, value, attn_mask=mask).sum().backward()


if __name__ == "__main__":
    main()
