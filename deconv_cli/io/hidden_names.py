"""Hidden names of what is not whole yet, or no longer wanted, by which later runs know what a killed one left."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import secrets
import socket
import time
from pathlib import Path

import psutil

PARTIAL, REPLACED = "partial", "replaced"
"""Of a file that is being written, and of a folder that another one takes the place of."""

_MAX_BYTES = 180
"""Of a name that is part of a hidden one: file systems take 255."""
_SECONDS = 60
"""How long a folder is not listed again, which may hold thousands of results."""
_SECONDS_OF_OTHERS = 24 * 3600
"""How long what another machine writes stays as it is, of which nobody here knows whether its process runs."""
_TOKEN = "[0-9a-f]{8}"  # noqa: S105
_LEFT = re.compile(rf"(\..+\.)({_TOKEN})-(\d+)-{_TOKEN}(\.(?:{PARTIAL}|{REPLACED}))(?:\.[^.]*)?", re.DOTALL)
_IN_PARTS = re.compile(rf"\..+\.{PARTIAL}(-{_TOKEN})?", re.DOTALL)


def partial_path(path: Path) -> Path:
    """Name what is written part by part before all is there: the same for every process, and for a later run."""
    return path.with_name(f".{path.name}.{PARTIAL}")


def is_in_parts(path: Path) -> bool:
    """Tell by its name whether a file is one of those, which may be read before all is there."""
    return _IN_PARTS.fullmatch(path.name) is not None


def hidden_name(final: Path, ending: str) -> Path:
    """Give a new hidden name beside a file that is written as a whole; it keeps the suffix."""
    return final.with_name(f"{_beginning(final)}{process_name()}-{secrets.token_hex(4)}.{ending}{final.suffix}")


def process_name() -> str:
    """Name this process among those of all machines."""
    return f"{_host()}-{os.getpid()}"


def left_of(final: Path, ending: str) -> list[Path]:
    """List what killed processes left under hidden names of a file before the folder was listed."""
    found = _left_in(final.parent.absolute(), int(time.monotonic()) // _SECONDS)
    return [path for path in found.get((_beginning(final), f".{ending}"), []) if not _may_be_written(path)]


def _may_be_written(path: Path) -> bool:
    """Tell whether the process that gave a hidden name runs, or may do so on another machine."""
    found = _LEFT.fullmatch(path.name)
    if found is not None and found[2] == _host():
        return psutil.pid_exists(int(found[3]))
    with contextlib.suppress(OSError):
        return time.time() - path.stat().st_mtime < _SECONDS_OF_OTHERS
    return False


@functools.cache
def _host() -> str:
    """Name this machine by eight digits, since its own name may be long."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def _beginning(final: Path) -> str:
    encoded = os.fsencode(final.name)
    return f".{final.name if len(encoded) <= _MAX_BYTES else hashlib.sha256(encoded).hexdigest()[:32]}."


@functools.lru_cache(maxsize=8)
def _left_in(folder: Path, _period: int) -> dict[tuple[str, str], list[Path]]:
    left: dict[tuple[str, str], list[Path]] = {}
    with contextlib.suppress(OSError):  # not every folder that may be written into may be listed
        for path in folder.iterdir():
            if found := _LEFT.fullmatch(path.name):
                left.setdefault((found[1], found[4]), []).append(path)
    return left
