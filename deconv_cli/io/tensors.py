"""Files of named tensors: .pt, .safetensors, .npy and .npz behind one face."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from deconv_cli.errors import MalformedInputError, UsageError
from deconv_cli.io import limits, records
from deconv_cli.io.contents import Contents
from deconv_cli.io.formats import FileFormat
from deconv_cli.io.layout import tensor_axes
from deconv_cli.io.samples import dtype_name
from deconv_cli.io.sources import refusing_damage
from deconv_cli.io.weights_only import check_dense

if TYPE_CHECKING:
    from deconv_cli.io.contents import Samples

IMAGE_NAME = "image"
"""The name under which an image is written into a file of named tensors."""


@dataclass(frozen=True, eq=False)
class TensorFile:
    """The tensors of a file by name; a bare tensor has the empty name."""

    path: Path
    shapes: dict[str, tuple[int, ...]]
    read: Callable[[str], Samples]
    """Reads one tensor, of the shape listed."""
    record: dict[str, Any] | None


def open_tensors(path: Path, file_format: FileFormat) -> TensorFile:
    """List the tensors of a file.

    Raises:
        InputRefusedError: unsafe, damaged or too large.
    """
    if file_format is FileFormat.SAFETENSORS:
        return _open_safetensors(path)
    record = records.read_beside(path)
    if file_format is FileFormat.TORCH:
        from deconv_cli.io.torch_archive import read_torch_tensors

        tensors = read_torch_tensors(path)
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        return TensorFile(path, shapes, lambda name: _dense(path, tensors[name]), record)
    from deconv_cli.io import numpy_files

    if file_format is FileFormat.NPZ:
        return TensorFile(path, numpy_files.npz_shapes(path), lambda name: numpy_files.read_npz(path, name), record)
    array = numpy_files.read_npy(path)
    return TensorFile(path, {"": array.shape}, lambda name: array, record)


def read_tensor_image(path: Path, file_format: FileFormat, *, axes: str | None, tensor: str | None) -> Contents:
    """Read one tensor of a file as an image.

    Args:
        path: the file.
        file_format: its format, told from its content.
        axes: letters of its axes, or None for YX, CYX or BCYX.
        tensor: its name, needed where the file holds several.

    Raises:
        UsageError: no tensor of this name.
        InputRefusedError: unsafe, damaged, too large, or several tensors and no name.
    """
    opened = open_tensors(path, file_format)
    samples = opened.read(_chosen(opened, tensor))
    return Contents(
        samples=samples,
        axes=axes or tensor_axes(path, len(samples.shape)),
        dtype=dtype_name(samples),
        record=opened.record,
    )


def list_tensors(shapes: dict[str, tuple[int, ...]]) -> str:
    """Name tensors with their shapes, a dozen at most."""
    listed = [f"{name} {shape}" for name, shape in list(shapes.items())[:12]]
    more = len(shapes) - len(listed)
    return ", ".join(listed) + (f" and {more} more" if more else "")


def _chosen(opened: TensorFile, tensor: str | None) -> str:
    if tensor is not None:
        if tensor in opened.shapes and tensor:
            return tensor
        if list(opened.shapes) == [""]:
            raise UsageError(f"'{opened.path}' holds a single tensor without a name; leave out --tensor.")
        raise UsageError(f"'{opened.path}' holds no tensor named '{tensor}', only {list_tensors(opened.shapes)}.")
    if len(opened.shapes) > 1:
        raise MalformedInputError(
            f"'{opened.path}' should hold one tensor, but holds {list_tensors(opened.shapes)}; choose with "
            "--tensor NAME."
        )
    return next(iter(opened.shapes))


def _dense(path: Path, tensor: torch.Tensor) -> torch.Tensor:
    check_dense(path, tensor)
    limits.check_budget(path, tensor.numel() * tensor.element_size())
    return tensor.detach().contiguous()


def _open_safetensors(path: Path) -> TensorFile:
    from safetensors import safe_open

    limits.check_budget(path, path.stat().st_size)
    with refusing_damage(path, "a .safetensors file"), safe_open(path, framework="pt") as opened:
        shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
        metadata = opened.metadata() or {}
    if not shapes:
        raise MalformedInputError(f"'{path}' should hold a tensor, but holds none.")

    def read(name: str) -> torch.Tensor:
        with refusing_damage(path, "a .safetensors file"), safe_open(path, framework="pt") as again:
            # The clone lets go of the file, which may be replaced while the result is still in use.
            tensor: torch.Tensor = again.get_tensor(name)
            return tensor.clone()

    return TensorFile(path, shapes, read, records.decode_record(metadata.get(records.KEYWORD)))
