"""Freed memory is kept: the next tensor needs no new pages."""

import platform
import subprocess
import sys

import pytest

SIZE = 24 << 20

FREE = """
import resource, torch
from edm2.tools.process import keep_freed_memory
torch.set_num_threads(1)
if {keep}:
    assert keep_freed_memory()
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()
before = resident()
tensor = torch.ones({size} // 4)
held = resident()
del tensor
print(held - before, resident() - before)
"""


def bytes_held_and_kept(keep: bool) -> tuple[int, int]:
    """Growth of a new process by one tensor of 24 MB, and what of it is left once the tensor is freed."""
    code = FREE.format(keep=keep, size=SIZE)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    held, kept = done.stdout.split()
    return int(held), int(kept)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
@pytest.mark.parametrize("keep", [False, True])
def test_the_memory_of_a_freed_tensor_stays_with_the_process_if_asked(keep: bool):
    held, kept = bytes_held_and_kept(keep)
    assert held > 0.9 * SIZE
    assert kept > 0.9 * SIZE if keep else kept < 0.1 * SIZE
