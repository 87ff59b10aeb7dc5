"""Freed memory stays with the process, where glibc gives it out."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, torch
from limbeck.heap import keep_freed_memory
assert keep_freed_memory()
def step():
    many = [torch.ones(500_000) for _ in range(20)]
    return sum(float(each[0]) for each in many)
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="this system's memory is not glibc's")
def test_a_step_asks_for_no_memory_that_the_one_before_freed():
    """Twenty tensors of 2 MB, five times over: some 50,000 pages of 4 KiB if freed memory went back."""
    faults = int(subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True).stdout)
    assert faults < 500
