"""What a person can look at besides the output file: a page, and the picture in the terminal."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deconv_cli.commands.batch import Job
from deconv_cli.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from deconv_cli.commands.context import Input
    from deconv_cli.solvers.pseudo_inverse import PseudoInverse
    from deconv_cli.workflows.diagnose import Diagnosis
    from deconv_cli.workflows.invert import Reconstruction


@dataclass(frozen=True)
class Views:
    """Where a result is shown.

    Attributes:
        page: the HTML file to write.
        force: an existing page is replaced.
        show: draw the result in the terminal.
    """

    page: Path | None = None
    force: bool = False
    show: bool = False

    @property
    def outputs(self) -> list[Path]:
        """The files that will be written."""
        return [] if self.page is None else [self.page]

    def check(self, jobs: list[Job]) -> None:
        """Make sure that the page can be written, before anything is computed.

        Raises:
            UsageError: several inputs for one page, or a place where it cannot be.
            FileAccessError: no permission.
        """
        if self.page is None:
            return
        from deconv_cli.io.pages import check_page_path

        if len(jobs) > 1:
            raise UsageError(f"--report makes the page of one input, but {len(jobs)} were given; run them one by one.")
        if self.page.absolute() == jobs[0].target.absolute():
            raise UsageError(f"page and output would be the same file, '{self.page}'; choose another name for one.")
        check_page_path(self.page, jobs[0].source, force=self.force)

    def diagnose(
        self, inverse: PseudoInverse, result: Reconstruction, loaded: Input, bias: Tensor | None, noise: float | None
    ) -> tuple[Diagnosis | None, dict[str, Any]]:
        """Examine a restoration if a page is to tell of it; give the findings, and what the record tells of them."""
        if self.page is None:
            return None, {}
        from deconv_cli.report.diagnosis import describe_diagnosis
        from deconv_cli.workflows.diagnose import diagnose

        found = diagnose(inverse, result, loaded.values, bias=bias, noise=noise)
        return found, {"diagnosis": describe_diagnosis(found)}

    def write(
        self,
        record: dict[str, Any],
        loaded: Input,
        result: Reconstruction,
        diagnosis: Diagnosis | None,
        truth: Tensor | None,
    ) -> None:
        """Write the page, if there is to be one."""
        if diagnosis is not None and self.page is not None:
            from deconv_cli.io.pages import write_page
            from deconv_cli.report.page import ReportContents, render_page

            contents = ReportContents(
                record=record,
                data=loaded.values,
                estimate=result.image,
                diagnosis=diagnosis,
                is_picture=loaded.source.is_picture,
                lambda_choice=result.lambda_choice,
                predicted_error=result.predicted_error,
                truth=truth,
            )
            write_page(self.page, render_page(contents))

    def draw(self, loaded: Input, result: Reconstruction) -> None:
        """Draw the picture in the terminal, if it is wanted there."""
        if self.show:
            from deconv_cli.commands.terminal_picture import show_picture

            show_picture(result.image, is_color=loaded.source.is_picture)
