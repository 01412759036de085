"""What every command that turns files into files does alike: read, plan, describe, write."""

from __future__ import annotations

import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deconv_cli.vocabulary import ArithmeticDType, Convention, DeviceChoice, OutputDType, PaddingLike

if TYPE_CHECKING:
    import torch

    from deconv_cli.commands.batch import Job
    from deconv_cli.io import ImageFile, OutputPlan, PreparedOutput
    from deconv_cli.kernels.kernel import Kernel
    from deconv_cli.models.kernel_files import KernelFile
    from deconv_cli.solvers.pseudo_inverse import PseudoInverse

OptionValues = dict[str, Any]
"""Options as they would be typed; `None` and `False` are left out, `True` is a bare flag."""


@dataclass(frozen=True)
class KernelOptions:
    """How to read the kernel's file."""

    path: Path
    layer: str | None
    convention: Convention | None
    normalize: bool | None


@dataclass(frozen=True)
class FileOptions:
    """How to read the inputs, and how to write the outputs."""

    axes: str | None
    tensor: str | None
    series: int | None
    output_dtype: OutputDType | None
    force: bool


@dataclass(frozen=True)
class FactorFile:
    """A saved inverse as read."""

    path: Path
    sha256: str
    inverse: PseudoInverse

    @property
    def record(self) -> dict[str, Any]:
        """What the report tells of it."""
        return {"path": str(self.path), "sha256": self.sha256}


@dataclass(frozen=True)
class Context:
    """A loaded kernel, a device, and the options that all commands share; the kernel may have come with a factor."""

    command: str
    kernel_options: KernelOptions
    kernel_file: KernelFile
    kernel: Kernel
    files: FileOptions
    device: torch.device
    dtype: ArithmeticDType | None
    factor: FactorFile | None = None

    @classmethod
    def open(
        cls,
        command: str,
        kernel_options: KernelOptions,
        files: FileOptions,
        device: DeviceChoice,
        dtype: ArithmeticDType | None,
    ) -> Context:
        """Find the device and read the kernel."""
        from deconv_cli.kernels.kernel import Kernel
        from deconv_cli.models.kernel_files import read_kernel
        from deconv_cli.workflows.arithmetic import pick_device

        where = pick_device(device)
        kernel_file = read_kernel(
            kernel_options.path,
            layer=kernel_options.layer,
            convention=kernel_options.convention,
            normalize=kernel_options.normalize,
        )
        kernel = Kernel.from_tensor(kernel_file.kernel)
        return cls(command, kernel_options, kernel_file, kernel, files, where, dtype)

    @classmethod
    def open_factor(
        cls, command: str, path: Path, files: FileOptions, device: DeviceChoice, max_memory: int | None
    ) -> tuple[Context, FactorFile]:
        """Find the device and read a saved inverse, whose kernel takes the place of a kernel's file."""
        from deconv_cli.io import fingerprint
        from deconv_cli.models.kernel_files import KernelFile
        from deconv_cli.saved_inverses import KernelOrigin, read_inverse
        from deconv_cli.workflows.arithmetic import pick_device

        where = pick_device(device)
        saved = read_inverse(path, where, max_memory)
        kernel = saved.inverse.kernel
        # Saved from Python, it tells of no file, and so of no fingerprint.
        origin = saved.origin or KernelOrigin(str(path), None, Convention.CORRELATION, "", ())
        kernel_file = KernelFile(
            Path(origin.path), kernel.taps, saved.bias, origin.layer, origin.convention, origin.sha256, origin.notes
        )
        kernel_options = KernelOptions(kernel_file.path, origin.layer, origin.convention, None)
        factor = FactorFile(path, fingerprint(path), saved.inverse)
        dtype = ArithmeticDType(str(kernel.taps.dtype).removeprefix("torch."))
        return cls(command, kernel_options, kernel_file, kernel, files, where, dtype, factor), factor

    def read(self, job: Job) -> Input:
        """Read the input of a job."""
        from deconv_cli.io import read_image
        from deconv_cli.workflows.arithmetic import pick_dtype

        started = time.perf_counter()
        files = self.files
        source = read_image(job.source, axes=files.axes, tensor=files.tensor, series=files.series)
        precision = pick_dtype(self.dtype, source.values, self.device)
        return Input(source, source.values.to(self.device, precision), precision, started)

    def keeps_size(self, padding: PaddingLike) -> bool:
        """Tell whether image and output have the same size."""
        from deconv_cli.operators.geometry import resolve_padding

        size = self.kernel.size
        return resolve_padding(padding, size).total == tuple(k - 1 for k in size)

    def plan(self, job: Job, loaded: Input, *, n_channels: int, same_size: bool) -> OutputPlan:
        """Make sure that the output can be written, before anything is computed."""
        from deconv_cli.io import plan_output

        return plan_output(
            job.target,
            loaded.source,
            n_channels=n_channels,
            output_dtype=self.files.output_dtype,
            force=self.files.force,
            same_size=same_size,
            make_folder=job.make_folder,
        )

    def deliver(
        self, job: Job, loaded: Input, prepared: PreparedOutput, details: dict[str, Any], typed: OptionValues
    ) -> dict[str, Any]:
        """Assemble the report of a finished job, and write the output with the report inside.

        Args:
            job: what was asked for.
            loaded: what was read.
            prepared: what will be written.
            details: what is particular to this command.
            typed: the options, resolved, that are particular to this command.
        """
        from deconv_cli.report.memory import peak_memory_bytes
        from deconv_cli.report.record import SCHEMA, describe_environment, describe_kernel

        kernel_file, source = self.kernel_file, loaded.source
        notes = [*kernel_file.notes, *source.notes, *details.pop("notes", []), *prepared.notes]
        record = {
            "schema": SCHEMA,
            "command": self.command,
            "inputs": [
                {
                    "path": str(job.source),
                    "shape": list(source.shape),
                    "axes": source.axes,
                    "dtype": source.dtype,
                    "sha256": source.sha256,
                }
            ],
            "kernel": describe_kernel(
                self.kernel,
                path=str(self.kernel_options.path),
                convention=kernel_file.convention,
                sha256=kernel_file.sha256 or None,
                layer=kernel_file.layer,
                has_bias=kernel_file.bias is not None,
            ),
            **details,
            "output": {
                "path": str(job.target),
                "shape": list(prepared.shape),
                "dtype": prepared.dtype,
                "samples_sha256": prepared.samples_sha256,
            },
            "notes": notes,
            "time_s": time.perf_counter() - loaded.started,
            **describe_environment(self.device, loaded.precision, peak_memory_bytes()),
            "rerun": self._rerun(job, loaded, prepared, typed),
        }
        prepared.write(record)
        return record

    def _rerun(self, job: Job, loaded: Input, prepared: PreparedOutput, typed: OptionValues) -> str:
        files = self.files
        values: OptionValues = {
            **self._retyped_kernel(),
            "--axes": files.axes,
            "--tensor": files.tensor,
            "--series": files.series,
            **typed,
            "--dtype": None if self.factor is not None else str(loaded.precision).removeprefix("torch."),
            "--device": self.device.type,
            "--output-dtype": prepared.dtype,
            "--output": job.target,
            "--force": True,
        }
        return command_line(self.command, job.source, values)

    def _retyped_kernel(self) -> OptionValues:
        if self.factor is not None:
            return {"--factor": self.factor.path}
        return retyped_kernel(self.kernel_options, self.kernel_file)


@dataclass(frozen=True)
class Input:
    """An input file with its samples in the precision and on the device of the arithmetic.

    Attributes:
        source: the file.
        values: shape `(B, C, H, W)`.
        precision: dtype of the values.
        started: when reading began, in seconds of the performance counter.
    """

    source: ImageFile
    values: torch.Tensor
    precision: torch.dtype
    started: float


def retyped_kernel(kernel: KernelOptions, kernel_file: KernelFile) -> OptionValues:
    """Give the options that read the same kernel again."""
    normalize = {None: None, True: "--unit-sum", False: "--keep-sum"}[kernel.normalize]
    return {
        "--kernel": kernel.path,
        "--layer": kernel_file.layer,
        "--convention": kernel_file.convention,
        **({} if normalize is None else {normalize: True}),
    }


def command_line(command: str, source: Path | None, values: OptionValues) -> str:
    """Write a command as a shell would read it."""
    words = ["deconv", command]
    for option, value in values.items():
        if value is None or value is False:
            continue
        # One word, so that a value that begins with a dash is not taken for an option.
        words.append(option if value is True else f"{option}={value}")
    return shlex.join(words if source is None else [*words, "--", str(source)])
