"""Freed memory is kept where glibc can: fewer pages are cleared, and what is kept still counts as free."""

import subprocess
import sys

import pytest

from deconv_cli.allocator import kept_bytes

SCRIPT = """
import resource, sys, threading, torch
from deconv_cli.allocator import keep_freed_memory, kept_bytes
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def churn(n):
    for _ in range(n):
        torch.ones(2**24).add(1)  # 64 MiB each, freed at once
def measure():
    churn(2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    churn(20)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, kept_bytes())
if sys.argv[2] == "main":
    measure()
else:
    thread = threading.Thread(target=measure)
    thread.start()
    thread.join()
"""


def faults(how, thread):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, how, thread], capture_output=True, text=True, check=True, timeout=300
    )
    return [int(number) for number in done.stdout.split()]


@pytest.mark.skipif(not sys.platform.startswith("linux") or kept_bytes() == 0, reason="needs glibc 2.33 or newer")
@pytest.mark.parametrize("thread", ["main", "another"])
def test_pages_are_cleared_once(thread):
    given_back, _ = faults("give back", thread)
    kept, n_bytes = faults("keep", thread)
    assert kept < given_back / 10
    assert n_bytes > 2**26


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
