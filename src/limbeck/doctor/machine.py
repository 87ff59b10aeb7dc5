"""What memory there is, and how many processes will share it."""

from __future__ import annotations

import os
from pathlib import Path

import torch


def rooms(memory: float | None) -> dict[str, int]:
    """Devices and their bytes: first the one that training would take, last one of `memory` GiB if that is given."""
    found = {
        f"cuda:{number} {torch.cuda.get_device_name(number)}": torch.cuda.get_device_properties(number).total_memory
        for number in range(torch.cuda.device_count())
    }
    found["cpu"] = physical_memory()
    if memory is not None:
        found[f"{memory:g} GiB"] = int(memory * 2**30)
    return found


def planned_processes() -> int:
    """How many processes training is to have: torchrun's WORLD_SIZE, or one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def physical_memory() -> int:
    """Bytes of this machine, or of the part of it that a container may use."""
    limit = Path("/sys/fs/cgroup/memory.max")
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return whole if text == "max" else min(whole, int(text))


def free_memory() -> int:
    """Bytes of this machine that nobody uses."""
    info = Path("/proc/meminfo")
    if not info.is_file():
        return physical_memory()
    values = dict(line.split(":", 1) for line in info.read_text().splitlines())
    return min(physical_memory(), int(values["MemAvailable"].split()[0]) * 2**10)
