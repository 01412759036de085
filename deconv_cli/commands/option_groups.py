"""Options that several commands share, as records: a command takes a record, and the prompt shows its options."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable
from dataclasses import Field, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin, get_type_hints

import typer

from deconv_cli.commands.console import print_note
from deconv_cli.commands.settings_options import SETTINGS_OPTIONS, SettingValues, read_settings
from deconv_cli.errors import UsageError
from deconv_cli.parts import KERNEL_SOURCES
from deconv_cli.schedulers.scheduler import JobShare
from deconv_cli.vocabulary import Convention, DeviceChoice, OutputDType

if TYPE_CHECKING:
    from deconv_cli.io import ImageFile
    from deconv_cli.schedulers.scheduler import Scheduler

OptionValues = dict[str, object]
"""Options as typed: `None` and `False` are dropped, `True` is a bare flag, and a list repeats the option."""

FILES = "Files"
KERNEL = "Kernel"
OUTPUT = "What is printed"
MANY_FILES = "Many files"
WORKERS = "Workers"
LARGE = "Large inputs"


def option(usage: str, text: str, panel: str | None = None, **more: Any) -> Any:  # noqa: ANN401
    """Describe an option as `--help` shows it: `option("--output -o FILE", "Where to write.")`.

    Args:
        usage: its names, then a name for its value.
        text: what it does.
        panel: the part of the help that lists it.
        more: further arguments of `typer.Option`.
    """
    names = [word for word in usage.split() if word.startswith("-")]
    value = usage.split()[len(names) :]
    return typer.Option(*names, metavar=value[0] if value else None, help=text, rich_help_panel=panel, **more)


def optional(usage: str, text: str, panel: str | None = None, *, default: object = None, **more: Any) -> Any:  # noqa: ANN401
    """Describe an option as the default of a parameter of a command, or of a field of a record of options.

    `with_option_groups` hands it to Typer.
    """
    return field(default=default, metadata={"name": usage.split()[0], "option": option(usage, text, panel, **more)})


def given_options(record: Any) -> OptionValues:  # noqa: ANN401
    """List the options of a record that differ from their defaults, as they would be typed."""
    given: OptionValues = {}
    for one in fields(record):
        value = getattr(record, one.name)
        if "name" in one.metadata and value != one.default:
            name, _, opposite = one.metadata["name"].partition("/")
            given[opposite if value is False else name] = True if isinstance(value, bool) else value
    return given


ForceOption = Annotated[bool, option("--force -f", "Overwrite existing files.", FILES)]
JsonOption = Annotated[bool, option("--json", "Print the report as one JSON document on stdout.", OUTPUT)]
QuietOption = Annotated[bool, option("--quiet -q", "Print no table and no notes.", OUTPUT)]
VerboseOption = Annotated[bool, option("--verbose -v", "Print a line for each step, and all tables and rows.", OUTPUT)]
InputsArgument = Annotated[
    list[Path], typer.Argument(metavar="INPUT", help="Pictures, tensors, Zarr, or folders of them.")
]
OutputOption = Annotated[
    str | None,  # not a path, which would forget the slash that marks a folder
    option(
        "--output -o FILE|DIR",
        "Where to write. The suffix decides the format; a folder gets one file for each input. Default: beside the "
        "input, in its own format (GIF as PNG).",
    ),
]
DeviceOption = Annotated[DeviceChoice, option("--device", "Where to compute.", "Computation")]


def kernel_option(more: str = "") -> Any:  # noqa: ANN401
    """Describe `--kernel`, with `more` that it takes in place of a file."""
    return option(
        "--kernel -k FILE|WORDS",
        "The kernel: a tensor or state dict (.pt, .safetensors, .npy, .npz), a picture or a stack of a point-spread "
        f"function, or a formula ({', '.join(KERNEL_SOURCES)}), for example gaussian:1.5 or motion:9@30{more}; or "
        "microscope, computed from the optics in the file (add missing values as in microscope:na=1.4,emission=520). "
        "Give it once for all channels, or once for each channel.",
    )


KERNEL_OPTION = kernel_option()
KERNEL_OR_ESTIMATE_OPTION = kernel_option("; or estimate, which finds it in the picture")


@dataclass(frozen=True)
class KernelReading:
    """How to read the taps of a kernel's file."""

    convention: Convention | None = optional(
        "--convention",
        "How to read the kernel file: as taps that conv2d applies (default for tensors), or as a point-spread "
        "function as a camera shows it, reversed along each axis on reading (default for pictures).",
        KERNEL,
    )
    normalize: bool | None = optional(
        "--normalize/--no-normalize",
        "Divide the kernel by its sum, or take it as it is. Default: divide pictures, unless their sum is 1; take "
        "tensors as they are.",
        KERNEL,
        show_default=False,
    )


@dataclass(frozen=True)
class KernelOptions(KernelReading):
    """How to read the kernel's file."""

    layer: str | None = optional(
        "--layer NAME", "Name of the layer that holds the kernel, if the file is a state dict.", KERNEL
    )
    clean_kernel: bool | None = optional(
        "--clean-kernel/--no-clean-kernel",
        "Subtract the background of a measured point-spread function, crop its empty margin, and center it; or "
        "take it as it is. Default: as it is; deconv refuses a picture of a kernel with a strong background or "
        "far off its center.",
        KERNEL,
        show_default=False,
    )

    bias = True
    """Whether to read the bias of a layer."""


@dataclass(frozen=True)
class LayerKernelOptions(KernelOptions):
    """How to read the kernel's file, if that may be a layer with a bias."""

    bias: bool = optional(
        "--bias/--no-bias",
        "Use the bias of the layer: forward adds it, and invert subtracts it from the data first.",
        KERNEL,
        default=True,
    )


@dataclass(frozen=True)
class FileOptions:
    """How to read the inputs, and how to write the outputs."""

    axes: str | None = optional(
        "--axes LETTERS",
        "Read the input's axes as these, for example CYX or TZYX. The kernel spans the last of Z, Y and X; C and S "
        "are channels; each image along other axes is processed separately. Default: as the file says.",
        FILES,
    )
    tensor: str | None = optional("--tensor NAME", "Name of the tensor, if the file holds several.", FILES)
    series: int | None = optional(
        "--series N", "Number of the image, from 0, if a TIFF or OME-Zarr holds several.", FILES, min=0
    )
    output_dtype: OutputDType | None = optional(
        "--output-dtype",
        "Sample type of the file. Default: float32, or the input's own whole numbers if the format holds no other.",
        FILES,
    )
    force: ForceOption = False

    def read(self, path: Path) -> ImageFile:
        """Read an input as these options say."""
        from deconv_cli.io import read_image

        return read_image(path, axes=self.axes, tensor=self.tensor, series=self.series)


@dataclass(frozen=True)
class PrintOptions:
    """What is printed about a run."""

    as_json: JsonOption = False
    quiet: QuietOption = False
    verbose: VerboseOption = False


@dataclass(frozen=True)
class BatchOptions:
    """What to do with files that are done already, and where to record what was done."""

    skip_existing: bool = optional(
        "--skip-existing",
        "Skip inputs whose output exists, without looking at its content. This continues a run that was "
        "interrupted: a file under its own name is always complete.",
        MANY_FILES,
        default=False,
    )
    manifest: Path | None = optional(
        "--manifest FILE.jsonl",
        "Write a line of JSON for each file as soon as it is done: result, hash, time, doubts and errors. With "
        "--skip-existing, add the lines to an existing manifest.",
        MANY_FILES,
    )

    def check(self, *, force: bool) -> None:
        """Refuse, by `UsageError`, a manifest at a URL, and to keep existing outputs and to replace them."""
        if self.manifest is not None:
            from deconv_cli.io.files import refuse_address

            refuse_address(self.manifest, is_output=True)
        if self.skip_existing and force:
            raise UsageError("--skip-existing keeps existing outputs, but --force replaces them; use one of the two.")


@dataclass(frozen=True)
class LargeOptions:
    """How an input is cut that does not fit the memory, or that the user wants in blocks."""

    block_size: str | None = optional(
        "--block-size N|D,H,W",
        "Restore the input in blocks of N pixels along each axis of space. Default, and if one block covers the "
        "input: the whole input if it fits --max-memory, otherwise the largest blocks that fit.",
        LARGE,
    )
    dry_run: bool = optional(
        "--dry-run",
        "Write nothing. Print the plan of the blocks: memory, halo (the margin read around each block), expected "
        "error at the seams, time. For several inputs, list each with its output.",
        LARGE,
        default=False,
    )
    block_range: str | None = optional(
        "--block-range i/N",
        "Restore the share of job i of N. Jobs may run at any time on any machine that sees the files; the last "
        "job to end completes the result.",
        LARGE,
    )

    resume: bool = optional(
        "--resume",
        "Continue an earlier run over the blocks of one input, with the remaining blocks. For many files, use "
        "--skip-existing.",
        LARGE,
        default=False,
    )

    @property
    def is_cut_anyway(self) -> bool:
        """Whether an option was typed that has no use without blocks."""
        return self.block_size is not None or self.dry_run or self.block_range is not None

    def check(self, *, is_possible: bool, is_one: bool, force: bool) -> None:
        """Refuse by `UsageError` options that need a given kernel or a single input, or contradict others."""
        lists_inputs = self.dry_run and not is_one and self.block_size is None and self.block_range is None
        if self.is_cut_anyway and not lists_inputs and not is_possible:
            raise UsageError(
                "--block-size, --block-range and --dry-run need a given kernel, and do not go with --kernel estimate, "
                "--layers or --tap; leave them out, or give the kernel that deconv kernel estimate finds."
            )
        if self.block_range is not None:
            JobShare.parse(self.block_range)
        if not is_one and self.block_range is not None:
            raise UsageError("--block-range is for one input; give one file.")
        if self.resume and force:
            raise UsageError("--resume keeps what an earlier run did, and --force replaces it; leave one out.")
        if not is_one and self.resume:
            raise UsageError("--resume continues one input that is restored in blocks; for many, use --skip-existing.")


@dataclass(frozen=True)
class WorkOptions:
    """Who does the work: processes of this machine, or a cluster."""

    jobs: int | None = optional(
        "--jobs N",
        "Work in N processes, which share the cores of this machine, its GPUs, and --max-memory. Default: in "
        "threads of this process.",
        WORKERS,
        min=1,
    )
    scheduler: str | None = optional(
        "--scheduler ADDRESS|FILE",
        "Work on a running Dask cluster: the address of its scheduler, such as tcp://host:8786, or the scheduler's "
        "file. --max-memory is for each worker.",
        WORKERS,
    )

    @property
    def are_given(self) -> bool:
        """Whether other processes do the work."""
        return self != WorkOptions()

    def start(self, device: str, *, threads: int | None = None) -> Scheduler:
        """Start the workers.

        Args:
            device: type of the device of the arithmetic.
            threads: workers in this process if no option was given.

        Raises:
            UsageError: options that contradict one another or the machine, or a package is missing.
            WorkerError: there is no cluster at the address.
        """
        from deconv_cli.schedulers.scheduler import WorkSettings, start_scheduler

        threads = None if self.are_given else threads
        return start_scheduler(WorkSettings(self.jobs, self.scheduler, threads, device))


def typed_options(invocation: typer.Context) -> frozenset[str]:
    """List the typed parameters of a command, even those with their defaults."""
    sources = {name: invocation.get_parameter_source(name) for name in invocation.params}
    return frozenset(name for name, source in sources.items() if source and source.name == "COMMANDLINE")


def files_read(invocation: typer.Context) -> list[Path]:
    """List the files besides the inputs that options name and a run reads: `kernel.npy` and `code.py:Class`."""
    others = {"inputs", "output", "report", "error_map", "trust_mask", "manifest"}
    values = [invocation.params[name] for name in sorted(typed_options(invocation) - others)]
    words = [str(one) for value in values for one in (value if isinstance(value, list | tuple) else [value])]
    found: list[Path] = []
    for word in words:
        with contextlib.suppress(OSError, ValueError):  # no name of a file
            found += [path for path in (Path(word), Path(word.rpartition(":")[0])) if path.is_file()][:1]
    return found


def print_workers(scheduler: Scheduler) -> None:
    """Print where the workers can be watched, and a note if there are none yet."""
    if scheduler.address is not None:
        print_note(f"watch the workers at {scheduler.address}")
    if not scheduler.n_workers:
        print_note("the cluster has no workers yet; the run waits for the first one")


def with_option_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Replace each parameter of a command that is a record of options by the options themselves.

    A parameter annotated with a dataclass becomes its fields. `Annotated[SettingValues, names]` becomes the options of
    those settings; the command gets a dictionary of those that were typed. A dictionary behind the names replaces some
    of the help texts. Every command refuses `--quiet` together with `--verbose` by `UsageError`.
    """
    signature = inspect.signature(command, eval_str=True)
    parameters: list[inspect.Parameter] = []
    groups: dict[str, tuple[Callable[[dict[str, Any]], Any], list[str]]] = {}
    for name, parameter in signature.parameters.items():
        if isinstance(parameter.default, Field):
            parameter = parameter.replace(
                annotation=_described(parameter.annotation, parameter.default), default=parameter.default.default
            )
        options, make = _expand(parameter.annotation)
        if make is not None:
            groups[name] = (make, [one.name for one in options])
        parameters += [parameter] if make is None else options

    @functools.wraps(command)
    def run(**values: Any) -> None:  # noqa: ANN401
        if values.get("quiet") and values.get("verbose"):
            raise UsageError("--quiet and --verbose do not go together; leave one of them out.")
        for name, (make, names) in groups.items():
            values[name] = make({one: values.pop(one) for one in names})
        command(**values)

    ordered = sorted(parameters, key=lambda p: p.default is not inspect.Parameter.empty)
    vars(run)["__signature__"] = signature.replace(parameters=ordered)
    run.__annotations__ = {}
    return run


def _expand(annotation: Any) -> tuple[list[inspect.Parameter], Callable[[dict[str, Any]], Any] | None]:  # noqa: ANN401
    """List the options of a record, with the function that makes the record; nothing for any other parameter."""
    found: list[tuple[str, Any, object]]
    if get_origin(annotation) is Annotated and get_args(annotation)[0] is SettingValues:
        names, texts = (*get_args(annotation)[1:], {})[:2]
        found = [(name, SETTINGS_OPTIONS[name].annotation_with(texts.get(name)), None) for name in names]
        make: Callable[[dict[str, Any]], Any] = read_settings
    elif isinstance(annotation, type) and is_dataclass(annotation):
        hints = get_type_hints(annotation, include_extras=True)
        found = [(one.name, _described(hints[one.name], one), one.default) for one in fields(annotation)]
        make = lambda values: annotation(**values)  # noqa: E731
    else:
        return [], None
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    return [inspect.Parameter(name, kind, default=default, annotation=hint) for name, hint, default in found], make


def _described(hint: Any, field: Field[Any]) -> Any:  # noqa: ANN401
    """Return the type of an option with its description, if `optional` made one."""
    return Annotated[hint, field.metadata["option"]] if "option" in field.metadata else hint
