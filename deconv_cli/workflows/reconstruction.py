"""What a reconstruction gives: the estimate, how it was obtained, and how good it is."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from deconv_cli.diagnostics.lambda_choice import LambdaChoice
from deconv_cli.diagnostics.predicted_error import PredictedError
from deconv_cli.diagnostics.residual import BorderBand, ResidualSummary
from deconv_cli.diagnostics.well_posedness import WellPosedness
from deconv_cli.operators.spectrum import Spectrum
from deconv_cli.settings import ResolvedSettings
from deconv_cli.solvers.choice import Choice
from deconv_cli.solvers.solution import Solution
from deconv_cli.vocabulary import PaddingLike
from deconv_cli.workflows.resolution import Reasons


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """An estimate with the solution and the diagnostics.

    Attributes:
        image: the estimate, shape `(C_in, H, W)` or `(B, C_in, H, W)`; differentiable once in data, bias and kernel.
        solution: how the solve ended, and what was minimized; its value may reach beyond the frame.
        settings: what was solved, with nothing left open.
        reasons: why settings that were left open are what they are.
        choice: the method that ran, and why.
        rcond: singular values up to this fraction of the largest were dropped; `None` where nothing was truncated.
        tolerance: the certificate that an iteration had to reach.
        residual: y − Ax̂ in numbers.
        border: the residual by distance from the edge; the last band gathers all that is deeper.
        spectrum: the extreme singular values of the kernel.
        well_posedness: what the border does to the problem; `None` where there is no quadratic penalty.
        lambda_choice: how λ was chosen from the data; `None` where it was given.
        predicted_error: the error to be expected; `None` where it was not asked for.
        notes: what a person should know of how settings were resolved, a sentence each.
        channels: each channel by itself, where they were restored one by one: with a kernel or a λ for each. All else
            is then pooled, or that of the channel that did worst.
    """

    image: Tensor
    solution: Solution
    settings: ResolvedSettings
    reasons: Reasons
    choice: Choice
    rcond: float | None
    tolerance: float
    residual: ResidualSummary
    border: tuple[BorderBand, ...]
    spectrum: Spectrum
    well_posedness: WellPosedness | None
    lambda_choice: LambdaChoice | None = None
    predicted_error: PredictedError | None = None
    notes: tuple[str, ...] = ()
    channels: tuple[Reconstruction, ...] = ()

    @property
    def boundary(self) -> str:
        """What was taken to lie outside the image."""
        return self.settings.boundary

    @property
    def padding(self) -> PaddingLike:
        """How far the kernel reached outside."""
        return self.settings.padding

    @property
    def lam(self) -> float | tuple[float, ...] | None:
        """λ, dimensionless, or that of each channel; `None` where there is no quadratic penalty."""
        if not self.settings.has_lambda:
            return None
        lams = tuple(channel.settings.lam for channel in self.channels)
        return lams if len(set(lams)) > 1 else self.settings.lam

    @property
    def penalty(self) -> str | None:
        """The operator L in λσ²max‖Lx‖²; `None` where there is no quadratic penalty."""
        return self.settings.penalty if self.settings.has_lambda else None

    def raise_for_status(self) -> Reconstruction:
        """Return the reconstruction itself, if the solver reached what was asked for.

        Raises:
            UntrustworthyResultError: it did not.
        """
        self.solution.raise_for_status()
        return self
