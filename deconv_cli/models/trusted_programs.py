"""TorchScript and exported programs, which can run code when opened: only files whose fingerprint the user gave."""

from __future__ import annotations

import hashlib
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deconv_cli.errors import UnsafeInputError
from deconv_cli.io.sources import refusing_damage


@dataclass(frozen=True, eq=False)
class ExportedModel:
    """An exported program as a module of nodes, and the inputs it was exported with."""

    module: torch.fx.GraphModule
    example_arguments: tuple[Any, ...] | None
    example_keywords: dict[str, Any]


def read_torchscript(path: Path, trusted_sha256: str | None) -> nn.Module:
    """Open a TorchScript file on the CPU.

    Raises:
        UnsafeInputError: the SHA-256 that the user trusts is missing, or another one.
        MalformedInputError: damaged.
    """
    content = _trusted_content(path, "a TorchScript file", trusted_sha256)
    with refusing_damage(path, "TorchScript"), _silence():
        module: nn.Module = torch.jit.load(content, map_location="cpu")
    return module


def read_exported_program(path: Path, trusted_sha256: str | None) -> ExportedModel:
    """Open what `torch.export.save` wrote.

    Raises:
        UnsafeInputError: the SHA-256 that the user trusts is missing, or another one.
        MalformedInputError: damaged, or written by a version of torch that this one does not read.
    """
    content = _trusted_content(path, "an exported program", trusted_sha256)
    with refusing_damage(path, f"an exported program of torch {torch.__version__}"), _silence():
        program = torch.export.load(content)
        # The forward pass itself refuses inputs that do not fit.
        module = program.module(check_guards=False)
    arguments, keywords = program.example_inputs or (None, {})
    return ExportedModel(module, arguments, keywords)


def _trusted_content(path: Path, what: str, trusted_sha256: str | None) -> io.BytesIO:
    """Read the file once: the bytes that are opened are those whose fingerprint was compared."""
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    if trusted_sha256 is None:
        raise UnsafeInputError(
            f"'{path}' is {what}, which can run its own code when opened; if you trust it, pass its fingerprint: "
            f'trusted_sha256="{sha256}".'
        )
    if trusted_sha256.lower() != sha256:
        raise UnsafeInputError(
            f"'{path}' is not the file that trusted_sha256 names: its SHA-256 is {sha256}; nothing of it was run."
        )
    return io.BytesIO(content)


@contextmanager
def _silence() -> Iterator[None]:
    """Leave out what torch warns of and logs: one sentence says what failed."""
    logger = logging.getLogger("torch.export")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
