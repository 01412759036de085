"""How much memory this process has used at its peak."""

from __future__ import annotations

import sys

import psutil


def peak_memory_bytes() -> int:
    """Ask the operating system for the largest resident size so far."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)
