"""The memory of this process: its peak, keeping memory instead of returning it to the system, and collecting garbage.

glibc returns large blocks to the kernel as soon as they are freed, and the kernel clears every page that it hands out
again. A reconstruction allocates image after image: half of the processor's time went into clearing pages.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import importlib
import sys
from pathlib import Path

# mallopt(3): the parameters, and values that keep all that is freed.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8
_NEVER = 2**31 - 1
_TOP_PAD = 256 * 2**20
KEPT_BYTES = 2**29
"""Freed memory that stays with the process between two steps."""


class _MallocInfo(ctypes.Structure):
    """The result of mallinfo2(3)."""

    _NAMES = (
        *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
        *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
    )
    _fields_ = tuple((name, ctypes.c_size_t) for name in _NAMES)


@functools.cache
def _glibc() -> ctypes.CDLL | None:
    """Return the C library of this process, if it is a glibc that reports its memory."""
    try:
        library = ctypes.CDLL(None)
        library.mallopt.argtypes, library.mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
        library.mallinfo2.restype = _MallocInfo
    except (AttributeError, OSError, TypeError):  # another C library, or Windows, which takes no None
        return None
    return library


def keep_freed_memory() -> bool:
    """Make this process keep the memory that it frees, and return whether it can.

    The command line does so at its start. A program that uses the library may do so: its peak stays the same, but it
    holds that much until it ends.
    """
    library = _glibc()
    if library is None:
        return False
    # One arena: those of further threads are pieces of 64 MB that are given back whenever one is empty.
    wanted = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _NEVER), (_M_TOP_PAD, _TOP_PAD), (_M_ARENA_MAX, 1))
    done = [library.mallopt(parameter, value) == 1 for parameter, value in wanted]
    return all(done)


def load_torch() -> None:
    """Import torch without collecting garbage, which takes a seventh less time.

    The objects of its modules stay until the process ends, so later collections pass over them.
    """
    if "torch" in sys.modules:
        return
    is_collecting = gc.isenabled()
    gc.disable()
    try:
        importlib.import_module("torch")
    finally:
        if is_collecting:
            gc.enable()
    gc.freeze()


def kept_bytes() -> int:
    """Return the freed bytes that this process holds: they are usable, though the system counts them as taken."""
    library = _glibc()
    if library is None:
        return 0
    import psutil

    info, memory = library.mallinfo2(), psutil.Process().memory_info()
    # What `return_freed_memory` returned still counts as free in glibc, but is no longer resident. Pages of files,
    # such as torch's libraries, are resident and are shared.
    return max(0, min(int(info.fordblks), memory.rss - memory.shared - int(info.uordblks)))


def return_freed_memory(limit: int = KEPT_BYTES) -> None:
    """Return the freed memory of this process to the system if it is more than `limit` bytes.

    Blocks of changing sizes do not fit into the memory that earlier ones left behind, so kept memory would grow.
    """
    library = _glibc()
    if library is not None and kept_bytes() > limit:
        library.malloc_trim(0)


def peak_memory_bytes() -> int:
    """Return the largest resident size of this process so far."""
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    with contextlib.suppress(OSError, StopIteration):  # on Linux ru_maxrss is also that of a larger parent
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)
