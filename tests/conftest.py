"""What all tests share."""

import inspect
import re
import sys

import pytest
import torch

# The problems are small: a second thread costs more than it brings, and far more on a machine that is busy.
torch.set_num_threads(1)

# The benchmarks read the memory of processes from Unix.
collect_ignore = ["test_benchmarks.py"] if sys.platform == "win32" else []

OF_UNIX = re.compile(r"\bresource\b|mkfifo|symlink_to|SIGKILL|killpg|openpty|geteuid|\"bash\"")
"""What Windows lacks, or allows administrators alone."""


def pytest_collection_modifyitems(items):
    """Skip on Windows what a test's own lines cannot do there."""
    for item in items if sys.platform == "win32" else []:
        if found := OF_UNIX.search(inspect.getsource(item.function)):
            item.add_marker(pytest.mark.skip(reason=f"{found[0]} is not for Windows"))
