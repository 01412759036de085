"""Writing .pt, .safetensors, .npy and .npz."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from deconv_cli.io import records
from deconv_cli.io.drafts import Draft
from deconv_cli.io.formats import FileFormat
from deconv_cli.io.tensors import IMAGE_NAME


def write_tensor(path: Path, file_format: FileFormat, draft: Draft, encoded_record: str) -> None:
    """Write a bare tensor; only .safetensors takes the record along."""
    array = np.ascontiguousarray(draft.array)
    if file_format is FileFormat.NPY:
        with path.open("wb") as stream:
            np.save(stream, array, allow_pickle=False)
    elif file_format is FileFormat.NPZ:
        with path.open("wb") as stream:
            np.savez(stream, allow_pickle=False, **{IMAGE_NAME: array})
    elif file_format is FileFormat.TORCH:
        torch.save(torch.from_numpy(array), path)
    else:
        from safetensors.torch import save_file

        save_file({IMAGE_NAME: torch.from_numpy(array)}, path, metadata={records.KEYWORD: encoded_record})


def lost_names(draft: Draft) -> list[str]:
    """Name what the source says about itself: a bare tensor holds none of it."""
    metadata = draft.metadata
    lost = [f"ImageJ {name}" for name in metadata.imagej] + [f"OME {name}" for name in metadata.ome]
    present = {
        "resolution": metadata.resolution,
        "ICC profile": metadata.icc_profile,
        "EXIF": metadata.exif,
        "JPEG comment": metadata.comment,
        "white-is-zero display": metadata.white_is_zero,
    }
    lost += [name for name, value in present.items() if value]
    lost += [f"text {name}" for name in metadata.texts]
    return lost + [f"PNG chunk {name.decode()}" for name, _ in metadata.png_chunks]
