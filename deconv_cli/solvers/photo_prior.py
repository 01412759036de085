"""A prior learned from photographs: half-quadratic splitting around the exact inverse under the true border.

Each step weighs the data against the last denoised image z, and denoises the outcome (Venkatakrishnan, Bouman and
Wohlberg, Plug-and-play priors for model based reconstruction, GlobalSIP 2013; Zhang et al., Plug-and-play image
restoration with deep denoiser prior, TPAMI 2021, equations 6 and 7):

    x = argmin ‖Ax − y‖² + μᵢ‖x − z‖²,    z = D(x, tᵢσ)

σ is the noise of the data. The weights μᵢ and the levels tᵢ were trained with the denoiser D, and are the same for all
data. Noise that grows with the light scales the level from place to place and leaves μᵢ as it is, so each step is the
exact inverse that other estimates use. The number of steps is fixed: no objective has a minimum there.

The denoiser takes one level for the three colors. Where a color is dark, its noise in light is far below that level,
and what the denoiser infers from the bright colors would drown it: there the later steps denoise it alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from deconv_cli.allocator import return_freed_memory
from deconv_cli.errors import UsageError
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.operators import synchronize
from deconv_cli.settings import ResolvedSettings
from deconv_cli.solvers.denoiser import CHANNELS, Denoiser, Tile, local_mean
from deconv_cli.solvers.estimator import DataEstimate, Estimator, Prior
from deconv_cli.solvers.problem import TikhonovProblem
from deconv_cli.solvers.pseudo_inverse import PseudoInverse
from deconv_cli.solvers.solution import Progress, Solution, Status
from deconv_cli.solvers.solver import Choice, Cost, choose_method, find_solver
from deconv_cli.vocabulary import Size

OBJECTIVE = "a fixed number of steps that alternate between the data and a denoiser trained on photographs"
OBJECTIVE_WITH_BOUNDS = f"{OBJECTIVE}, with saturated samples as lower bounds"
INNER_TOLERANCE = 1e-3
LEAST_LIGHT = 0.5
"""Least sum of the taps of a blur, as a fraction of the sum of their sizes."""
N_IMAGES = 8
"""Images that are held at once, besides those of the inverse of one image, or of the denoiser in one tile."""
FIRST_ALONE = 3
"""Step from which dark colors are denoised alone. All steps gain 0.02 dB more, at a seventh more time."""
DARK = 0.5
"""A color is dark where its noise has less than this part of the mean variance of the colors."""
LEAST_DARK = 0.02
"""Least part of the pixels of a tile where a color is dark, for it to be denoised alone."""

Weights = Callable[[torch.device], tuple[Denoiser, Tensor]]
"""Gives the denoiser on a device, and the levels and weights of the steps, shape `(2, n_steps)`."""


class PhotoPrior(Prior):
    """Images that look like photographs.

    Args:
        load: gives the denoiser and its steps.
    """

    def __init__(self, load: Weights) -> None:
        self._load = load

    def needs(self, settings: ResolvedSettings) -> DataEstimate | None:
        """Ask for the noise of every sample."""
        del settings
        return "noise map"

    def build(
        self,
        kernel: Kernel,
        image_size: Size,
        settings: ResolvedSettings,
        estimate: float | Tensor | None = None,
    ) -> Estimator:
        """Build the estimator for the noise of every sample."""
        if estimate is None:
            raise UsageError("prior photo needs the noise of the data; give noise_sigma.")
        noise = kernel.taps.new_tensor([[[estimate]]]) if isinstance(estimate, float) else estimate
        return PhotoEstimator(kernel, image_size, settings, noise, self._load)


class PhotoEstimator(Estimator):
    """Estimates photographs.

    There is no minimum, so the certificate is the relative change of the last step.

    Args:
        kernel: canonical kernel of two axes; its dtype and device are those of the arithmetic.
        image_size: size of the images to restore.
        settings: padding, boundary, strength and memory.
        noise: standard deviation of the noise of every sample, of the shape of the data or one that broadcasts to it.
        load: gives the denoiser and its steps.

    Raises:
        UsageError: a kernel of another number of axes or that is no blur, a layer, or data without noise.
        ShapeError: the kernel does not fit the size.
        TooLargeError: it does not fit the memory.
    """

    def __init__(
        self, kernel: Kernel, image_size: Size, settings: ResolvedSettings, noise: Tensor, load: Weights
    ) -> None:
        super().__init__(kernel, image_size, settings)
        if kernel.n_axes != 2:
            raise UsageError(
                f"prior photo works on pictures with two axes, but the kernel has {kernel.n_axes}; use prior "
                "quadratic or tv."
            )
        if self.operator.is_layer:
            raise UsageError("prior photo does not work on layers with a stride or groups; use prior quadratic.")
        self.tolerance = INNER_TOLERANCE if settings.tolerance is None else settings.tolerance
        if not is_blur(kernel):
            raise UsageError(
                "prior photo undoes blurs with mostly positive taps, but the taps of this kernel add up to less than "
                "half of their sizes; use prior quadratic."
            )
        self._brightness = float(kernel.taps.detach().sum()) / kernel.taps.shape[0]  # of the data of an even image
        self._noise = noise
        self._strength = settings.strength or 1.0
        self._denoiser, self._steps = load(kernel.taps.device)
        self._quadratic = replace(
            settings, prior="quadratic", penalty="identity", strength=None, noise=None, tolerance=self.tolerance
        )
        problem = TikhonovProblem(self.operator, float(self._steps[1, 0]))
        method = choose_method(problem, settings.method, settings.max_memory).method
        self.choice = Choice(method, f"each of {self._steps.shape[1]} steps uses it")
        cost = find_solver(method).cost(problem)
        n_bytes = max(cost.n_bytes(), self._denoiser.tile_bytes(tuple(self.operator.input_shape[1:])))
        image = kernel.taps.itemsize * math.prod(self.operator.input_shape)
        self.cost = Cost(cost.n_operations, n_bytes, N_IMAGES * image)
        self.check_memory(self.cost)

    def solve(self, y: Tensor, progress: Progress | None = None, is_bound: Tensor | None = None) -> Solution:
        """Solve for data `y` of shape `(C_out, *output_size)`, or a batch of them; see `Estimator.solve`.

        Args:
            y: the data.
            progress: called after every step.
            is_bound: which samples are lower bounds, in the operators' arrangement. One that the last image exceeds
                leaves no misfit: the data are projected on what the bounds allow. Six steps hardly go beyond a bound,
                so it should be about as bright as what was cut off.
        """
        data = self.data_of(y)
        self.check_memory(self.cost, self.n_images(data))
        changes = []
        with torch.no_grad():
            z = self._start(data)
            noise = self._strength * self._local_level(self._noise)
            of_colors = self._levels_of_colors(self.kernel.join(z).shape[-3])
            for n, (times, weight) in enumerate(self._steps.T.tolist(), start=1):
                misfit = data - self.operator.forward(z)
                if is_bound is not None:
                    misfit = torch.where(is_bound, misfit.clamp_min(0), misfit)
                last, z = z, self._corrected(z, misfit, self._inverse(weight))
                return_freed_memory()
                noisy, misfit = self.kernel.join(z), self.kernel.join(misfit)
                clean = torch.empty_like(noisy)
                self._denoise(noisy, times * noise, misfit, n - 1, clean)
                for color, own in enumerate(of_colors if n >= FIRST_ALONE else []):
                    one = (..., slice(color, color + 1), slice(None), slice(None))
                    part = (own / noise).square().nan_to_num(1.0)  # no color is dark where there is no noise
                    self._denoise(noisy[one], times * own, misfit[one], n - 1, clean[one], part)
                z = clean.reshape(z.shape)
                return_freed_memory()
                changes.append(synchronize.as_number(torch.dist(z, last) / last.norm().clamp_min(1e-30)))
                if progress is not None:
                    progress(n, changes[-1])
        return Solution(
            z,
            Status.FIXED_STEPS,
            len(changes),
            changes[-1],
            tuple(changes),
            OBJECTIVE if is_bound is None else OBJECTIVE_WITH_BOUNDS,
            noise_levels=self.settings.noise_levels,
        )

    def _corrected(self, z: Tensor, misfit: Tensor, inverse: PseudoInverse) -> Tensor:
        """Add the inverse of the misfit, one image at a time to save memory."""
        corrected = torch.empty_like(z)
        images = (part.reshape(-1, *part.shape[-3:]) for part in (corrected, z, misfit))
        for found, image, missed in zip(*images, strict=True):
            torch.add(image, inverse.solve(missed).value.reshape(image.shape), out=found)
        return corrected

    def _inverse(self, weight: float) -> PseudoInverse:
        return PseudoInverse(self.kernel, self.geometry.image_size, replace(self._quadratic, lam=weight))

    def _start(self, data: Tensor) -> Tensor:
        """Lay the data under the image, and repeat the outermost samples where the image reaches beyond them."""
        n_inputs, n_outputs = self.operator.input_shape[0], self.operator.output_shape[0]
        if n_inputs != n_outputs:
            data = data.mean(dim=-3, keepdim=True).expand(*data.shape[:-3], n_inputs, *data.shape[-2:])
        return _fit(data, tuple(self.operator.input_shape[1:])) / self._brightness

    def _local_level(self, samples: Tensor) -> Tensor:
        """Average samples of the data over their channels and nearby, in the unit of the image; `(B, 1, H, W)`."""
        pictures = samples.reshape(-1, *samples.shape[-3:])
        variance = local_mean(pictures.square().mean(dim=1, keepdim=True))
        return _fit(variance, tuple(self.operator.input_shape[1:])).sqrt() / self._brightness

    def _denoise(
        self, images: Tensor, noise: Tensor, misfit: Tensor, step: int, clean: Tensor, part: Tensor | None = None
    ) -> None:
        """Denoise images: three channels as colors, others one by one.

        Args:
            images: shape `(*batch, C, H, W)`.
            noise: its level, shape `(B, 1, H, W)`.
            misfit: what the data say beyond the last images, shape `(*batch, C, *output_size)`.
            step: number of the step, from 0.
            clean: takes the result, in the shape of the images.
            part: of a color that is denoised alone, its variance in that of all colors, shape `(B, 1, H, W)`: only
                tiles where it is dark change, and as far as it is.
        """
        far = self._local_level(misfit)
        levels = torch.cat([noise.expand_as(far), far], dim=1).float()
        n_channels = CHANNELS if images.shape[-3] == CHANNELS else 1
        stacked = images.reshape(-1, n_channels, *images.shape[-2:]).float()
        levels = levels.repeat_interleave(len(stacked) // len(levels), dim=0)
        shares = levels if part is None else part.expand(len(stacked), -1, -1, -1)
        pictures = (pictures.split(1) for pictures in (stacked, levels, clean.view(stacked.shape), shares))
        for image, level, target, share in zip(*pictures, strict=True):
            for tile in self._tiles(step):
                here = share[tile.inner]
                if part is None:
                    target[tile.inner] = self._denoiser.in_tile(image, level, tile)
                elif synchronize.as_number((here < DARK).float().mean()) >= LEAST_DARK:
                    alone = self._denoiser.in_tile(image, level, tile)
                    target[tile.inner].lerp_(alone.to(target.dtype), (1 - here).clamp_min(0).to(target.dtype))

    def _levels_of_colors(self, n_channels: int) -> list[Tensor]:
        """Return the noise level of each color as `_local_level` does; none for images that are not in color."""
        if not (self.kernel.shared and n_channels == self._noise.shape[-3] == CHANNELS):
            return []
        return [self._strength * self._local_level(noise) for noise in self._noise.split(1, dim=-3)]

    def _tiles(self, step: int) -> Iterator[Tile]:
        origin = [sum(places) for places in zip(self.settings.origin or (0, 0), first_pixel(step), strict=True)]
        return self._denoiser.tiles(tuple(self.operator.input_shape[1:]), origin)


def first_pixel(step: int) -> tuple[int, int]:
    """Return the place of a picture's first pixel on the grid of the denoiser, which differs from step to step.

    Errors at one place of the grid cancel at another one (Coifman and Donoho, Translation-invariant de-noising,
    1995).
    """
    return 3 * step % 8, 5 * (step // 2) % 8


def is_blur(kernel: Kernel) -> bool:
    """Return whether a kernel spreads light: its taps add up to more than half of their sizes."""
    taps = kernel.taps.detach()
    return float(taps.sum()) > LEAST_LIGHT * float(taps.abs().sum())


def _fit(samples: Tensor, size: Size) -> Tensor:
    """Bring samples to the size of the image, centered: cut off, or repeat the outermost ones."""
    missing = [wanted - n for n, wanted in zip(samples.shape[-2:], size, strict=True)]
    if not any(missing):
        return samples
    (above, below), (left, right) = ((n // 2, n - n // 2) for n in missing)
    pictures = samples.reshape(-1, *samples.shape[-3:])
    fitted = functional.pad(pictures, (left, right, above, below), mode="replicate")
    return fitted.reshape(*samples.shape[:-2], *size)
