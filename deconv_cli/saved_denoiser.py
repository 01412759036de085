"""The weights of the prior for photographs, which come with the package."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from deconv_cli.io.codecs.safetensors_file import opened_safetensors
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
