"""What every command that turns files into files does alike: read, plan, describe, write."""

from __future__ import annotations

import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deconv_cli.commands.loaded_kernel import LoadedKernel
from deconv_cli.commands.option_groups import FileOptions, OptionValues
from deconv_cli.layer_options import PLAIN, LayerOptions
from deconv_cli.vocabulary import DeviceChoice, PaddingLike, format_spacing

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from deconv_cli.commands.job import Job, Source
    from deconv_cli.io import ImageFile, OutputPlan, PreparedOutput
    from deconv_cli.report.run import Environment, InputFile, OutputFile

SAME_SPACING = 0.01
"""Distances of taps and of samples are the same up to this share."""


@dataclass(frozen=True, eq=False)
class LoadedInput:
    """An input as read.

    Attributes:
        image: the file.
        values: its samples on the device of the arithmetic, shape `(B, C, *size)` with the axes that the kernel spans.
        started: when work on it began, in seconds of the performance counter, the time of reading counted.
    """

    image: ImageFile
    values: Tensor
    started: float

    def describe(self, path: Path) -> InputFile:
        """Describe the file."""
        from deconv_cli.io.files import spelled
        from deconv_cli.report.run import InputFile

        image = self.image
        return InputFile(
            spelled(path), image.shape, image.axes, image.dtype, image.sha256, image.is_picture, image.spacing
        )


@dataclass(frozen=True, eq=False)
class Context:
    """The kernel, the device, and the options on files that all inputs of a run share."""

    command: str
    loaded: LoadedKernel
    files: FileOptions
    device: torch.device

    def load(self, source: Source) -> LoadedInput:
        """Take an input, with the axes that the kernel spans, to where the arithmetic is."""
        image = source.image.spanned_by(self.loaded.kernel.n_axes, self.loaded.image_dimensions)
        return load(source, image, self.device)

    def keeps_size(self, padding: PaddingLike, layer: LayerOptions = PLAIN) -> bool:
        """Tell whether image and output have the same size."""
        if not layer.is_plain:
            return False
        from deconv_cli.operators.geometry import resolve_padding

        size = self.loaded.kernel.size
        return resolve_padding(padding, size).total == tuple(n - 1 for n in size)

    def plan(self, job: Job, loaded: LoadedInput, *, n_channels: int, same_size: bool) -> OutputPlan:
        """Make sure that the output can be written, before anything is computed."""
        from deconv_cli.io import plan_output

        return plan_output(
            job.target,
            loaded.image,
            n_channels=n_channels,
            output_dtype=self.files.output_dtype,
            force=self.files.force or job.replaces,
            same_size=same_size,
            make_folder=job.make_folder,
            n_levels=self.files.pyramid,
        )

    def notes(self, loaded: LoadedInput, prepared: PreparedOutput, *more: str) -> tuple[str, ...]:
        """Gather what was done on the way, in order."""
        of_picture = self.loaded.picture_notes if loaded.image.is_picture else ()
        of_picture = () if self.loaded.is_kernel_of(loaded.image) else of_picture
        doubts = _spacing_notes(self.loaded.spacing, loaded.image.spacing)
        return (*self.loaded.notes, *of_picture, *doubts, *loaded.image.notes, *more, *prepared.notes)


def load(source: Source, image: ImageFile, device: torch.device) -> LoadedInput:
    """Take an input to where the arithmetic is.

    Args:
        source: the input as it was read.
        image: the same, as its axes were arranged.
        device: where the arithmetic is.
    """
    return LoadedInput(image, image.values.to(device), time.perf_counter() - source.seconds)


def _spacing_notes(taps: tuple[float, ...] | None, samples: tuple[float, ...] | None) -> tuple[str, ...]:
    """Say so where a kernel was taken at other distances than the image has."""
    if taps is None or samples is None or len(taps) != len(samples):
        return ()
    if all(abs(a / b - 1) <= SAME_SPACING for a, b in zip(taps, samples, strict=True)):
        return ()
    return (
        f"the taps of the kernel lie {format_spacing(taps)} apart, but the samples of the image "
        f"{format_spacing(samples)}; each tap was taken for one sample, so give a kernel of the image's distances, or "
        "correct what one of the two files says",
    )


def describe_output(path: Path, prepared: PreparedOutput) -> OutputFile:
    """Describe what is written."""
    from deconv_cli.io.files import spelled
    from deconv_cli.report.run import OutputFile

    return OutputFile(spelled(path), tuple(prepared.shape), prepared.axes, prepared.dtype, prepared.samples_sha256)


def environment_of(device: torch.device, dtype: torch.dtype, started: float) -> Environment:
    """Describe what a result was computed with, up to now."""
    from deconv_cli.allocator import peak_memory_bytes
    from deconv_cli.report.run import Environment

    name = str(dtype).removeprefix("torch.")
    return Environment(str(device), name, peak_memory_bytes(), time.perf_counter() - started)


def rerun_line(
    command: str,
    source: Path | None,
    options: OptionValues,
    *,
    device: str,
    output: Path | str,
    files: FileOptions | None = None,
    output_dtype: str | None = None,
) -> str:
    """Write the command line that gives the same samples again, as a shell would read it.

    Args:
        command: its name.
        source: the input; `None` if the command has none.
        options: the options of the kernel and of this command.
        device: type of the device of the arithmetic.
        output: where the result is written.
        files: how the input was read.
        output_dtype: sample type of the output.
    """
    from deconv_cli.io.files import spelled

    values: OptionValues = {
        **options,
        **({} if files is None else files.as_options()),
        "--device": device,
        "--output-dtype": output_dtype,
        "--output": spelled(Path(output)),
        "--force": True,
    }
    words = ["deconv", command]
    for option, value in values.items():
        if value is None or value is False:
            continue
        # One word, so that a value that begins with a dash is not taken for an option.
        for one in value if isinstance(value, list) else [value]:
            words.append(option if one is True else f"{option}={one}")
    return shlex.join(words if source is None else [*words, "--", spelled(source)])


def pick(device: DeviceChoice) -> torch.device:
    """Find the device that was chosen."""
    from deconv_cli.workflows.arithmetic import pick_device

    return pick_device(device)
