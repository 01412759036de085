"""Kernel fields in files: written as `deconv --kernel FILE` reads them."""

from __future__ import annotations

import os
from typing import Any

import torch

from deconv_cli.argument_types import as_path, check_type
from deconv_cli.errors import UsageError
from deconv_cli.io.atomic import check_output_path
from deconv_cli.io.codecs.safetensors_file import write_tensors
from deconv_cli.kernels.kernel_field import KernelField
from deconv_cli.models.kernel_files import KernelFile, read_kernel


def save_kernel_field(
    field: KernelField, path: str | os.PathLike[str], *, record: dict[str, Any] | None = None, force: bool = False
) -> None:
    """Write a kernel field into a file, completely or not at all.

    Args:
        field: the kernels with their places.
        path: a `.safetensors` file.
        record: what is to be known of how it was made, as JSON.
        force: replace an existing file.

    Raises:
        UsageError: another suffix, no such folder, or an existing file without `force`.
        FileAccessError: disk full, or no permission.
    """
    check_type(field, KernelField, "the field")
    path = as_path(path)
    check_output_path(path, path.parent, force=force)
    tensors = {"kernels": field.taps.detach().cpu()}
    tensors |= {name: torch.tensor(getattr(field, name), dtype=torch.float64) for name in ("rows", "columns")}
    write_tensors(path, tensors, record or {})


def load_kernel_field(path: str | os.PathLike[str]) -> KernelField:
    """Read a kernel field from a file, with its taps in the order of a cross-correlation.

    Raises:
        UsageError: no such file, or another kernel.
        InputRefusedError: damaged, too large, or no kernel at all.
    """
    read = read_kernel(as_path(path))
    if read.places is None:
        raise UsageError(
            f"'{path}' should hold a kernel field, but holds one kernel of shape {tuple(read.kernel.shape)}."
        )
    return field_of(read)


def field_of(read: KernelFile) -> KernelField:
    """Make a kernel field of a file that has places."""
    assert read.places is not None
    return KernelField(read.kernel, *read.places)
