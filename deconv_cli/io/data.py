"""Reading the tensors that a model is fed with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from deconv_cli.errors import MalformedInputError
from deconv_cli.io.formats import format_of_content
from deconv_cli.io.sources import open_source
from deconv_cli.io.tensors import open_tensors


def read_data(path: Path) -> dict[str, torch.Tensor]:
    """Read every tensor of a .safetensors, .pt, .npz or .npy file by name; a bare tensor is called `input`.

    Raises:
        UsageError: no such file.
        InputRefusedError: unsafe, damaged, too large, or no file of tensors.
    """
    head, _ = open_source(path)
    file_format = format_of_content(path, head)
    if file_format.is_picture:
        raise MalformedInputError(f"'{path}' should be a file of tensors, but is a {file_format} picture.")
    opened = open_tensors(path, file_format)
    tensors = {}
    for name in opened.shapes:
        samples = opened.read(name)
        tensor = torch.from_numpy(np.ascontiguousarray(samples)) if isinstance(samples, np.ndarray) else samples
        tensors[name or "input"] = tensor
    return tensors
