"""Files of kernels with their places in the frame: safetensors with the tensors `kernels`, `rows` and `columns`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from deconv_cli.errors import MalformedInputError
from deconv_cli.io.codecs.safetensors_file import SAFETENSORS
from deconv_cli.io.samples import as_real_tensor
from deconv_cli.io.tensors import TensorCodec, describe_tensors, open_tensors

FIELD_TENSORS = ("kernels", "rows", "columns")
"""The names of the tensors; a file that holds these and no others is a kernel field."""


@dataclass(frozen=True, eq=False)
class FieldTensors:
    """A kernel field as stored.

    Attributes:
        kernels: shape `(n_rows, n_columns, kH, kW)`.
        rows: where the rows of places lie, in parts of the frame's height, `n_rows` of them.
        columns: the same of its width, `n_columns` of them.
    """

    kernels: torch.Tensor
    rows: tuple[float, ...]
    columns: tuple[float, ...]


def read_field_tensors(path: Path, codec: TensorCodec) -> FieldTensors | None:
    """Read a kernel field; `None` where the file holds something else.

    Raises:
        MalformedInputError: tensors of these names that do not fit one another.
    """
    if codec is not SAFETENSORS:
        return None
    opened = open_tensors(path, codec)
    if set(opened.shapes) != set(FIELD_TENSORS):
        return None
    shape = opened.shapes["kernels"]
    if len(shape) != 4 or 0 in shape or (opened.shapes["rows"], opened.shapes["columns"]) != ((shape[0],), (shape[1],)):
        raise MalformedInputError(
            f"kernel field '{path}' should hold kernels of shape (n_rows, n_columns, kH, kW), rows of shape (n_rows,) "
            f"and columns of shape (n_columns,), but holds {describe_tensors(opened.shapes)}."
        )
    kernels, rows, columns = (as_real_tensor(path, opened.read(name)) for name in FIELD_TENSORS)
    return FieldTensors(kernels, tuple(rows.double().tolist()), tuple(columns.double().tolist()))
