"""What restoring a file is, whether by a kernel or by a factor: read, settle what is inverted, solve, report, write."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from deconv_cli.commands.batch import Job, Outcome
from deconv_cli.commands.context import Context, Input, OptionValues
from deconv_cli.commands.prediction import PredictionOptions
from deconv_cli.commands.progress import WorkProgress
from deconv_cli.commands.views import Views
from deconv_cli.parts import BOUNDARIES
from deconv_cli.vocabulary import PaddingLike, parse_padding

if TYPE_CHECKING:
    from torch import Tensor

    from deconv_cli.diagnostics.lambda_choice import LambdaChoice
    from deconv_cli.io import ImageFile
    from deconv_cli.solvers.estimator import Estimator
    from deconv_cli.workflows.diagnose import Diagnosis
    from deconv_cli.workflows.invert import Reconstruction


@dataclass(frozen=True)
class Border:
    """What is taken to lie outside the image, and why."""

    boundary: str
    padding: PaddingLike
    reason: str
    notes: list[str]


@dataclass(frozen=True)
class Posed:
    """What is inverted for one input, and why."""

    border: Border
    penalty: str
    lam: float
    lambda_reason: str
    lambda_choice: LambdaChoice | None = None


class Restorer(ABC):
    """Restores one input after another.

    Args:
        context: kernel, device and files.
        prediction: whether and how to predict the error.
        verbose: tell of every step and iteration.
        quiet: tell of none.
    """

    def __init__(self, context: Context, prediction: PredictionOptions, *, verbose: bool, quiet: bool) -> None:
        self._context = context
        self._prediction = prediction
        self._verbose = verbose
        self._quiet = quiet

    @abstractmethod
    def pose(self, loaded: Input) -> Posed:
        """Settle what is inverted.

        Raises:
            ShapeError: the input does not fit.
        """

    @abstractmethod
    def inverse_for(self, values: Tensor, posed: Posed) -> Estimator:
        """Give the inverse for outputs of shape `(B, C_out, H_y, W_y)`."""

    @abstractmethod
    def retyped(self, posed: Posed, result: Reconstruction) -> OptionValues:
        """Give the options that would make the same inverse again."""

    def restore(self, job: Job, views: Views) -> Outcome:
        """Read, restore and write one file, and show it where it is wanted."""
        with WorkProgress(job.label, verbose=self._verbose, is_silent=self._quiet).shown() as progress:
            loaded, result, record = self._restore(job, views, progress)
        views.draw(loaded, result)
        return Outcome(record, is_trusted=result.solution.status.is_success)

    def _restore(self, job: Job, views: Views, progress: WorkProgress) -> tuple[Input, Reconstruction, dict[str, Any]]:
        """Read, restore and write one file; gives what was read, what became of it, and the record."""
        from deconv_cli.report.record import describe_reconstruction
        from deconv_cli.solvers.pseudo_inverse import PseudoInverse
        from deconv_cli.workflows.invert import reconstruct

        context = self._context
        loaded = context.read(job)
        progress.begin("settling what is inverted")
        posed = self.pose(loaded)
        border, kernel = posed.border, context.kernel
        n_channels = loaded.values.shape[1] if kernel.shared else kernel.taps.shape[1]
        same_size = context.keeps_size(border.padding)
        plan = context.plan(job, loaded, n_channels=n_channels, same_size=same_size)
        prediction = self._prediction.plan(job, loaded, n_channels, same_size=same_size, force=context.files.force)
        progress.begin("building the inverse")
        inverse = self.inverse_for(loaded.values, posed)
        if prediction is not None:
            prediction.check_truth((loaded.values.shape[0], n_channels, *inverse.geometry.image_size))
        bias = context.kernel_file.bias
        progress.begin("restoring", goal=inverse.tolerance, most=inverse.settings.max_iterations)
        result = reconstruct(inverse, loaded.values, bias=bias, progress=progress)
        result = replace(result, lambda_choice=posed.lambda_choice)
        diagnosis: Diagnosis | None = None
        findings: dict[str, Any] = {}
        if isinstance(inverse, PseudoInverse):  # nothing of this is asked of an estimate that is not linear
            if prediction is not None:
                progress.begin("predicting the error")
                result = prediction.added(result, inverse, loaded.values, bias)
            if views.page is not None:
                progress.begin("examining the result")
            diagnosis, findings = views.diagnose(inverse, result, loaded, bias, self._prediction.sigma)
        details: dict[str, Any] = {
            "factor": None if context.factor is None else context.factor.record,
            "boundary": border.boundary,
            "boundary_reason": border.reason,
            **describe_reconstruction(result),
            "lambda_reason": None if result.lam is None else posed.lambda_reason,
            **findings,
            "notes": border.notes,
        }
        progress.begin("writing")
        typed = self.retyped(posed, result)
        record = context.deliver(job, loaded, plan.prepare(result.image.cpu()), details, typed)
        if prediction is not None:
            prediction.write(result, record)
        truth = None if prediction is None or prediction.truth is None else prediction.truth.values
        views.write(record, loaded, result, diagnosis, truth)
        return loaded, result, record


@dataclass(frozen=True)
class RecordedBorder:
    """What `deconv forward` wrote into a file about how it was made."""

    boundary: str
    padding: PaddingLike
    kernel_path: str
    kernel_sha256: str


def recorded_border(source: ImageFile) -> RecordedBorder | None:
    """Read the border from a file's record; `None` if it has none, or if somebody else wrote it."""
    record = source.record
    if record is None or record.get("command") != "forward":
        return None
    try:
        kernel = record["kernel"]
        return RecordedBorder(
            BOUNDARIES.check(record["boundary"]),
            parse_padding(record["padding"]),
            str(kernel["path"]),
            str(kernel["sha256"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
