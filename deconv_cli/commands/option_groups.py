"""Options that several commands share, as records: a command takes a record, and the prompt shows its options."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin, get_type_hints

import typer

from deconv_cli.commands.settings_options import SETTINGS_OPTIONS, SettingValues, read_settings
from deconv_cli.errors import UsageError
from deconv_cli.parts import KERNEL_SOURCES
from deconv_cli.vocabulary import Convention, DeviceChoice, OutputDType

if TYPE_CHECKING:
    from deconv_cli.io import ImageFile

OptionValues = dict[str, object]
"""Options as they would be typed; `None` and `False` are left out, `True` is a bare flag, a list several."""

FILES = "Files"
KERNEL = "Kernel"
OUTPUT = "What is printed"

ForceOption = Annotated[bool, typer.Option("--force", "-f", help="Overwrite existing files.", rich_help_panel=FILES)]
ShowOption = Annotated[
    bool, typer.Option("--show", help="Draw the picture in the terminal (on stderr).", rich_help_panel=OUTPUT)
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print the report as one JSON document on stdout.", rich_help_panel=OUTPUT)
]
QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print no table and no notes.", rich_help_panel=OUTPUT)
]
VerboseOption = Annotated[
    bool,
    typer.Option("--verbose", "-v", help="Print the whole table, and a line for every step.", rich_help_panel=OUTPUT),
]


@dataclass(frozen=True)
class KernelReading:
    """What to make of the taps in a kernel's file."""

    convention: Annotated[
        Convention | None,
        typer.Option(
            "--convention",
            help="What the kernel file holds: taps as conv2d applies them (default for tensors), or a point-spread "
            "function of a true convolution (default for pictures), which is flipped.",
            show_default=False,
            rich_help_panel=KERNEL,
        ),
    ] = None
    normalize: Annotated[
        bool | None,
        typer.Option(
            "--normalize/--no-normalize",
            help="Divide the kernel by its sum, or take it as it is. Default: pictures are divided, unless their sum "
            "is 1; tensors are not.",
            show_default=False,
            rich_help_panel=KERNEL,
        ),
    ] = None


@dataclass(frozen=True)
class KernelOptions(KernelReading):
    """How to read the kernel's file."""

    layer: Annotated[
        str | None,
        typer.Option(
            "--layer", metavar="NAME", help="Which layer of a state dict holds the kernel.", rich_help_panel=KERNEL
        ),
    ] = None

    clean_kernel: Annotated[
        bool | None,
        typer.Option(
            "--clean-kernel/--no-clean-kernel",
            help="Subtract the background of a measured point-spread function, crop its empty margin, and center it; "
            "or take it as it is. Default: as it is, but one that would spoil a picture is refused.",
            show_default=False,
            rich_help_panel=KERNEL,
        ),
    ] = None

    bias = True
    """Whether the bias of a layer is taken too."""

    def as_options(self) -> dict[str, object]:
        """Give the options that would be typed again."""
        given: dict[str, object] = {"--layer": self.layer, "--convention": self.convention}
        if self.normalize is not None:
            given["--normalize" if self.normalize else "--no-normalize"] = True
        if not self.bias:
            given["--no-bias"] = True
        if self.clean_kernel is not None:
            given["--clean-kernel" if self.clean_kernel else "--no-clean-kernel"] = True
        return given


@dataclass(frozen=True)
class LayerKernelOptions(KernelOptions):
    """How to read the kernel's file, where that may be a layer whose bias matters."""

    bias: Annotated[
        bool,
        typer.Option(
            "--bias/--no-bias",
            help="Take the bias of the layer too: it is added going forward, and taken off the data before inverting.",
            rich_help_panel=KERNEL,
        ),
    ] = True


@dataclass(frozen=True)
class FileOptions:
    """How to read the inputs, and how to write the outputs."""

    axes: Annotated[
        str | None,
        typer.Option(
            "--axes",
            metavar="LETTERS",
            help="Read the input's axes as these, for example CYX or TZYX: Z, Y and X are space, which a kernel of "
            "three, two or one axes spans, C and S are channels, others are worked on one by one. Default: as the file "
            "says.",
            rich_help_panel=FILES,
        ),
    ] = None
    tensor: Annotated[
        str | None,
        typer.Option(
            "--tensor",
            metavar="NAME",
            help="Which tensor of an input file that holds several.",
            rich_help_panel=FILES,
        ),
    ] = None
    series: Annotated[
        int | None,
        typer.Option(
            "--series",
            metavar="N",
            help="Which image series of a TIFF or OME-Zarr that holds several.",
            min=0,
            rich_help_panel=FILES,
        ),
    ] = None
    output_dtype: Annotated[
        OutputDType | None,
        typer.Option(
            "--output-dtype",
            help="Sample type of the file. Default: float32, or the input's own whole numbers where the format holds "
            "no other.",
            show_default=False,
            rich_help_panel=FILES,
        ),
    ] = None
    pyramid: Annotated[
        int,
        typer.Option(
            "--pyramid",
            metavar="N",
            help="Store N resolutions in an OME-Zarr, each the mean of 2×2 pixels of the one before.",
            min=1,
            rich_help_panel=FILES,
        ),
    ] = 1
    force: ForceOption = False

    def read(self, path: Path) -> ImageFile:
        """Read an input as these options say."""
        from deconv_cli.io import read_image

        return read_image(path, axes=self.axes, tensor=self.tensor, series=self.series)

    def as_options(self) -> dict[str, object]:
        """Give the options of reading, and of resolutions to be written, that would be typed again."""
        pyramid = self.pyramid if self.pyramid > 1 else None
        return {"--axes": self.axes, "--tensor": self.tensor, "--series": self.series, "--pyramid": pyramid}


@dataclass(frozen=True)
class PrintOptions:
    """What is printed of a run."""

    show: ShowOption = False
    as_json: JsonOption = False
    quiet: QuietOption = False
    verbose: VerboseOption = False


InputsArgument = Annotated[
    list[Path],
    typer.Argument(metavar="INPUT...", help="Pictures, tensors, Zarr, or folders of them.", show_default=False),
]


def _kernel_option(more: str = "") -> Any:  # noqa: ANN401
    return typer.Option(
        "--kernel",
        "-k",
        metavar="FILE|WORDS",
        help="The kernel: a tensor or state dict (.pt, .safetensors, .npy, .npz), a picture or a stack of a "
        f"point-spread function, or a formula ({', '.join(KERNEL_SOURCES)}), for example gaussian:1.5 or "
        f"motion:9@30{more}; or microscope, computed from the optics that the file names "
        "(microscope:na=1.4,emission=520 says more). Given once for all channels, or once for each.",
        show_default=False,
    )


KERNEL_OPTION = _kernel_option()
KERNEL_OR_ESTIMATE_OPTION = _kernel_option("; or estimate, which finds it in the picture")
OutputOption = Annotated[
    str | None,  # not a path, which would forget the slash that marks a folder
    typer.Option(
        "--output",
        "-o",
        metavar="FILE|DIR",
        help="Where to write; the suffix decides the format. A folder takes one file for each input. Default: beside "
        "the input, in its own format (GIF as PNG).",
        show_default=False,
    ),
]
DeviceOption = Annotated[
    DeviceChoice, typer.Option("--device", help="Where to compute.", rich_help_panel="Computation")
]


def with_option_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Replace each parameter of a command that is a record of options by the options themselves.

    A parameter annotated with a dataclass becomes its fields; one annotated `Annotated[SettingValues, names]` becomes
    the options of those settings, and is given those that were typed, by their names. A dictionary behind the names
    has other help texts for some of them. Every command refuses by `UsageError` to be both quiet and verbose.
    """
    signature = inspect.signature(command, eval_str=True)
    parameters: list[inspect.Parameter] = []
    groups: dict[str, tuple[Callable[[dict[str, Any]], Any], list[str]]] = {}
    for name, parameter in signature.parameters.items():
        options, make = _expand(parameter.annotation)
        if make is None:
            parameters.append(parameter)
            continue
        groups[name] = (make, [option.name for option in options])
        parameters += options

    @functools.wraps(command)
    def run(**values: Any) -> None:  # noqa: ANN401
        if values.get("quiet") and values.get("verbose"):
            raise UsageError("--quiet and --verbose do not go together; leave one of them out.")
        for name, (make, names) in groups.items():
            values[name] = make({option: values.pop(option) for option in names})
        command(**values)

    ordered = sorted(parameters, key=lambda p: p.default is not inspect.Parameter.empty)
    vars(run)["__signature__"] = signature.replace(parameters=ordered)
    run.__annotations__ = {}
    return run


def _expand(annotation: Any) -> tuple[list[inspect.Parameter], Callable[[dict[str, Any]], Any] | None]:  # noqa: ANN401
    """Give the options of a record and what makes the record of them; nothing for any other parameter."""
    if get_origin(annotation) is Annotated and get_args(annotation)[0] is SettingValues:
        names, texts = (*get_args(annotation)[1:], {})[:2]
        options = [_option(name, SETTINGS_OPTIONS[name].annotation_with(texts.get(name)), None) for name in names]
        return options, read_settings
    if isinstance(annotation, type) and is_dataclass(annotation):
        hints = get_type_hints(annotation, include_extras=True)
        options = [_option(field.name, hints[field.name], field.default) for field in fields(annotation)]
        return options, lambda values: annotation(**values)
    return [], None


def _option(name: str, annotation: Any, default: object) -> inspect.Parameter:  # noqa: ANN401
    return inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=annotation)
