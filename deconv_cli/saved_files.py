"""The denoiser of the package, and layers and kernel fields in files; nothing that a file carries is run."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deconv_cli.errors import UsageError, as_path, check_type
from deconv_cli.io.atomic import check_output_path
from deconv_cli.io.codecs.tensor_codecs import opened_safetensors, write_tensors
from deconv_cli.kernels.kernel_field import KernelField
from deconv_cli.models.kernel_files import KernelFile, read_kernel
from deconv_cli.models.layers import ModelLayer as ModelLayer
from deconv_cli.models.layers import find_layer
from deconv_cli.models.layers import list_layers as layers_of
from deconv_cli.models.model_files import ModelFile, build_model, load_named, read_model
from deconv_cli.solvers.denoiser import Denoiser
from deconv_cli.solvers.photo_prior import PhotoPrior

WEIGHTS = Path(__file__).with_name("denoiser.safetensors")


@cache
def load_denoiser(device: torch.device) -> tuple[Denoiser, Tensor]:
    """Read the denoiser, and the levels and weights of the steps that it was trained for, shape `(2, n_steps)`."""
    with opened_safetensors(WEIGHTS) as file:
        shape = file.metadata()
        tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    widths, depths = (tuple(int(n) for n in shape[key].split(",")) for key in ("widths", "depths"))
    steps = tensors.pop("steps")
    denoiser = Denoiser(widths, depths)
    denoiser.load_state_dict(tensors)
    return denoiser.eval().requires_grad_(False).to(device), steps


PHOTO_PRIOR = PhotoPrior(load_denoiser)


def open_model(
    path: str | os.PathLike[str],
    *,
    model: str | None = None,
    init: Any = None,  # noqa: ANN401 (JSON)
) -> tuple[ModelFile, nn.Module | None]:
    """Read a model file, and build the model where its class is named; nothing that the file carries is run.

    Args:
        path: .safetensors, or what `torch.save` wrote.
        model: the class of the model, `file.py:Name` or `package.module:Name`, for a file of weights alone.
        init: the arguments of that class, by name or as a list.

    Raises:
        UsageError: no such file or name.
        InputRefusedError: a file that is unsafe, damaged, too large or does not fit the class.
    """
    named = None if model is None else load_named(model, "model")
    stored = read_model(as_path(path), named=named)
    if named is None or stored.module is not None:
        return stored, None
    return stored, build_model(named, init, stored)


def list_layers(path: str | os.PathLike[str], **options: Any) -> list[ModelLayer]:  # noqa: ANN401
    """List the convolutions of a model file, in the order of the model; `options` are those of `open_model`."""
    return layers_of(*open_model(path, **options))


def load_layer(path: str | os.PathLike[str], name: str | None = None, **options: Any) -> ModelLayer:  # noqa: ANN401
    """Read one convolution of a model file, by its name or as the only one; `options` are those of `open_model`.

    Raises:
        UsageError: no layer of this name, or several and no name.
        MalformedInputError: there is no convolution, or its weights are not finite.
    """
    stored, module = open_model(path, **options)
    return find_layer(stored, layers_of(stored, module), name)


def save_layer(
    layer: ModelLayer, path: str | os.PathLike[str], *, record: dict[str, Any] | None = None, force: bool = False
) -> None:
    """Write a layer into a `.safetensors` file, with its geometry in the record, completely or not at all.

    Args:
        layer: the layer.
        path: of the file.
        record: further facts on how it was made, as JSON.
        force: replace an existing file.

    Raises:
        UsageError: another suffix, no such folder, or an existing file without `force`.
        FileAccessError: disk full, or no permission.
    """
    check_type(layer, ModelLayer, "the layer")
    tensors = {f"{layer.name}.weight": layer.weight.detach().cpu()}
    if layer.bias is not None:
        tensors[f"{layer.name}.bias"] = layer.bias.detach().cpu()
    _save(path, tensors, {**(record or {}), "layer": layer.describe()}, force=force)


def save_kernel_field(
    field: KernelField, path: str | os.PathLike[str], *, record: dict[str, Any] | None = None, force: bool = False
) -> None:
    """Write a kernel field into a `.safetensors` file; arguments and errors are those of `save_layer`."""
    check_type(field, KernelField, "the field")
    tensors = {"kernels": field.taps.detach().cpu()}
    tensors |= {name: torch.tensor(getattr(field, name), dtype=torch.float64) for name in ("rows", "columns")}
    _save(path, tensors, record or {}, force=force)


def _save(path: str | os.PathLike[str], tensors: dict[str, Tensor], record: dict[str, Any], *, force: bool) -> None:
    path = as_path(path)
    check_output_path(path, path.parent, force=force)
    write_tensors(path, tensors, record)


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
