"""Options on inputs that are larger than memory, and the header and kernel of such an input."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from deconv_cli.commands.loaded_kernel import load_kernels
from deconv_cli.commands.microscope_kernel import MICROSCOPE, is_microscope, load_microscope
from deconv_cli.commands.option_groups import FileOptions, KernelOptions, option
from deconv_cli.commands.parallel import LargeInput
from deconv_cli.commands.restoration import choose_kind
from deconv_cli.commands.settings_options import SettingValues
from deconv_cli.errors import DeconvError, UsageError
from deconv_cli.schedulers.scheduler import JobShare
from deconv_cli.settings import ReconstructionSettings

if TYPE_CHECKING:
    from deconv_cli.io.image import ImageFile
    from deconv_cli.io.region_arrays import RegionSource


LARGE = "Large inputs"


@dataclass(frozen=True)
class LargeOptions:
    """How an input is cut that does not fit the memory, or that the user wants in blocks."""

    block_size: Annotated[
        str | None,
        option(
            "--block-size N|D,H,W",
            "Restore the input in blocks of N pixels along each axis of space. Default: the largest blocks that "
            "--max-memory allows, if the whole does not fit it.",
            LARGE,
        ),
    ] = None
    dry_run: Annotated[
        bool,
        option(
            "--dry-run",
            "Print how the input would be cut, with memory, halo, the expected error at the seams and the time; write "
            "nothing.",
            LARGE,
        ),
    ] = False
    block_range: Annotated[
        str | None,
        option(
            "--block-range i/N",
            "Restore the share of job i of N. Jobs may run at any time on any machine that sees the files; the last "
            "job to end completes the result.",
            LARGE,
        ),
    ] = None

    @property
    def is_cut_anyway(self) -> bool:
        """Whether an option was typed that has no use without blocks."""
        return self.block_size is not None or self.dry_run or self.block_range is not None

    def check(self, *, is_possible: bool, is_one: bool) -> None:
        """Refuse by `UsageError` options that need a given kernel or a single input, and a share that is not `i/N`."""
        if self.is_cut_anyway and not is_possible:
            raise UsageError(
                "--block-size, --block-range and --dry-run are for inputs that are restored with a given kernel, "
                "not with --kernel estimate, --factor, --layers or --tap; leave them out, or give the kernel that "
                "deconv kernel estimate finds."
            )
        if self.block_range is not None:
            JobShare.parse(self.block_range)
        if not is_one and (self.dry_run or self.block_range is not None):
            raise UsageError(
                f"{'--dry-run' if self.dry_run else '--block-range'} belongs to one input without a manifest; give its "
                "file alone."
            )


def open_large(
    path: Path,
    kernels: list[Path],
    options: KernelOptions,
    *,
    files: FileOptions,
    settings: SettingValues,
    device: str,
    budget: int,
    is_wanted: bool,
) -> LargeInput | None:
    """Read header and kernel of an input; return `None` if it fits the memory or cannot be cut.

    Restoring the whole may take `budget` bytes. An input that fits is cut too if the user wants blocks.

    Raises:
        UsageError: the user wants blocks, but the input cannot be cut.
    """
    from deconv_cli.blocks.block_problem import is_small, whole_fits
    from deconv_cli.io.regions import open_regions, read_corner

    try:
        source = open_regions(path, axes=files.axes, series=files.series, tensor=files.tensor)
        corner = read_corner(source, are_axes_named=files.axes is not None)
    except DeconvError:
        if is_wanted:
            raise
        return None  # reading the whole says what is wrong
    if not is_wanted and is_small(source.shape, budget):
        return None
    try:
        found = _lay_out(source, corner, kernels, options, settings)
        found = replace(found, problem=replace(found.problem, device=device))
    except UsageError:
        if is_wanted:
            raise
        return None  # it may fit as a whole
    if not is_wanted and whole_fits(found.problem, budget):
        return None
    return found


def _lay_out(
    source: RegionSource, corner: ImageFile, kernels: list[Path], options: KernelOptions, given: SettingValues
) -> LargeInput:
    from deconv_cli.blocks.invert_blocks import lay_out_problem
    from deconv_cli.io.regions import read_spread
    from deconv_cli.workflows.resolution import InputMetadata

    whole = tuple(source.shape[corner.axes.index(letter)] for letter in "ZYX" if letter in corner.axes)
    if is_microscope(kernels, options):
        is_exact, axes = given.get("method") != "richardson-lucy", given.get("dimensions")
        loaded = load_microscope(str(kernels[0]), corner, axes, whole, given.get("spacing"), is_compact=is_exact)
    else:
        loaded = load_kernels(kernels, options, given.get("dimensions"), lambda: corner, [MICROSCOPE])
    corner = loaded.arrange(corner)
    loaded.refuse_for(corner, whole)
    kind, why = choose_kind(corner, partial(read_spread, source), loaded, given)
    settings = ReconstructionSettings.trusted(**{"defaults": kind} | given)
    problem = lay_out_problem(
        source,
        corner,
        loaded.taps,
        settings,
        bias=loaded.bias,
        metadata=InputMetadata(recorded=loaded.recorded, kernel_sha256=loaded.source.sha256),
    )
    return LargeInput(source, corner, loaded, problem, why)
