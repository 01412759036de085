"""States of learning in files, from which it goes on to the same bits."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from deconv_cli.argument_types import as_path
from deconv_cli.errors import MalformedInputError
from deconv_cli.io.atomic import write_atomically
from deconv_cli.io.sources import read_head
from deconv_cli.io.weights_only import load_weights_only

_KEYS = {"schema", "problem", "descent", "refinement"}


def save_learning_state(state: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a state that `learn_kernel` gave to `keep`, completely or not at all; a file that is there is replaced.

    It holds tensors, numbers and words alone: torch's weights-only reader takes it.

    Raises:
        FileAccessError: disk full, or no permission.
    """

    def write(temporary: Path) -> None:
        torch.save(state, temporary)

    def check(temporary: Path) -> None:
        load_learning_state(temporary)

    write_atomically(as_path(path), write, check)


def load_learning_state(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a state for `resume` of `learn_kernel`; nothing that the file carries is run.

    Raises:
        UsageError: no such file.
        FileAccessError: the file cannot be read.
        InputRefusedError: damaged, too large, unsafe, or another file altogether.
    """
    path = as_path(path)
    read_head(path)
    found = load_weights_only(path, advice="save one by save_learning_state")
    if not isinstance(found, dict) or set(found) != _KEYS:
        raise MalformedInputError(
            f"'{path}' should be a state of learning, but is another file; name one, or a new file."
        )
    return found
