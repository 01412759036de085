"""Restoring by a kernel: border, λ and penalty are as typed, else as recorded in the input, else by its kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from deconv_cli.commands.beyond import BeyondOptions
from deconv_cli.commands.context import Context, Input, OptionValues
from deconv_cli.commands.prediction import PredictionOptions, rounding_noise
from deconv_cli.commands.restorer import Border, Posed, Restorer, recorded_border
from deconv_cli.errors import UsageError
from deconv_cli.vocabulary import AUTO, LambdaRule, PaddingLike, format_padding

if TYPE_CHECKING:
    from torch import Tensor

    from deconv_cli.diagnostics.lambda_choice import LambdaChoice
    from deconv_cli.io import ImageFile
    from deconv_cli.kernels.kernel import Kernel
    from deconv_cli.solvers.estimator import Estimator
    from deconv_cli.solvers.pseudo_inverse import PseudoInverse
    from deconv_cli.workflows.invert import Reconstruction

PICTURE_PENALTY = "gradient"
"""For pictures, which are noisy and mostly smooth. A penalty on the pixels themselves would pull what lies outside the
frame to black, and show it as bright lines along the edges."""


@dataclass(frozen=True)
class InversionOptions:
    """How to invert, as typed; `None` where the input decides."""

    padding: PaddingLike | None
    boundary: str
    lam: float | Literal["auto"] | None
    lambda_rule: LambdaRule | None
    noise_sigma: float | None
    penalty: str | None
    rcond: float | None
    method: str
    tolerance: float | None
    max_iterations: int
    max_memory: int | None
    verbose: bool
    quiet: bool
    beyond: BeyondOptions


class KernelRestorer(Restorer):
    """Builds the inverse anew only where size or border differ."""

    def __init__(self, context: Context, settings: InversionOptions, prediction: PredictionOptions) -> None:
        super().__init__(context, prediction, verbose=settings.verbose, quiet=settings.quiet)
        self._settings = settings
        wishes, method = settings.beyond.wishes, settings.method
        lam = settings.lambda_rule if settings.lam is None else settings.lam
        wishes.check(method, lam=lam, penalty=settings.penalty, rcond=settings.rcond)
        wishes.check_prediction(method, is_asked_for=prediction.is_asked_for)
        self._built_for: tuple[Any, ...] = ()
        self._inverse: PseudoInverse | None = None

    def pose(self, loaded: Input) -> Posed:
        """Settle what is inverted."""
        from deconv_cli.workflows.invert import DEFAULT_LAMBDA

        source, settings = loaded.source, self._settings
        border = resolve_border(source, settings, self._context.kernel_file.sha256)
        penalty = resolve_penalty(source, settings, self._context.kernel)
        if not settings.beyond.wishes.has_lambda(settings.method):
            return Posed(border, penalty, DEFAULT_LAMBDA, "of no use")
        lam, reason = resolve_lambda(source, settings)
        if lam != AUTO:
            if settings.noise_sigma is not None and not self._prediction.is_asked_for:
                raise UsageError(
                    f"--noise-sigma helps to choose λ or to predict the error, but λ is {lam:g} here ({reason}) and no "
                    "prediction is asked for; leave it out, or pass --lambda auto or --trust-mask."
                )
            if settings.lambda_rule is not None:
                raise UsageError(f"--lambda-rule chooses λ, but λ is {lam:g} here ({reason}); pass --lambda auto.")
            return Posed(border, penalty, lam, reason)
        choice = self._choose(loaded, border, penalty)
        return Posed(border, penalty, choice.lam, choice.reason, choice)

    def _choose(self, loaded: Input, border: Border, penalty: str) -> LambdaChoice:
        from deconv_cli.settings import ResolvedSettings
        from deconv_cli.workflows.invert import choose_for_output

        settings, kernel_file = self._settings, self._context.kernel_file
        return choose_for_output(
            loaded.values,
            kernel_file.kernel,
            ResolvedSettings(
                padding=border.padding,
                boundary=border.boundary,
                penalty=penalty,
                rcond=settings.rcond,
                max_memory=settings.max_memory,
            ),
            settings.lambda_rule or LambdaRule.GCV,
            settings.noise_sigma,
            least_sigma=rounding_noise(loaded.source),
            bias=kernel_file.bias,
        )

    def inverse_for(self, values: Tensor, posed: Posed) -> Estimator:
        """Build the inverse, or take the last one if it fits; what depends on the data is built for each."""
        from deconv_cli.settings import ResolvedSettings
        from deconv_cli.workflows.invert import estimator_for_output, inverse_for_output

        wanted = (
            values.shape[-2:],
            values.dtype,
            posed.border.padding,
            posed.border.boundary,
            posed.lam,
            posed.penalty,
        )
        if self._inverse is None or self._built_for != wanted:
            self._inverse = None  # the old one's memory first
            settings = ResolvedSettings(
                padding=posed.border.padding,
                boundary=posed.border.boundary,
                lam=posed.lam,
                penalty=posed.penalty,
                rcond=self._settings.rcond,
                method=self._settings.method,
                tolerance=self._settings.tolerance,
                max_iterations=self._settings.max_iterations,
                max_memory=self._settings.max_memory,
            )
            kernel, beyond = self._context.kernel_file, self._settings.beyond
            if not beyond.wishes.are_linear(self._settings.method):
                return estimator_for_output(values, kernel.kernel, settings, beyond.wishes, kernel.bias)
            self._inverse = inverse_for_output(values, kernel.kernel, settings)
            self._built_for = wanted
        return self._inverse

    def retyped(self, posed: Posed, result: Reconstruction) -> OptionValues:
        """Give the options that make the same inverse again."""
        settings = self._settings
        return {
            "--boundary": posed.border.boundary,
            "--padding": format_padding(posed.border.padding),
            "--lambda": repr(posed.lam),
            "--penalty": posed.penalty,
            "--rcond": settings.rcond,
            "--method": result.choice.method,
            "--tolerance": result.tolerance,
            "--max-iterations": settings.max_iterations,
            "--max-memory": settings.max_memory,
            **settings.beyond.retyped(settings.method),
            **self._prediction.retyped(),
        }


def resolve_border(source: ImageFile, settings: InversionOptions, kernel_sha256: str) -> Border:
    """Settle the boundary and the padding: as typed, else as recorded in the file, else by the kind of file."""
    recorded = recorded_border(source)
    padding = settings.padding
    if padding is None:
        padding = "same" if recorded is None else recorded.padding
    if settings.boundary != "auto":
        return Border(settings.boundary, padding, "asked for", [])
    if recorded is None:
        if source.is_picture:
            return Border("unknown", padding, "a picture shows part of a larger scene", [])
        return Border("zero", padding, "layers of networks pad their tensors with zeros", [])
    notes = []
    if recorded.kernel_sha256 != kernel_sha256:
        notes.append(
            f"deconv forward made this file with another kernel file, '{recorded.kernel_path}'; "
            "make sure that this one holds the same taps"
        )
    return Border(recorded.boundary, padding, "recorded in the file by deconv forward", notes)


def resolve_penalty(source: ImageFile, settings: InversionOptions, kernel: Kernel) -> str:
    """Settle the penalty: as typed, else by the kind of file, as far as the kernel allows it."""
    if settings.penalty is not None:
        return settings.penalty
    n_outputs, n_inputs = kernel.taps.shape[:2]
    return PICTURE_PENALTY if source.is_picture and n_outputs >= n_inputs else "identity"


def resolve_lambda(source: ImageFile, settings: InversionOptions) -> tuple[float | Literal["auto"], str]:
    """Settle λ: as typed, else by the kind of file."""
    from deconv_cli.workflows.invert import DEFAULT_LAMBDA

    if settings.lam is not None:
        return settings.lam, "asked for"
    if settings.rcond is not None:
        return 0.0, "rcond truncates instead"
    if settings.lambda_rule is not None or source.is_picture:
        return AUTO, "chosen from the data"
    return DEFAULT_LAMBDA, "default for tensors"
