"""A prior learned from photographs: half-quadratic splitting around the exact inverse under the true border.

Each step weighs the data against the last denoised estimate z, and denoises the outcome (Venkatakrishnan, Bouman and
Wohlberg, Plug-and-play priors for model based reconstruction, GlobalSIP 2013; Zhang et al., Plug-and-play image
restoration with deep denoiser prior, TPAMI 2021, equations 6 and 7):

    x = argmin ‖Ax − y‖² + μ‖x − z‖²,    z = D(x, σᵢ),    μ = TRUST·σ²/σᵢ²

σᵢ falls geometrically to the noise σ of the data. Noise that grows with the light scales σᵢ from place to place and
leaves μ as it is, so that every step has the exact inverse of all others. The number of steps is fixed: there is no
objective whose minimum they reach, and so no certificate.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from deconv_cli.errors import UsageError
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.settings import ResolvedSettings
from deconv_cli.solvers.denoiser import CHANNELS, Denoiser, load_denoiser
from deconv_cli.solvers.estimator import Estimator, common_unit
from deconv_cli.solvers.iteration_log import Progress
from deconv_cli.solvers.prior import DataEstimate, Prior
from deconv_cli.solvers.pseudo_inverse import PseudoInverse
from deconv_cli.solvers.solution import Solution, Status
from deconv_cli.vocabulary import Size

N_STEPS = 8
TRUST = 0.2
START = 20.0
INNER_TOLERANCE = 1e-3

@cache
def _denoiser() -> Denoiser:
    return load_denoiser()


def restore(kernel: Kernel, image_size: Size, settings: ResolvedSettings, y: Tensor, sigma: Tensor, denoiser: Denoiser, *, n_steps: int = N_STEPS, trust: float = TRUST, start: float = START, ceiling: float | None = None, last: float = 1.0) -> Tensor:
    """Prototype."""
    mean = float(sigma.square().mean().sqrt())
    levels = [mean * last * start ** (1 - i / (n_steps - 1)) for i in range(n_steps)]
    n = kernel.size
    z = None
    for level in levels:
        mu = trust * (mean / level) ** 2
        P = PseudoInverse(kernel, image_size, replace(settings, lam=mu, penalty="identity", tolerance=INNER_TOLERANCE))
        A = P.operator
        if z is None:
            outer = A.input_shape[-2:]
            m = [(o - s) for o, s in zip(outer, image_size)]
            pads = (m[1] // 2, m[1] - m[1] // 2, m[0] // 2, m[0] - m[0] // 2)
            z = F.pad(y, pads, mode="replicate")
            relative = sigma.square().mean(dim=0, keepdim=True)[None]
            relative = F.pad(relative, pads, mode="replicate")
            k = [2 * (t // 4) + 1 for t in n]
            relative = F.avg_pool2d(F.pad(relative, (k[1]//2, k[1]//2, k[0]//2, k[0]//2), mode="replicate"), k, stride=1).sqrt() / mean
        predicted = A.forward(z[:, None])[:, 0]
        target = y
        if ceiling is not None:
            target = torch.where((y >= ceiling) & (predicted > y), predicted, y)
        x = z + P.solve(target - predicted).value[:, 0]
        images = x[None] if x.shape[0] == CHANNELS else x[:, None].expand(-1, CHANNELS, -1, -1)
        d = denoiser(images.contiguous(memory_format=torch.channels_last), (level * relative).expand(images.shape[0], -1, -1, -1))
        z = d[0] if x.shape[0] == CHANNELS else d.mean(dim=1)
    i, j = pads[2], pads[0]
    return z[:, i : i + image_size[0], j : j + image_size[1]]
