"""The pseudo-inverse of a convolution: built once for a kernel, a size and a border, applied to many outputs."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from deconv_cli.errors import MalformedInputError, ShapeError, UsageError
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.operators import synchronize
from deconv_cli.operators.boundaries.rule import as_rule
from deconv_cli.operators.circulant import to_float64
from deconv_cli.operators.convolution import Convolution
from deconv_cli.operators.geometry import Geometry
from deconv_cli.regularizers import find_penalty, is_determined
from deconv_cli.settings import ResolvedSettings
from deconv_cli.solvers.choice import Choice, choose_method
from deconv_cli.solvers.circular import CircularInverse
from deconv_cli.solvers.differentiation import attach_gradient
from deconv_cli.solvers.direct import DirectInverse
from deconv_cli.solvers.estimator import Estimator, check_finite, to_unit
from deconv_cli.solvers.factors import Factors
from deconv_cli.solvers.fourier import SingularSystemError
from deconv_cli.solvers.inverse import Inverse
from deconv_cli.solvers.iterative import IterativeInverse
from deconv_cli.solvers.memory import check_memory, estimate_memory
from deconv_cli.solvers.problem import MIN_CONSTANT_GAIN, TikhonovProblem
from deconv_cli.solvers.refinement import Progress, StoppingRule
from deconv_cli.solvers.solution import Solution
from deconv_cli.solvers.state import InverseState, Kept
from deconv_cli.solvers.strip import StripInverse
from deconv_cli.vocabulary import Size


class PseudoInverse(Estimator):
    """The map from outputs of a convolution back to images.

    It is differentiable in the outputs and, if the taps require a gradient, in the taps as they were when it was built.

    Args:
        kernel: canonical kernel; its dtype and device are those of the arithmetic.
        image_size: height and width of the images that are wanted back.
        settings: how to invert.
        kept: what an equal inverse has found already (see `from_state`).

    Attributes:
        geometry: the sizes.
        choice: the method, and why it was taken.
        problem: what is solved.
        tolerance: the certificate at which an iteration stops.
        rcond: singular values up to this fraction of the largest were dropped; `None` where nothing is truncated.

    Raises:
        ShapeError: the kernel does not fit the size.
        UsageError: settings that contradict one another.
        TooLargeError: the method does not fit the memory.
    """

    def __init__(self, kernel: Kernel, image_size: Size, settings: ResolvedSettings, kept: Kept | None = None) -> None:
        lam, penalty, boundary = settings.lam, settings.penalty, as_rule(settings.boundary)
        self.kernel = kernel
        self.settings = settings
        self.lam, self.penalty = lam, penalty
        self.geometry = Geometry.of_image(image_size, kernel.size, settings.padding)
        self.geometry.check_boundary(boundary)
        self.choice = choose_method(
            self.geometry,
            boundary,
            lam=lam,
            penalty=penalty,
            n_outputs=kernel.taps.shape[0],
            n_inputs=kernel.taps.shape[1],
            device=kernel.taps.device,
            asked=settings.method if kept is None else kept.choice.method,
            max_memory=settings.max_memory,
        )
        if kept is not None:
            self.choice = kept.choice
        if settings.rcond is not None and (self.choice.method != "fft" or lam > 0):
            raise UsageError(
                "rcond truncates the singular values of a circular convolution with λ = 0, but here "
                f"the boundary is {boundary.name}, the method {self.choice.method} and λ {lam:g}; use lambda instead."
            )
        if self.choice.method != "fft" and not is_determined(lam, penalty, *kernel.taps.shape[:2]):
            raise UsageError(
                f"penalty {penalty} leaves constant images undetermined where a kernel has fewer outputs "
                f"({kernel.taps.shape[0]}) than inputs ({kernel.taps.shape[1]}); use penalty identity."
            )
        self._check_memory()
        if kept is None:
            self._check_ramps()
        # What is built here serves no graph, and must not change when the caller's taps do.
        taps = kernel.taps.detach().clone()
        self.operator = Convolution.of_geometry(taps, self.geometry, boundary)
        # Without a penalty nothing is scaled by σmax, and its singular values need not be computed.
        sigma_max = kept.sigma_max if kept is not None else self.spectrum.sigma_max if lam > 0 else 1.0
        self.problem = TikhonovProblem(self.operator, lam, sigma_max, penalty)
        self.tolerance = default_tolerance(taps.dtype) if settings.tolerance is None else settings.tolerance
        rule = StoppingRule(self.tolerance, settings.max_iterations)
        self._inverse = self._build(rule) if kept is None else self._recall(rule, kept.factors)
        inverse = self._inverse
        self.rcond = inverse.rcond if isinstance(inverse, CircularInverse) and lam == 0 else None

    @property
    def state(self) -> InverseState:
        """All that makes this inverse what it is, as plain tensors and plain words."""
        kept = Kept(self.choice, self.problem.sigma_max, Factors(self._inverse.factors()))
        taps = self.operator.kernel
        return InverseState(taps, self.kernel.shared, self.geometry.image_size, self.settings, kept)

    @classmethod
    def from_state(cls, state: InverseState) -> PseudoInverse:
        """Build an inverse again, without computing what its state holds; it gives bit for bit what the first one gave.

        Args:
            state: its tensors on the device of the arithmetic.

        Raises:
            MalformedInputError: the state contradicts itself, and no inverse ever gave it.
            TooLargeError: the inverse does not fit the memory.
        """
        try:
            kernel = replace(Kernel.from_tensor(state.taps), shared=state.is_shared)
            if kernel.shared and kernel.taps.shape[:2] != (1, 1):
                raise MalformedInputError(
                    f"its taps of shape {tuple(kernel.taps.shape)} cannot act on every channel alike."
                )
            inverse = cls(kernel, state.image_size, state.settings, state.kept)
        except (UsageError, ShapeError) as error:
            raise MalformedInputError(f"its settings contradict one another: {error}") from error
        unknown = state.kept.factors.tensors.keys() - inverse._inverse.factors().keys()
        if unknown:
            raise MalformedInputError(
                f"method {inverse.choice.method} has no use here for its factors {', '.join(sorted(unknown))}."
            )
        return inverse

    def __call__(self, y: Tensor) -> Tensor:
        """Estimate the images that gave the outputs `y`.

        Args:
            y: shape `(C_out, H_y, W_y)` or `(B, C_out, H_y, W_y)`.

        Returns:
            Shape `(C_in, H, W)` or `(B, C_in, H, W)`; differentiable once in `y` and in the taps.

        Raises:
            ShapeError: `y` is not an output of this convolution.
            UsageError: `y` has another dtype or device than the arithmetic.
            TooLargeError: the batch does not fit the memory.
            MalformedInputError: `y` holds NaN or infinite values.

        Warns:
            RuntimeWarning: an iteration did not reach the tolerance; `solve` tells more.
        """
        if isinstance(self._inverse, CircularInverse):
            arranged = self.arrange(y)
            check_finite(y)
            self._check_memory(math.prod(arranged.shape[:-3]))
            return self.frame(self._attach(self._inverse.apply(arranged.detach()), arranged))
        return self.frame(self.solve(y).warn_for_status().value)

    def solve(self, y: Tensor, progress: Progress | None = None) -> Solution:
        """Solve for `y` and keep the outcome; the value is in the operators' arrangement (see `frame`).

        Raises:
            ShapeError: `y` is not an output of this convolution.
            UsageError: `y` has another dtype or device than the arithmetic.
            TooLargeError: the batch does not fit the memory.
            MalformedInputError: `y` holds NaN or infinite values.
        """
        arranged = self.arrange(y)
        check_finite(y)
        self._check_memory(math.prod(arranged.shape[:-3]))
        data, unit = to_unit(arranged.detach())
        solution = self._inverse.solve(data, progress)
        if unit is not None:
            solution = replace(solution, value=unit * solution.value)
        # Constants that nothing determines are left wherever an iteration started: the least estimate has none.
        seen, _ = self.problem.split_unseen(solution.value)
        value = self._attach(seen, arranged)
        return solution if value is solution.value else replace(solution, value=value)

    def _attach(self, value: Tensor, arranged: Tensor) -> Tensor:
        """Make an estimate differentiable in the arranged outputs and in the taps, where they ask for it."""
        taps = self.kernel.taps
        if self.settings.rcond is not None and taps.requires_grad and torch.is_grad_enabled():
            raise UsageError(
                "an inverse that rcond truncates has no derivative in the kernel here; use lambda instead, "
                "or detach the kernel."
            )
        return attach_gradient(value, arranged, taps, self._inverse, self.spectrum if self.problem.lam > 0 else None)

    def _check_memory(self, n_images: int | None = None) -> None:
        """Refuse to build, or to apply to a batch, what does not fit the memory."""
        taps, method = self.kernel.taps, self.choice.method
        estimate = estimate_memory(method, taps, self.geometry, self.settings)
        limit = self.settings.max_memory
        check_memory(method, estimate, taps, self.geometry, max_memory=limit, n_images=n_images)

    def _check_ramps(self) -> None:
        """Refuse a penalty on curvature with a kernel that annihilates constants: it may annihilate ramps as well."""
        settings, taps = self.settings, self.kernel.taps.detach()
        has_rest = not as_rule(settings.boundary).keeps_constants and any(self.geometry.pads.total)
        if settings.lam == 0 or find_penalty(settings.penalty).penalizes_ramps or has_rest:
            return
        values = torch.linalg.svdvals(to_float64(taps).sum(dim=(-2, -1)))
        is_circular = self.choice.method == "fft"
        if not is_circular and synchronize.as_number(values.min()) <= MIN_CONSTANT_GAIN * synchronize.as_number(
            taps.abs().sum()
        ):
            raise UsageError(
                f"penalty {settings.penalty} leaves images undetermined that change at a constant rate, since the taps "
                "of this kernel sum to zero and it may not see them either; use penalty gradient or identity."
            )

    def _recall(self, rule: StoppingRule, kept: Factors) -> Inverse:
        """Build the inverse that was chosen once, with its factors at hand; the others are cheap to build."""
        try:
            if self.choice.method == "fft":
                return CircularInverse(self.problem, self.settings.rcond, kept)
            if self.choice.method == "direct":
                return DirectInverse(self.problem, rule, kept)
            if self.choice.method == "strip":
                return StripInverse(self.problem, rule)
        except SingularSystemError as error:
            raise MalformedInputError(f"method {self.choice.method} cannot have made it, since {error}.") from error
        return IterativeInverse(self.problem, rule)

    def _build(self, rule: StoppingRule) -> Inverse:
        """Build the inverse that was chosen; where that is singular and nobody asked for it, another takes over."""
        if self.choice.method == "fft":
            return CircularInverse(self.problem, self.settings.rcond)
        builders = {"strip": StripInverse, "direct": DirectInverse}
        if self.choice.method in builders:
            try:
                return builders[self.choice.method](self.problem, rule)
            except SingularSystemError as error:
                if self.settings.method != "auto":
                    raise UsageError(
                        f"method {self.choice.method} fails, since {error}; use a larger λ or method auto."
                    ) from error
                self.choice = Choice("iterative", f"the {self.choice.method} way is barred, since {error}")
        return IterativeInverse(self.problem, rule)


def default_tolerance(dtype: torch.dtype) -> float:
    """Pick the certificate that an iteration of this precision should reach."""
    return 1e-10 if dtype == torch.float64 else 1e-6
