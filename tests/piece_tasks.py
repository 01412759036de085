"""Pieces of work for schedulers: their outputs are known, and some never return."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from deconv_cli.errors import FileAccessError, MalformedInputError
from deconv_cli.schedulers.scheduler import RETRIES, Finished

UNIT = 40_000
"""Samples of a piece."""


def a_file(folder: Path) -> Path:
    """Make an empty file, which pieces write into."""
    path = folder / "samples"
    path.touch()
    return path


@dataclass(frozen=True)
class WriteUnit:
    """Writes one unit of a file: samples that only its number decides."""

    path: Path

    def __call__(self, number: int) -> int:
        self.write(number, np.random.default_rng(number).random(UNIT, np.float32))
        return 10 * number

    def write(self, number: int, samples: np.ndarray) -> None:
        with self.path.open("r+b") as stream:
            stream.seek(4 * UNIT * number)
            stream.write(samples.tobytes())


@dataclass(frozen=True)
class DieAt:
    """Writes units too; at some pieces it writes nonsense first, and its process is killed."""

    inner: WriteUnit
    pieces: dict[int, int] = field(default_factory=dict)
    """How often each of them dies."""

    def __call__(self, number: int) -> int:
        for trial in range(self.pieces.get(number, 0)):
            if _first_time(self.inner.path.with_name(f"{number}-{trial}")):
                self.inner.write(number, np.full(UNIT // 2, -1, np.float32))
                os.kill(os.getpid(), signal.SIGKILL)
        return self.inner(number)


class OddError(Exception):
    """Cannot be unpickled: its arguments are not those of its constructor."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")


@dataclass(frozen=True)
class Fail:
    """Fails at some pieces, each in a way of its own, and counts how often each was tried."""

    folder: Path

    def __call__(self, number: int) -> int:
        with (self.folder / str(number)).open("a") as tried:
            tried.write("x")
        n_trials = (self.folder / str(number)).stat().st_size
        if number == 1:
            raise MalformedInputError("piece 1 is no picture.")
        if number == 2 and n_trials < 3:
            raise FileAccessError("the server does not answer.")
        if number == 3:
            raise FileAccessError("the file 'a' cannot be read.")
        if number == 4:
            raise OddError(1, 2)
        return n_trials


def check_failures(found: dict[int, Finished[int]]) -> None:
    """Judge what came of `Fail` at the pieces 0 to 4."""
    assert (found[0].result, found[0].error) == (1, None)
    assert type(found[1].error) is MalformedInputError
    assert str(found[1].error) == "piece 1 is no picture."
    assert (found[2].result, found[2].error) == (1 + RETRIES, None)
    assert type(found[3].error) is FileAccessError
    assert "the file 'a' cannot be read" in str(found[3].error)
    assert "1 and 2" in str(found[4].error)


def process_of(number: int) -> int:
    """Take half a second, and give the process."""
    time.sleep(0.5)
    return os.getpid()


def folder_of(number: int) -> str:
    return str(Path.cwd())


def divide(number: int) -> float:
    return 1 / number


def sleep_from_two(number: int) -> None:
    time.sleep(60 if number >= 2 else 0)


def exit_at_seven(number: int) -> int:
    if number == 7:
        os._exit(7)
    return number


def _first_time(marker: Path) -> bool:
    try:
        marker.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True
