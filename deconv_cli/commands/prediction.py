"""The predicted error at the prompt: who asks for it, the truth to hold it against, and the files it goes to."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deconv_cli.commands.batch import Job
from deconv_cli.errors import ShapeError, UsageError
from deconv_cli.vocabulary import ROUNDING_NOISE, OutputDType

if TYPE_CHECKING:
    from torch import Tensor

    from deconv_cli.commands.context import Input, OptionValues
    from deconv_cli.io import ImageFile, OutputPlan
    from deconv_cli.solvers.pseudo_inverse import PseudoInverse
    from deconv_cli.workflows.invert import Reconstruction


@dataclass(frozen=True)
class PredictionOptions:
    """What was asked for.

    Attributes:
        truth: file of the true image.
        error_map: file for the predicted error.
        trust_mask: file for the mask.
        sigma: standard deviation of the noise, if it is known.
        seed: of what is drawn.
        is_for_page: a page will show the prediction.
    """

    truth: Path | None
    error_map: Path | None
    trust_mask: Path | None
    sigma: float | None
    seed: int
    is_for_page: bool = False

    @property
    def is_asked_for(self) -> bool:
        """Whether anything needs the prediction."""
        return self.is_for_page or self.is_asked_for_by_files

    @property
    def is_asked_for_by_files(self) -> bool:
        """Whether it is asked for by what a rerun would ask for again: not by a page, which is of this run."""
        return any(path is not None for path in (self.truth, self.error_map, self.trust_mask))

    @property
    def outputs(self) -> list[Path]:
        """The files that will be written."""
        return [path for path in (self.error_map, self.trust_mask) if path is not None]

    def check(self, n_jobs: int) -> None:
        """Refuse files that many inputs would share.

        Raises:
            UsageError: there are several inputs, or two outputs would be the same file.
        """
        named = {"--truth": self.truth, "--error-map": self.error_map, "--trust-mask": self.trust_mask}
        given = [option for option, path in named.items() if path is not None]
        if given and n_jobs != 1:
            raise UsageError(f"{given[0]} belongs to one input, but there are {n_jobs}; restore them one by one.")
        if self.error_map is not None and self.error_map == self.trust_mask:
            raise UsageError("--error-map and --trust-mask name the same file; choose two names.")

    def retyped(self) -> OptionValues:
        """Give the options that would ask for the same again."""
        return {
            "--noise-sigma": self.sigma if self.is_asked_for_by_files else None,
            "--truth": self.truth,
            "--error-map": self.error_map,
            "--trust-mask": self.trust_mask,
            "--seed": self.seed if self.is_asked_for_by_files else None,
        }

    def plan(
        self, job: Job, loaded: Input, n_channels: int, *, same_size: bool, force: bool
    ) -> PlannedPrediction | None:
        """Read the truth, and refuse what cannot be written before anything is computed.

        Returns:
            `None` where nobody asked.

        Raises:
            UsageError: a file that is there already, or that cannot hold what goes into it.
            InputRefusedError: the truth cannot be read.
        """
        from deconv_cli.io import plan_output, read_image
        from deconv_cli.io.formats import codec_of_suffix

        if not self.is_asked_for:
            return None
        if job.target in self.outputs:
            raise UsageError(f"'{job.target}' is the output already; choose another name for what goes beside it.")
        source = loaded.source
        truth = None if self.truth is None else read_image(self.truth, axes=None)

        def planned(path: Path | None, n_channels: int, dtype: OutputDType) -> OutputPlan | None:
            if path is None:
                return None
            return plan_output(
                path, source, n_channels=n_channels, output_dtype=dtype, force=force, same_size=same_size
            )

        if self.error_map is not None and codec_of_suffix(self.error_map).holds_whole_numbers_only:
            raise UsageError(
                f"--error-map holds fractions, which '{self.error_map.name}' cannot; choose a name that ends in "
                ".tif, .npy, .pt or .safetensors."
            )
        if self.trust_mask is not None and not codec_of_suffix(self.trust_mask).is_lossless:
            raise UsageError(
                f"--trust-mask holds 0 and 255 alone, which '{self.trust_mask.name}' would blur; choose .png or .tif."
            )
        error_map = planned(self.error_map, n_channels, OutputDType.FLOAT32)
        mask = planned(self.trust_mask, 1, OutputDType.UINT8)
        return PlannedPrediction(self, rounding_noise(source), truth, error_map, mask)


@dataclass(frozen=True, eq=False)
class PlannedPrediction:
    """A prediction whose files are known to be readable and writable."""

    options: PredictionOptions
    least_sigma: float
    truth: ImageFile | None
    error_map: OutputPlan | None
    mask: OutputPlan | None

    def check_truth(self, shape: tuple[int, ...]) -> None:
        """Refuse a truth of another shape than that of the restored images.

        Args:
            shape: `(B, C, H, W)`.

        Raises:
            ShapeError: it has another one.
        """
        if self.truth is not None and self.truth.values.shape != shape:
            raise ShapeError(
                f"the truth '{self.truth.path}' should have the size and channels of the restored image, "
                f"{_spoken(shape)}, but has {_spoken(tuple(self.truth.values.shape))}; crop it to the same frame."
            )

    def added(
        self, result: Reconstruction, inverse: PseudoInverse, values: Tensor, bias: Tensor | None
    ) -> Reconstruction:
        """Predict the error of a result."""
        from deconv_cli.workflows.predict import predict_for

        predicted = predict_for(
            inverse,
            result,
            values,
            bias=bias,
            noise_sigma=self.options.sigma,
            least_sigma=self.least_sigma,
            truth=None if self.truth is None else self.truth.values,
            seed=self.options.seed,
        )
        return replace(result, predicted_error=predicted)

    def write(self, result: Reconstruction, record: dict[str, Any]) -> None:
        """Write the map and the mask, each with the record of the run."""
        found = result.predicted_error
        assert found is not None
        if self.error_map is not None:
            self.error_map.prepare(found.map.cpu()).write(record)
        if self.mask is not None:
            shape = (result.image.shape[0], 1, *found.trusted.shape)
            self.mask.prepare((255.0 * found.trusted.float()).expand(shape).contiguous().cpu()).write(record)


def rounding_noise(source: ImageFile) -> float:
    """Give the standard deviation of what rounding takes off: samples that are whole numbers have no less noise."""
    return ROUNDING_NOISE if "int" in str(source.dtype) else 0.0


def _spoken(shape: tuple[int, ...]) -> str:
    planes, channels, height, width = shape
    return f"{height}×{width} pixels, {channels} channels" + (f", {planes} planes" if planes != 1 else "")
