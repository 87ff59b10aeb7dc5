"""What a process keeps of the memory that it frees."""

from __future__ import annotations

import ctypes
import platform

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""mallopt's names for its parameters (glibc's malloc.h)"""
KEPT = 2**30
"""Bytes of freed memory that stay with the process"""
FROM_HEAP = 2**25
"""Bytes of the largest tensor that is made from it; glibc itself goes so far in the end"""


def keep_freed_memory() -> bool:
    """Let glibc keep the memory that one training step frees for the next one. Returns whether it does.

    By itself it hands pages back and asks for them anew, all through every step on a CPU. Without glibc (macOS,
    Windows, musl) nothing is changed.
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(MMAP_THRESHOLD, FROM_HEAP) and mallopt(TRIM_THRESHOLD, KEPT))
