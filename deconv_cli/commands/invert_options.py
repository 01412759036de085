"""The options of `deconv invert` that every way to restore needs, and the files it writes besides the estimate."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deconv_cli.commands.option_groups import (
    LargeOptions,
    OptionValues,
    PrintOptions,
    WorkOptions,
    given_options,
    optional,
)
from deconv_cli.commands.settings_options import ERROR, SettingValues
from deconv_cli.commands.work import Job, Work
from deconv_cli.errors import UsageError
from deconv_cli.vocabulary import OutputDType

if TYPE_CHECKING:
    from torch import Tensor

    from deconv_cli.io import ImageFile, OutputPlan
    from deconv_cli.report.run import InvertRun
    from deconv_cli.settings import ReconstructionSettings


@dataclass(frozen=True)
class ExtraOutputs:
    """Files of `deconv invert` besides the estimate; `None` for options that were not given."""

    report: Path | None = optional(
        "--report FILE.html", "Write a page with the result, the choice of λ, and a map of where to trust the result."
    )
    truth: Path | None = optional(
        "--truth FILE",
        "The true image; deconv compares the estimate and the predicted error with it. Not in blocks.",
        ERROR,
    )
    error_map: Path | None = optional("--error-map FILE", "Write the predicted error of every pixel.", ERROR)
    trust_mask: Path | None = optional(
        "--trust-mask FILE",
        "Write a mask: 255 where you can trust the result (little of the error comes from outside the frame, and the "
        "error is below the contrast), 0 elsewhere.",
        ERROR,
    )

    def need_prediction(self, settings: ReconstructionSettings) -> bool:
        """Return whether the error has to be predicted; a page or a truth does without it if it cannot be."""
        is_shown = self.report is not None or self.truth is not None
        return self.needs_map or (is_shown and settings.predicts)

    @property
    def needs_map(self) -> bool:
        """Whether a file is made of the predicted error."""
        return self.error_map is not None or self.trust_mask is not None

    def notes(self, settings: ReconstructionSettings) -> tuple[str, ...]:
        """Say why a page shows no expected error, if so."""
        if self.report is None or settings.predicts:
            return ()
        return (f"{settings.objective_name} predicts no error, so the page shows none",)

    @property
    def kept_options(self) -> OptionValues:
        """The options that a rerun gets, which all need the predicted error; it writes no page again."""
        return {name: path for name, path in given_options(self).items() if name != "--report"}

    def check(self, jobs: list[Job], *, force: bool) -> None:
        """Check that there is one input and that the files can be written, before anything is computed.

        Raises:
            UsageError: there are several inputs, or a file cannot hold its content.
            FileAccessError: no permission.
        """
        from deconv_cli.io.codec import codec_of_suffix

        given = list(given_options(self))
        if given and len(jobs) != 1:
            raise UsageError(f"{given[0]} is for one input, but there are {len(jobs)}; restore them one at a time.")
        if self.error_map is not None and codec_of_suffix(self.error_map).holds_whole_numbers_only:
            raise UsageError(
                f"--error-map writes fractions, which the format of '{self.error_map.name}' cannot hold; choose a "
                "name that ends in .tif, .npy, .pt or .safetensors."
            )
        if self.trust_mask is not None and not codec_of_suffix(self.trust_mask).is_lossless:
            raise UsageError(
                f"--trust-mask writes only 0 and 255, which the compression of '{self.trust_mask.name}' would blur; "
                "choose .png or .tif."
            )
        if self.report is not None:
            from deconv_cli.io.atomic import check_page_path

            check_page_path(self.report, jobs[0].source, force=force)

    def plan(self, image: ImageFile, n_channels: int, *, force: bool) -> PlannedOutputs:
        """Read the truth, and check that the files can be written, before anything is computed.

        Raises:
            UsageError: a file exists already, or cannot hold its content.
            InputRefusedError: the truth cannot be read.
        """
        from deconv_cli.io import plan_output, read_image

        def planned(path: Path | None, n_channels: int, dtype: OutputDType) -> OutputPlan | None:
            if path is None:
                return None
            return plan_output(path, image, n_channels=n_channels, output_dtype=dtype, force=force)

        return PlannedOutputs(
            page=self.report,
            truth=None if self.truth is None else read_image(self.truth).spanned_by(image.dimensions).values,
            error_map=planned(self.error_map, n_channels, OutputDType.FLOAT32),
            trust_mask=planned(self.trust_mask, 1, OutputDType.UINT8),
        )


NO_EXTRAS = ExtraOutputs()


@dataclass(frozen=True, eq=False)
class PlannedOutputs:
    """The same files, known to be readable and writable."""

    page: Path | None
    truth: Tensor | None
    error_map: OutputPlan | None
    trust_mask: OutputPlan | None

    def write(self, run: InvertRun, record: dict[str, Any], values: Tensor) -> None:
        """Write the map and the mask, each with the record of the run, and the page."""
        result = run.reconstruction
        predicted = result.predicted_error
        # The record's entry on the output is about the estimate.
        record = {name: value for name, value in record.items() if name != "output"}
        if self.error_map is not None and predicted is not None:
            self.error_map.prepare(predicted.map.cpu()).write(record)
        if self.trust_mask is not None and predicted is not None:
            shape = (result.image.shape[0], 1, *predicted.trusted.shape)
            mask = (255.0 * predicted.trusted.float()).expand(shape).contiguous()
            self.trust_mask.prepare(mask.cpu()).write(record)
        if self.page is not None:
            from deconv_cli.io.atomic import write_page
            from deconv_cli.report.page import render_page

            write_page(self.page, render_page(run, values.to(result.image.dtype), self.truth))


@dataclass(frozen=True, kw_only=True)
class InvertOptions(Work):
    """The options of `deconv invert`.

    `resumes` says whether to continue an unfinished run over blocks, and `forgets` whether force removes another one.
    The workers restore the blocks of an input; by default they are threads. `n_sharing` processes share the memory.
    """

    settings: SettingValues
    extra: ExtraOutputs
    printed: PrintOptions
    large: LargeOptions
    workers: WorkOptions
    resumes: bool
    forgets: bool = True
    n_sharing: int = 1

    command = "invert"

    def memory(self) -> int:
        """Return the memory in bytes that all inputs in work may take together."""
        return self.settings.get("max_memory") or super().memory()

    @property
    def budget(self) -> int:
        """The memory in bytes for the images of one input and solving."""
        from deconv_cli.blocks.block_problem import default_memory

        return self.settings.get("max_memory") or default_memory() // self.n_sharing
