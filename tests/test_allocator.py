"""Freed memory is kept where glibc can, goes back to the system beyond a limit, and peaks are those of one process."""

import subprocess
import sys

import pytest

from deconv_cli.allocator import kept_bytes


@pytest.mark.skipif(not sys.platform.startswith("linux") or kept_bytes() == 0, reason="needs glibc 2.33 or newer")
def test_much_freed_memory_goes_back_to_the_system():
    script = """
import torch
from deconv_cli.allocator import keep_freed_memory, kept_bytes, return_freed_memory
assert keep_freed_memory()
blocks = [torch.ones(2**24) for _ in range(4)]
last = torch.ones(2**10)
del blocks
print(kept_bytes())
for limit in (2**30, 2**20):
    return_freed_memory(limit)
    print(kept_bytes())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    held, above, below = (int(number) for number in done.stdout.split())
    assert held > 200 * 2**20
    assert above > held / 2
    assert below < held / 4


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone hands the peak of a parent down to its children")
def test_the_peak_of_memory_is_not_that_of_a_larger_parent():
    ask = "from deconv_cli.allocator import peak_memory_bytes; print(peak_memory_bytes())"
    parent = (
        f"import subprocess, sys; x = bytearray(3 * 10**8); subprocess.run([sys.executable, '-c', {ask!r}], check=True)"
    )
    done = subprocess.run([sys.executable, "-c", parent], capture_output=True, text=True, check=True)
    assert 10**6 < int(done.stdout) < 2 * 10**8
