"""A heat map as a tiny picture that the page lays over another one. No imaging library is needed for that."""

from __future__ import annotations

import base64
import struct
import zlib

Grid = tuple[tuple[float, ...], ...]
"""rows of numbers, all rows of one length"""
Pixel = tuple[int, int, int, int]

SIDE = 48
"""pixels of the map's longer side"""
COLD, HOT = (255, 205, 60), (200, 20, 60)
"""colour at the lowest and the highest value; the lowest is transparent as well"""


def heat_map(grid: Grid) -> str:
    """A `data:` address of a PNG: each value over the grid's highest, smoothed between the middles of the patches.

    Raises:
        ValueError: the grid has no values.
    """
    if not grid or not grid[0]:
        raise ValueError("heat_map: the grid has no values")
    low, high = min(map(min, grid)), max(map(max, grid))
    scale = 1.0 / (high - low) if high > low else 0.0
    height = max(1, round(SIDE * len(grid) / max(len(grid), len(grid[0]))))
    width = max(1, round(SIDE * len(grid[0]) / max(len(grid), len(grid[0]))))
    rows = [
        [_colour((_between(grid, (y + 0.5) / height, (x + 0.5) / width) - low) * scale) for x in range(width)]
        for y in range(height)
    ]
    return "data:image/png;base64," + base64.b64encode(png(rows)).decode("ascii")


def png(rows: list[list[Pixel]]) -> bytes:
    """A PNG of red, green, blue, opacity pixels, each 0 to 255."""
    raw = b"".join(b"\0" + bytes(channel for pixel in row for channel in pixel) for row in rows)
    header = struct.pack(">IIBBBBB", len(rows[0]), len(rows), 8, 6, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(raw, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


def _between(grid: Grid, down: float, across: float) -> float:
    """The value at a place (shares of height and width), linear between the four nearest patches."""
    y = min(max(down * len(grid) - 0.5, 0.0), len(grid) - 1.0)
    x = min(max(across * len(grid[0]) - 0.5, 0.0), len(grid[0]) - 1.0)
    top, left = int(y), int(x)
    low, right = min(top + 1, len(grid) - 1), min(left + 1, len(grid[0]) - 1)
    upper = grid[top][left] + (grid[top][right] - grid[top][left]) * (x - left)
    lower = grid[low][left] + (grid[low][right] - grid[low][left]) * (x - left)
    return upper + (lower - upper) * (y - top)


def _colour(share: float) -> Pixel:
    red, green, blue = (round(cold + (hot - cold) * share) for cold, hot in zip(COLD, HOT, strict=True))
    return red, green, blue, round(215 * share**0.8)
