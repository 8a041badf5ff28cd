"""Freed memory is kept: no new pages for tensors like those before."""

import platform
import subprocess
import sys

import pytest

COUNT = """
import resource, torch
from edm2.training.heap import keep_freed_memory
torch.set_num_threads(1)
if {keep}:
    assert keep_freed_memory()
weight = torch.ones(1 << 19, requires_grad=True)
def step():
    x = weight
    for _ in range(20):
        x = torch.sin(x)
    x.sum().backward()
pages = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    step()
before = pages()
for _ in range(5):
    step()
print(pages() - before)
"""


def new_pages(keep: bool) -> int:
    """Pages that five forward and backward passes over 2 MB tensors get from the system, after others like them."""
    done = subprocess.run([sys.executable, "-c", COUNT.format(keep=keep)], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_passes_over_the_same_tensors_need_few_new_pages():
    """Seen: 512 (one tensor) against 10,464. A fifth leaves room for other versions of the library."""
    assert 5 * new_pages(keep=True) < new_pages(keep=False)
