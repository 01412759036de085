"""The pseudo-inverse of a convolution: built once for a kernel, a size and a border, applied to many outputs."""

from __future__ import annotations

import warnings
from functools import cached_property

import torch
from torch import Tensor

from deconv_cli.errors import ShapeError, UsageError
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.operators.convolution import Convolution
from deconv_cli.operators.geometry import Geometry
from deconv_cli.operators.spectrum import Spectrum, kernel_spectrum
from deconv_cli.regularizers import is_determined
from deconv_cli.solvers.choice import Choice, choose_method
from deconv_cli.solvers.circular import CircularInverse
from deconv_cli.solvers.direct import DirectInverse
from deconv_cli.solvers.fourier import SingularSystemError
from deconv_cli.solvers.inverse import Inverse
from deconv_cli.solvers.iterative import IterativeInverse
from deconv_cli.solvers.problem import TikhonovProblem
from deconv_cli.solvers.refinement import Progress, StoppingRule
from deconv_cli.solvers.solution import Solution
from deconv_cli.solvers.strip import StripInverse
from deconv_cli.vocabulary import Boundary, Method, Penalty

MAX_ITERATIONS = 2000


class PseudoInverse:
    """The map from outputs of a convolution back to images.

    Args:
        kernel: canonical kernel; its dtype and device are those of the arithmetic.
        geometry: the sizes.
        boundary: what lies outside the image.
        lam: λ in ‖Ax − y‖² + λσ²max‖Lx‖²; 0 for the Moore–Penrose inverse.
        penalty: which L.
        rcond: truncate singular values up to this fraction of the largest; circular and λ = 0 only.
        method: chosen by hand, or left to `choose_method`.
        tolerance: the certificate at which an iteration stops; by default 1e-6 in float32 and 1e-10 in float64.
        max_iterations: iterations at most.

    Raises:
        UsageError: settings that contradict one another.
    """

    def __init__(
        self,
        kernel: Kernel,
        geometry: Geometry,
        boundary: Boundary,
        *,
        lam: float = 0.0,
        penalty: Penalty = Penalty.IDENTITY,
        rcond: float | None = None,
        method: Method = Method.AUTO,
        tolerance: float | None = None,
        max_iterations: int = MAX_ITERATIONS,
    ) -> None:
        _check_settings(lam, rcond, tolerance, max_iterations)
        geometry.check_boundary(boundary)
        self.kernel = kernel
        self.geometry = geometry
        self.choice = choose_method(
            geometry,
            boundary,
            lam=lam,
            penalty=penalty,
            n_outputs=kernel.taps.shape[0],
            n_inputs=kernel.taps.shape[1],
            has_float64=kernel.taps.device.type != "mps",
            asked=method,
        )
        if rcond is not None and (self.choice.method is not Method.FFT or lam > 0):
            raise UsageError(
                "rcond truncates the singular values of a circular convolution with λ = 0, but here "
                f"the boundary is {boundary}, the method {self.choice.method} and λ {lam:g}; use lambda instead."
            )
        if self.choice.method is not Method.FFT and not is_determined(lam, penalty, *kernel.taps.shape[:2]):
            raise UsageError(
                f"penalty {penalty} leaves constant images undetermined where a kernel has fewer outputs "
                f"({kernel.taps.shape[0]}) than inputs ({kernel.taps.shape[1]}); use penalty identity."
            )
        operator = Convolution(kernel.taps, geometry, boundary)
        # Without a penalty nothing is scaled by σmax, and its singular values need not be computed.
        self.problem = TikhonovProblem(operator, lam, self.spectrum.sigma_max if lam > 0 else 1.0, penalty)
        self.tolerance = default_tolerance(kernel.taps.dtype) if tolerance is None else tolerance
        self._inverse = self._build(rcond, StoppingRule(self.tolerance, max_iterations), is_free=method is Method.AUTO)
        inverse = self._inverse
        self.rcond: float | None = inverse.rcond if isinstance(inverse, CircularInverse) and lam == 0 else None

    @cached_property
    def spectrum(self) -> Spectrum:
        """The extreme singular values of the kernel's symbol."""
        return kernel_spectrum(self.kernel.taps, self.geometry.image_size)

    def __call__(self, y: Tensor) -> Tensor:
        """Estimate the images that gave the outputs `y`.

        Args:
            y: shape `(C_out, H_y, W_y)` or `(B, C_out, H_y, W_y)`.

        Returns:
            Shape `(C_in, H, W)` or `(B, C_in, H, W)`.

        Warns:
            RuntimeWarning: an iteration did not reach the tolerance; `solve` tells more.
        """
        if isinstance(self._inverse, CircularInverse):
            return self.frame(self._inverse.apply(self.arrange(y)))
        solution = self.solve(y)
        if not solution.status.is_success:
            warnings.warn(f"{solution.status} (certificate {solution.certificate:.2g})", RuntimeWarning, stacklevel=2)
        return self.frame(solution.value)

    def solve(self, y: Tensor, progress: Progress | None = None) -> Solution:
        """Solve for `y` and keep the outcome; the value is in the operators' arrangement (see `frame`).

        Raises:
            ShapeError: `y` is not an output of this convolution.
            UsageError: `y` has another dtype or device than the arithmetic.
        """
        return self._inverse.solve(self.arrange(y), progress)

    def arrange(self, y: Tensor) -> Tensor:
        """Check outputs and arrange their channels for the operators."""
        if y.dtype != self.kernel.taps.dtype or y.device != self.kernel.taps.device:
            raise UsageError(
                f"this inverse was built for {self.kernel.taps.dtype} on {self.kernel.taps.device}, but the output is "
                f"{y.dtype} on {y.device}; convert one of them."
            )
        arranged = self.kernel.split(y, are_outputs=True)
        if arranged.shape[-2:] != self.geometry.output_size:
            raise ShapeError(
                f"an image of {self.geometry.image_size} gives an output of {self.geometry.output_size}, "
                f"but the output has shape {tuple(y.shape)}."
            )
        return arranged

    def _build(self, rcond: float | None, rule: StoppingRule, *, is_free: bool) -> Inverse:
        """Build the inverse that was chosen; `is_free` lets another take over where the direct one is singular."""
        if self.choice.method is Method.FFT:
            return CircularInverse(self.problem, rcond)
        builders = {Method.STRIP: StripInverse, Method.DIRECT: DirectInverse}
        if self.choice.method in builders:
            try:
                return builders[self.choice.method](self.problem, rule)
            except SingularSystemError as error:
                if not is_free:
                    raise UsageError(
                        f"method {self.choice.method} fails, since {error}; use a larger λ or method auto."
                    ) from error
                self.choice = Choice(Method.ITERATIVE, f"the {self.choice.method} way is barred, since {error}")
        return IterativeInverse(self.problem, rule)

    def frame(self, value: Tensor) -> Tensor:
        """Cut a solution's value to the image's frame and restore its channel axis."""
        return self.kernel.join(self.problem.operator.crop_to_frame(value))


def default_tolerance(dtype: torch.dtype) -> float:
    """Pick the certificate that an iteration of this precision should reach."""
    return 1e-10 if dtype == torch.float64 else 1e-6


def _check_settings(lam: float, rcond: float | None, tolerance: float | None, max_iterations: int) -> None:
    if not 0 <= lam < float("inf"):
        raise UsageError(f"lambda must be zero or a positive number, but is {lam}.")
    if rcond is not None and not 0 <= rcond < 1:
        raise UsageError(f"rcond must be at least 0 and below 1, but is {rcond}.")
    if tolerance is not None and not 0 < tolerance < 1:
        raise UsageError(f"tolerance must be between 0 and 1, but is {tolerance}.")
    if max_iterations < 1:
        raise UsageError(f"max_iterations must be at least 1, but is {max_iterations}.")
