"""Undo a convolution with its real borders, and report how far to trust the result.

The library in a few names::

    y = deconv_cli.forward(x, kernel, padding="same", boundary="zero")
    reconstruction = deconv_cli.invert(y, kernel, padding="same", boundary="zero", lam=1e-6)
    P = deconv_cli.pseudo_inverse(kernel, input_size=(128, 128), padding="same", boundary="zero")
    x_hat = P(y)

torch is imported with the first of them, not with the package.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deconv_cli.allocator import keep_freed_memory
from deconv_cli.errors import (
    DeconvError,
    FileAccessError,
    GradientFaultError,
    InputRefusedError,
    MalformedInputError,
    ShapeError,
    TooLargeError,
    UnsafeInputError,
    UntrustworthyResultError,
    UsageError,
    WorkerError,
)
from deconv_cli.gradients.rules import GRADIENT_RULES
from deconv_cli.parts import (
    BOUNDARIES,
    CODECS,
    KERNEL_SOURCES,
    LOSSES,
    PENALTIES,
    PRIORS,
    SCHEDULERS,
    SOLVERS,
    TAPS,
    Registry,
)

if TYPE_CHECKING:
    from deconv_cli.blocks.block_extras import ExtraFiles
    from deconv_cli.blocks.block_plan import BlockOptions
    from deconv_cli.blocks.block_reconstruction import BlockReconstruction
    from deconv_cli.blocks.invert_blocks import LargeFileOptions, invert_blocks
    from deconv_cli.chains.chain_inversion import ChainInversion, invert_chain
    from deconv_cli.gradients.checker import check_gradients
    from deconv_cli.gradients.findings import Cause, Finding, GradientReport, Verdict
    from deconv_cli.gradients.training.script import watch_gradients
    from deconv_cli.kernels.bead_psf import BeadPsf, psf_from_beads
    from deconv_cli.kernels.blind.blur_map import map_blur
    from deconv_cli.kernels.blind.blurred_picture import align_kernel, estimate_free_kernel, estimate_kernel
    from deconv_cli.kernels.fit_kernel import KernelFit, fit_kernel
    from deconv_cli.kernels.kernel import Kernel
    from deconv_cli.kernels.kernel_field import KernelField
    from deconv_cli.kernels.microscope import Microscope, microscope_psf
    from deconv_cli.kernels.receptive_field import ReceptiveFieldConv2d
    from deconv_cli.kernels.sources.formula import make_kernel
    from deconv_cli.operators.convolution import Convolution
    from deconv_cli.operators.differences import Gradient, Laplacian
    from deconv_cli.operators.linear_operator import Identity, Linearization, LinearOperator
    from deconv_cli.operators.varying_convolution import VaryingConvolution
    from deconv_cli.saved_files import (
        ModelLayer,
        list_layers,
        load_kernel_field,
        load_layer,
        save_kernel_field,
        save_layer,
    )
    from deconv_cli.settings import ReconstructionSettings, ResolvedSettings
    from deconv_cli.solvers.pseudo_inverse import PseudoInverse
    from deconv_cli.solvers.solution import Solution, Status
    from deconv_cli.solvers.solve import solve
    from deconv_cli.tone_curve import ToneCurve
    from deconv_cli.workflows.apply_kernel import forward, forward_taps
    from deconv_cli.workflows.library import invert, pseudo_inverse
    from deconv_cli.workflows.progress_listener import ProgressListener
    from deconv_cli.workflows.reconstruction import Reconstruction
    from deconv_cli.workflows.resolve_settings import InputMetadata

__version__ = "0.2.0"

__all__ = [
    "BOUNDARIES",
    "CODECS",
    "GRADIENT_RULES",
    "KERNEL_SOURCES",
    "LOSSES",
    "PENALTIES",
    "PRIORS",
    "SCHEDULERS",
    "SOLVERS",
    "TAPS",
    "BeadPsf",
    "BlockOptions",
    "BlockReconstruction",
    "Cause",
    "ChainInversion",
    "Convolution",
    "DeconvError",
    "ExtraFiles",
    "FileAccessError",
    "Finding",
    "Gradient",
    "GradientFaultError",
    "GradientReport",
    "Identity",
    "InputMetadata",
    "InputRefusedError",
    "Kernel",
    "KernelField",
    "KernelFit",
    "Laplacian",
    "LargeFileOptions",
    "LinearOperator",
    "Linearization",
    "MalformedInputError",
    "Microscope",
    "ModelLayer",
    "ProgressListener",
    "PseudoInverse",
    "ReceptiveFieldConv2d",
    "Reconstruction",
    "ReconstructionSettings",
    "Registry",
    "ResolvedSettings",
    "ShapeError",
    "Solution",
    "Status",
    "ToneCurve",
    "TooLargeError",
    "UnsafeInputError",
    "UntrustworthyResultError",
    "UsageError",
    "VaryingConvolution",
    "Verdict",
    "WorkerError",
    "__version__",
    "align_kernel",
    "check_gradients",
    "estimate_free_kernel",
    "estimate_kernel",
    "fit_kernel",
    "forward",
    "forward_taps",
    "invert",
    "invert_blocks",
    "invert_chain",
    "keep_freed_memory",
    "list_layers",
    "load_kernel_field",
    "load_layer",
    "make_kernel",
    "map_blur",
    "microscope_psf",
    "pseudo_inverse",
    "psf_from_beads",
    "save_kernel_field",
    "save_layer",
    "solve",
    "watch_gradients",
]

_NAMES = {
    "blocks.block_extras": ("ExtraFiles",),
    "blocks.block_plan": ("BlockOptions",),
    "blocks.block_reconstruction": ("BlockReconstruction",),
    "blocks.invert_blocks": ("LargeFileOptions", "invert_blocks"),
    "gradients.checker": ("check_gradients",),
    "gradients.findings": ("Cause", "Finding", "GradientReport", "Verdict"),
    "gradients.training.script": ("watch_gradients",),
    "kernels.kernel": ("Kernel",),
    "kernels.kernel_field": ("KernelField",),
    "kernels.microscope": ("Microscope", "microscope_psf"),
    "kernels.receptive_field": ("ReceptiveFieldConv2d",),
    "kernels.sources.formula": ("make_kernel",),
    "operators.convolution": ("Convolution",),
    "operators.differences": ("Gradient", "Laplacian"),
    "operators.linear_operator": ("Identity", "Linearization", "LinearOperator"),
    "operators.varying_convolution": ("VaryingConvolution",),
    "saved_files": (
        "ModelLayer",
        "list_layers",
        "load_kernel_field",
        "load_layer",
        "save_kernel_field",
        "save_layer",
    ),
    "settings": ("ReconstructionSettings", "ResolvedSettings"),
    "solvers.pseudo_inverse": ("PseudoInverse",),
    "solvers.solution": ("Solution", "Status"),
    "solvers.solve": ("solve",),
    "tone_curve": ("ToneCurve",),
    "workflows.apply_kernel": ("forward", "forward_taps"),
    "kernels.bead_psf": ("BeadPsf", "psf_from_beads"),
    "kernels.blind.blurred_picture": ("align_kernel", "estimate_free_kernel", "estimate_kernel"),
    "kernels.blind.blur_map": ("map_blur",),
    "chains.chain_inversion": ("ChainInversion", "invert_chain"),
    "kernels.fit_kernel": ("KernelFit", "fit_kernel"),
    "workflows.library": ("invert", "pseudo_inverse"),
    "workflows.progress_listener": ("ProgressListener",),
    "workflows.reconstruction": ("Reconstruction",),
    "workflows.resolve_settings": ("InputMetadata",),
}
"""What is imported at its first use, most of it with torch, by its module."""
_HOMES = {name: f"deconv_cli.{module}" for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name not in _HOMES:
        raise AttributeError(f"module 'deconv_cli' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
