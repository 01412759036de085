"""Inverses in files: factored once, applied at any later time.

A `.safetensors` file holds the taps, the settings, and costly factors: the blocks of circular inverses, and the factors
of direct ones. Strip and iterative inverses are built again. Nothing in the file is run, and every part is checked.
"""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deconv_cli.errors import MalformedInputError, UsageError, as_path, check_type
from deconv_cli.io import limits
from deconv_cli.io.codecs.safetensors_file import SavedState, check_state_path, read_state, write_state
from deconv_cli.solvers.inverse import Factors
from deconv_cli.solvers.inverse_state import InverseState
from deconv_cli.solvers.pseudo_inverse import PseudoInverse
from deconv_cli.vocabulary import Convention

BIAS = "bias"


@dataclass(frozen=True)
class KernelOrigin:
    """The origin of a kernel: its file, its hash and convention, the layer, and the notes of its reader."""

    path: str
    layer: str | None
    convention: Convention
    sha256: str
    notes: tuple[str, ...]

    def record(self) -> dict[str, Any]:
        """Write it as a JSON object."""
        return asdict(self)

    @classmethod
    def of_record(cls, record: dict[str, Any]) -> KernelOrigin:
        """Read a record of `record`; anything else raises a `MalformedInputError`."""
        try:
            path, layer, sha256 = (record[name] and str(record[name]) for name in ("path", "layer", "sha256"))
            return cls(path, layer, Convention(record["convention"]), sha256, tuple(map(str, record["notes"])))
        except (KeyError, TypeError, ValueError) as error:
            raise MalformedInputError("its record of the kernel's file was changed.") from error


@dataclass(frozen=True, eq=False)
class SavedInverse:
    """The content of a file.

    Attributes:
        inverse: ready to be applied.
        bias: what a layer adds to each output channel, shape `(C_out,)`; subtract it from the outputs first.
        origin: where the kernel came from, as `deconv factor` records it.
    """

    inverse: PseudoInverse
    bias: Tensor | None = None
    origin: KernelOrigin | None = None


def save_pseudo_inverse(inverse: PseudoInverse, path: str | os.PathLike[str], *, force: bool = False) -> None:
    """Write an inverse into a file, completely or not at all.

    Args:
        inverse: any, as `pseudo_inverse` builds it.
        path: a `.safetensors` file.
        force: replace an existing file.

    Raises:
        UsageError: another suffix, no such folder, or an existing file without `force`.
        FileAccessError: disk full, no permission, or the file does not read back.
    """
    check_type(inverse, PseudoInverse, "the inverse")
    path = as_path(path)
    check_state_path(path, path.parent, force=force)
    write_inverse(path, SavedInverse(inverse))


def load_pseudo_inverse(
    path: str | os.PathLike[str], *, device: torch.device | str = "cpu", max_memory: int | None = None
) -> PseudoInverse:
    """Read an inverse from a file; it gives bit for bit what the saved one gave on the same machine.

    Its factors are mapped into memory: the file must stay as it is while the inverse is in use, though its name may be
    given to another. To differentiate in the kernel, let the inverse's `kernel.taps` require a gradient.

    Args:
        path: what `save_pseudo_inverse` or `deconv factor` wrote.
        device: where the arithmetic is to run.
        max_memory: bytes that the inverse may take; by default what is free.

    Raises:
        UsageError: no such file; or one whose kernel came with a bias, which nobody would subtract:
            `saved_inverses.read_inverse` gives both.
        FileAccessError: the file cannot be read.
        InputRefusedError: damaged, too large, of a newer schema, or another file altogether.
    """
    saved = read_inverse(as_path(path), torch.device(device), max_memory)
    if saved.bias is not None:
        raise UsageError(
            f"'{path}' holds an inverse and a bias, which must be subtracted from the data first; use "
            "deconv_cli.saved_inverses.read_inverse, which returns both."
        )
    return saved.inverse


def write_inverse(path: Path, saved: SavedInverse) -> None:
    """Write an inverse with its bias and its origin; an existing file is replaced.

    Raises:
        FileAccessError: disk full, no permission, or the file does not read back.
    """
    state = saved.inverse.state
    tensors = state.tensors() | ({} if saved.bias is None else {BIAS: saved.bias})
    origin = None if saved.origin is None else saved.origin.record()
    write_state(path, SavedState(tensors, {"inverse": state.record(), "kernel": origin}))


def read_inverse(path: Path, device: torch.device, max_memory: int | None = None) -> SavedInverse:
    """Read an inverse with its bias and its origin; arguments and errors are those of `load_pseudo_inverse`."""
    found = read_state(path)
    try:
        return _assemble(path, found, device, max_memory)
    except MalformedInputError as error:
        raise MalformedInputError(f"'{path}' holds no usable inverse: {error}") from error
    except ArithmeticError as error:
        raise MalformedInputError(f"'{path}' is not an inverse: a number of its record is out of range.") from error


def _assemble(path: Path, found: SavedState, device: torch.device, max_memory: int | None) -> SavedInverse:
    tensors = dict(found.tensors)
    record, origin = found.record.get("inverse"), found.record.get("kernel")
    if not isinstance(record, dict) or not (origin is None or isinstance(origin, dict)):
        raise MalformedInputError("its record was changed.")
    bias = tensors.pop(BIAS, None)
    state = InverseState.of_record(record, tensors)
    if device.type == "mps" and state.taps.dtype == torch.float64:
        raise UsageError(f"'{path}' was factored in float64, which an Apple GPU does not support; use device cpu.")
    # Building takes a few images' memory at least.
    limits.check_budget(path, math.prod(state.image_size) * state.taps.element_size())
    factors = Factors({name: tensor.to(device) for name, tensor in state.factors.tensors.items()})
    state = replace(
        state,
        taps=state.taps.to(device),
        settings=replace(state.settings, max_memory=max_memory),
        factors=factors,
    )
    inverse = PseudoInverse.from_state(state)
    if bias is not None:
        n_outputs = state.taps.shape[0]
        if bias.shape != (n_outputs,) or not bias.is_floating_point() or not bool(torch.isfinite(bias).all()):
            raise MalformedInputError(f"its bias should be {n_outputs} finite numbers.")
        bias = bias.to(device, state.taps.dtype)
    return SavedInverse(inverse, bias, None if origin is None else KernelOrigin.of_record(origin))
