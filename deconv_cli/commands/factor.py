"""`deconv factor`: do once what undoing a kernel costs, and keep it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from deconv_cli.commands import option_groups as options
from deconv_cli.commands.console import print_answer, print_document
from deconv_cli.commands.context import Context, environment_of, pick
from deconv_cli.commands.loaded_kernel import LoadedKernel, load_kernel
from deconv_cli.commands.option_groups import option
from deconv_cli.commands.settings_options import LAYER_SETTINGS, SettingValues, layer_options
from deconv_cli.commands.summary import print_factor_summary
from deconv_cli.errors import UsageError
from deconv_cli.parts import BOUNDARIES, PENALTIES, SOLVERS
from deconv_cli.settings import ReconstructionSettings
from deconv_cli.vocabulary import DeviceChoice, format_padding, parse_size

if TYPE_CHECKING:
    from deconv_cli.solvers.pseudo_inverse import PseudoInverse

EXAMPLE = (
    "Example: deconv factor --kernel sample_images/layer.safetensors --layer conv --size 32,32 -o factor.safetensors"
)

FIXED_SETTINGS = (
    *("boundary", "padding", *LAYER_SETTINGS, "lam", "penalty", "rcond"),
    *("method", "tolerance", "max_iterations", "max_memory", "dtype"),
)
"""The settings that define an inverse."""
TEXTS = {
    "boundary": f"What lay outside the image: {', '.join(BOUNDARIES)}. Default: zero.",
    "padding": "Reach of the kernel outside the image. Default: same.",
    "lam": "λ, the strength of smoothing (weight of the penalty, relative to σ²max); 0 for the pseudo-inverse. "
    "Default: 1e-6.",
    "penalty": f"What the penalty keeps small: {', '.join(PENALTIES)}. Default: identity.",
    "method": f"How to solve: auto, {', '.join(SOLVERS)}. Default: auto, the cheapest.",
    "tolerance": "Stop when the certificate (relative gradient, 0 is exact) is this small. Default: 1e-6 in float32, "
    "1e-10 in float64.",
    "dtype": "Precision of the arithmetic: float32 or float64. Default: float64 for float64 kernels, else float32.",
}
"""Help texts for a command without data to take defaults from."""


def factor(
    kernel: Annotated[Path, options.KERNEL_OPTION],
    size: Annotated[
        str,
        option(
            "--size --input-size [D,]H,W",
            "Size of the images to restore: height and width; depth, height and width of stacks; or one length of "
            "signals. The blurred outputs have another size unless padding is same.",
        ),
    ],
    output: Annotated[Path, option("--output -o FILE", "A .safetensors file.")],
    settings: Annotated[SettingValues, FIXED_SETTINGS, TEXTS],
    kernel_options: options.LayerKernelOptions,
    device: options.DeviceOption = DeviceChoice.AUTO,
    force: options.ForceOption = False,
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
) -> None:
    """Build the inverse of a kernel for images of one size, and save it for deconv invert --factor.

    Settings that are not given take the defaults of tensors, as in deconv invert: boundary zero, penalty identity,
    λ 1e-6. (From Python, pseudo_inverse has λ 0 by default, which gives the Moore-Penrose inverse.)
    """
    image_size = parse_size(size)
    given = ReconstructionSettings.of(**settings)
    if given.lam == "auto":
        raise UsageError("λ auto needs data, and a factor is built without data; give a number.")

    from deconv_cli.io import fingerprint
    from deconv_cli.io.codecs.safetensors_file import check_state_path
    from deconv_cli.operators.layer_convolution import LayerConvolution
    from deconv_cli.report.run import FactorRun
    from deconv_cli.report.run_record import describe_factor_run
    from deconv_cli.saved_inverses import KernelOrigin, SavedInverse, write_inverse
    from deconv_cli.solvers.pseudo_inverse import PseudoInverse
    from deconv_cli.vocabulary import format_size
    from deconv_cli.workflows.arithmetic import as_kernel, check_single_kernel, pick_dtype
    from deconv_cli.workflows.measurement import assess_well_posedness, describe_undetermined
    from deconv_cli.workflows.resolve_settings import InputMetadata, resolve

    check_state_path(output, kernel, force=force)
    started = time.perf_counter()
    loaded, where = load_kernel(kernel, kernel_options, len(image_size)), pick(device)
    taps = check_single_kernel(loaded.taps)
    is_plain = loaded.kernel.shared or len(image_size) == 1
    if is_plain and len(loaded.source.shape) in (2, 3) and len(loaded.source.shape) != len(image_size):
        raise UsageError(
            f"kernel '{kernel}' of shape {format_size(loaded.source.shape)} does not fit the number of axes of "
            f"'{size}'; give H,W, or D,H,W for stacks and N for signals."
        )
    precision = pick_dtype(given.dtype, taps, where)
    resolved = resolve(given, loaded.kernel, InputMetadata(recorded=loaded.recorded)).settings
    building = time.perf_counter()
    inverse = PseudoInverse(as_kernel(taps, where, precision, len(image_size)), image_size, resolved)
    factored = time.perf_counter() - building
    notes, source = loaded.notes, loaded.source
    if isinstance(inverse.operator, LayerConvolution):
        notes += describe_undetermined(inverse.operator, inverse.settings.lam)
    origin = KernelOrigin(source.path, source.layer, source.convention, source.sha256 or "", loaded.notes)
    write_inverse(output, SavedInverse(inverse, loaded.bias, origin))
    run = FactorRun(
        kernel=source,
        inverse=inverse,
        well_posedness=None if inverse.operator.is_layer else assess_well_posedness(inverse),
        factoring_time_s=factored,
        path=str(output),
        n_bytes=output.stat().st_size,
        sha256=fingerprint(output),
        notes=notes,
        environment=environment_of(where, precision, started),
        rerun=Context("factor", options.FileOptions(), where).rerun(None, _options(loaded, inverse), output),
    )
    if not quiet:
        print_factor_summary(run)
    if as_json:
        print_document(describe_factor_run(run))
    else:
        print_answer(str(output))


def _options(loaded: LoadedKernel, inverse: PseudoInverse) -> options.OptionValues:
    """Return the resolved options that make the same factor again."""
    resolved = inverse.settings.as_options()
    dropped = ("--dimensions", "--defaults", "--noise", "--light")
    return {
        **{name: value for name, value in loaded.options.items() if name != "--dimensions"},
        "--size": ",".join(map(str, inverse.geometry.image_size)),
        **{name: value for name, value in resolved.items() if name not in dropped},
        **layer_options(inverse.settings, ()),
        "--padding": format_padding(inverse.settings.padding),
        "--method": inverse.choice.method,
        "--tolerance": repr(inverse.tolerance),
        "--dtype": str(inverse.kernel.taps.dtype).removeprefix("torch."),
    }
