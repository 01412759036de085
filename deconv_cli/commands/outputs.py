"""What `deconv invert` writes besides the estimate: a page, the predicted error, and where to trust the result."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deconv_cli.commands.job import Job
from deconv_cli.errors import UsageError
from deconv_cli.vocabulary import OutputDType

if TYPE_CHECKING:
    from torch import Tensor

    from deconv_cli.commands.context import LoadedInput
    from deconv_cli.io import OutputPlan
    from deconv_cli.report.run import InvertRun


@dataclass(frozen=True)
class ExtraOutputs:
    """What was asked for besides the estimate; `None` for what was not.

    Attributes:
        page: the HTML file of a report.
        truth: file of the true image, which the prediction is compared with.
        error_map: file for the predicted error.
        trust_mask: file for the mask.
    """

    page: Path | None
    truth: Path | None
    error_map: Path | None
    trust_mask: Path | None

    @property
    def need_prediction(self) -> bool:
        """Whether the error has to be predicted."""
        return self.page is not None or self.is_prediction_kept

    @property
    def is_prediction_kept(self) -> bool:
        """Whether a rerun has to predict the error too: not for a page, which is of this run alone."""
        return any(path is not None for path in (self.truth, self.error_map, self.trust_mask))

    @property
    def paths(self) -> list[Path]:
        """The files that will be written."""
        return [path for path in (self.error_map, self.trust_mask, self.page) if path is not None]

    def as_options(self) -> dict[str, object]:
        """Give the options that a rerun would be given again."""
        return {"--truth": self.truth, "--error-map": self.error_map, "--trust-mask": self.trust_mask}

    def check(self, jobs: list[Job], *, force: bool) -> None:
        """Make sure that one input owns these files and that the page can be written, before anything is computed.

        Raises:
            UsageError: there are several inputs, or one of the files cannot hold what goes into it.
            FileAccessError: no permission.
        """
        from deconv_cli.io.codec import codec_of_suffix

        named = {"--report": self.page, **self.as_options()}
        given = [option for option, path in named.items() if path is not None]
        if given and len(jobs) != 1:
            raise UsageError(f"{given[0]} belongs to one input, but there are {len(jobs)}; restore them one by one.")
        if self.error_map is not None and codec_of_suffix(self.error_map).holds_whole_numbers_only:
            raise UsageError(
                f"--error-map holds fractions, which '{self.error_map.name}' cannot; choose a name that ends in "
                ".tif, .npy, .pt or .safetensors."
            )
        if self.trust_mask is not None and not codec_of_suffix(self.trust_mask).is_lossless:
            raise UsageError(
                f"--trust-mask holds 0 and 255 alone, which '{self.trust_mask.name}' would blur; choose .png or .tif."
            )
        if self.page is not None:
            from deconv_cli.io.atomic import check_page_path

            check_page_path(self.page, jobs[0].source, force=force)

    def plan(self, loaded: LoadedInput, n_channels: int, *, same_size: bool, force: bool) -> PlannedOutputs:
        """Read the truth, and refuse what cannot be written before anything is computed.

        Raises:
            UsageError: a file that exists already, or that cannot hold what goes into it.
            InputRefusedError: the truth cannot be read.
        """
        from deconv_cli.io import plan_output, read_image

        def planned(path: Path | None, n_channels: int, dtype: OutputDType) -> OutputPlan | None:
            if path is None:
                return None
            return plan_output(
                path, loaded.image, n_channels=n_channels, output_dtype=dtype, force=force, same_size=same_size
            )

        return PlannedOutputs(
            page=self.page,
            truth=None if self.truth is None else read_image(self.truth).spanned_by(loaded.image.dimensions).values,
            error_map=planned(self.error_map, n_channels, OutputDType.FLOAT32),
            trust_mask=planned(self.trust_mask, 1, OutputDType.UINT8),
        )


@dataclass(frozen=True, eq=False)
class PlannedOutputs:
    """The same, with files that are known to be readable and writable."""

    page: Path | None
    truth: Tensor | None
    error_map: OutputPlan | None
    trust_mask: OutputPlan | None

    def write(self, run: InvertRun, record: dict[str, Any], values: Tensor) -> None:
        """Write the map and the mask, each with the record of the run, and the page."""
        result = run.reconstruction
        predicted = result.predicted_error
        # What the record says of the output is true of the estimate alone.
        record = {name: value for name, value in record.items() if name != "output"}
        if self.error_map is not None and predicted is not None:
            self.error_map.prepare(predicted.map.cpu()).write(record)
        if self.trust_mask is not None and predicted is not None:
            shape = (result.image.shape[0], 1, *predicted.trusted.shape)
            mask = (255.0 * predicted.trusted.float()).expand(shape).contiguous()
            self.trust_mask.prepare(mask.cpu()).write(record)
        if self.page is not None:
            self._write_page(self.page, run, values)

    def _write_page(self, page: Path, run: InvertRun, values: Tensor) -> None:
        from deconv_cli.io.atomic import write_page
        from deconv_cli.report.page import render_page

        write_page(page, render_page(run, values.to(run.reconstruction.image.dtype), self.truth))
