"""Undo a convolution, under its real borders, and say how far to trust the result.

The library in a few names::

    y = deconv_cli.forward(x, kernel, padding="same", boundary="zero")
    reconstruction = deconv_cli.invert(y, kernel, padding="same", boundary="zero", lam=1e-6)
    P = deconv_cli.pseudo_inverse(kernel, input_size=(128, 128), padding="same", boundary="zero")
    x_hat = P(y)
    deconv_cli.save_pseudo_inverse(P, "P.safetensors")
    P = deconv_cli.load_pseudo_inverse("P.safetensors")

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
    REGION_FORMATS,
    SCHEDULERS,
    SOLVERS,
    TAPS,
)
from deconv_cli.registry import Registry
from deconv_cli.settings import ReconstructionSettings, ResolvedSettings

if TYPE_CHECKING:
    from deconv_cli.blocks.block_reconstruction import BlockReconstruction
    from deconv_cli.blocks.cut_blocks import BlockOptions
    from deconv_cli.blocks.invert_blocks import LargeFileOptions, invert_blocks
    from deconv_cli.blocks.plan_extras import ExtraFiles
    from deconv_cli.gradients.checker import check_gradients
    from deconv_cli.gradients.findings import Cause, Finding, Verdict
    from deconv_cli.gradients.gradient_report import GradientReport
    from deconv_cli.gradients.training.watching import watch_gradients
    from deconv_cli.kernels.kernel import Kernel
    from deconv_cli.kernels.kernel_field import KernelField
    from deconv_cli.kernels.optics.microscope import Microscope, microscope_psf
    from deconv_cli.kernels.receptive_field import ReceptiveFieldConv2d
    from deconv_cli.kernels.sources.formula import make_kernel
    from deconv_cli.operators.convolution import Convolution
    from deconv_cli.operators.differences import Gradient, Laplacian
    from deconv_cli.operators.linear_operator import Identity, LinearOperator
    from deconv_cli.operators.linearization import Linearization
    from deconv_cli.operators.varying_convolution import VaryingConvolution
    from deconv_cli.saved_fields import load_kernel_field, save_kernel_field
    from deconv_cli.saved_inverses import load_pseudo_inverse, save_pseudo_inverse
    from deconv_cli.saved_layers import ModelLayer, list_layers, load_layer, save_layer
    from deconv_cli.saved_learning import load_learning_state, save_learning_state
    from deconv_cli.solvers.pseudo_inverse import PseudoInverse
    from deconv_cli.solvers.solution import Solution, Status
    from deconv_cli.solvers.solve import solve
    from deconv_cli.tone_curve import ToneCurve
    from deconv_cli.workflows.apply_kernel import forward
    from deconv_cli.workflows.bead_psf import BeadPsf, psf_from_beads
    from deconv_cli.workflows.blind import align_kernel, estimate_free_kernel, estimate_kernel
    from deconv_cli.workflows.blur_map import map_blur
    from deconv_cli.workflows.chain import ChainInversion, invert_chain
    from deconv_cli.workflows.custom_taps import TapReconstruction, forward_taps, invert_taps
    from deconv_cli.workflows.fit_kernel import KernelFit, fit_kernel
    from deconv_cli.workflows.inverse_filters import InverseFilters, learn_inverse_filters, simulate_pairs
    from deconv_cli.workflows.learn_kernel import KernelLearning, learn_kernel
    from deconv_cli.workflows.learning_settings import LearningSettings
    from deconv_cli.workflows.library import invert, pseudo_inverse
    from deconv_cli.workflows.reconstruction import Reconstruction

__version__ = "0.1.0"

__all__ = [
    "BOUNDARIES",
    "CODECS",
    "GRADIENT_RULES",
    "KERNEL_SOURCES",
    "LOSSES",
    "PENALTIES",
    "PRIORS",
    "REGION_FORMATS",
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
    "InputRefusedError",
    "InverseFilters",
    "Kernel",
    "KernelField",
    "KernelFit",
    "KernelLearning",
    "Laplacian",
    "LargeFileOptions",
    "LearningSettings",
    "LinearOperator",
    "Linearization",
    "MalformedInputError",
    "Microscope",
    "ModelLayer",
    "PseudoInverse",
    "ReceptiveFieldConv2d",
    "Reconstruction",
    "ReconstructionSettings",
    "Registry",
    "ResolvedSettings",
    "ShapeError",
    "Solution",
    "Status",
    "TapReconstruction",
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
    "invert_taps",
    "keep_freed_memory",
    "learn_inverse_filters",
    "learn_kernel",
    "list_layers",
    "load_kernel_field",
    "load_layer",
    "load_learning_state",
    "load_pseudo_inverse",
    "make_kernel",
    "map_blur",
    "microscope_psf",
    "pseudo_inverse",
    "psf_from_beads",
    "save_kernel_field",
    "save_layer",
    "save_learning_state",
    "save_pseudo_inverse",
    "simulate_pairs",
    "solve",
    "watch_gradients",
]

_HOMES = {
    "BlockOptions": "deconv_cli.blocks.plan_blocks",
    "BlockReconstruction": "deconv_cli.blocks.block_reconstruction",
    "ExtraFiles": "deconv_cli.blocks.plan_extras",
    "LargeFileOptions": "deconv_cli.blocks.invert_blocks",
    "invert_blocks": "deconv_cli.blocks.invert_blocks",
    "Cause": "deconv_cli.gradients.findings",
    "Finding": "deconv_cli.gradients.findings",
    "GradientReport": "deconv_cli.gradients.gradient_report",
    "Verdict": "deconv_cli.gradients.findings",
    "check_gradients": "deconv_cli.gradients.checker",
    "watch_gradients": "deconv_cli.gradients.training.watching",
    "ReceptiveFieldConv2d": "deconv_cli.kernels.receptive_field",
    "Convolution": "deconv_cli.operators.convolution",
    "Kernel": "deconv_cli.kernels.kernel",
    "KernelField": "deconv_cli.kernels.kernel_field",
    "LinearOperator": "deconv_cli.operators.linear_operator",
    "Linearization": "deconv_cli.operators.linearization",
    "VaryingConvolution": "deconv_cli.operators.varying_convolution",
    "Identity": "deconv_cli.operators.linear_operator",
    "Gradient": "deconv_cli.operators.differences",
    "Laplacian": "deconv_cli.operators.differences",
    "PseudoInverse": "deconv_cli.solvers.pseudo_inverse",
    "Solution": "deconv_cli.solvers.solution",
    "Status": "deconv_cli.solvers.solution",
    "Microscope": "deconv_cli.kernels.optics.microscope",
    "microscope_psf": "deconv_cli.kernels.optics.microscope",
    "BeadPsf": "deconv_cli.workflows.bead_psf",
    "psf_from_beads": "deconv_cli.workflows.bead_psf",
    "align_kernel": "deconv_cli.workflows.blind",
    "estimate_free_kernel": "deconv_cli.workflows.blind",
    "estimate_kernel": "deconv_cli.workflows.blind",
    "map_blur": "deconv_cli.workflows.blur_map",
    "KernelFit": "deconv_cli.workflows.fit_kernel",
    "fit_kernel": "deconv_cli.workflows.fit_kernel",
    "InverseFilters": "deconv_cli.workflows.inverse_filters",
    "learn_inverse_filters": "deconv_cli.workflows.inverse_filters",
    "simulate_pairs": "deconv_cli.workflows.inverse_filters",
    "KernelLearning": "deconv_cli.workflows.learn_kernel",
    "learn_kernel": "deconv_cli.workflows.learn_kernel",
    "LearningSettings": "deconv_cli.workflows.learning_settings",
    "load_learning_state": "deconv_cli.saved_learning",
    "save_learning_state": "deconv_cli.saved_learning",
    "forward": "deconv_cli.workflows.apply_kernel",
    "Reconstruction": "deconv_cli.workflows.reconstruction",
    "ToneCurve": "deconv_cli.tone_curve",
    "invert": "deconv_cli.workflows.library",
    "ChainInversion": "deconv_cli.workflows.chain",
    "invert_chain": "deconv_cli.workflows.chain",
    "TapReconstruction": "deconv_cli.workflows.custom_taps",
    "forward_taps": "deconv_cli.workflows.custom_taps",
    "invert_taps": "deconv_cli.workflows.custom_taps",
    "make_kernel": "deconv_cli.kernels.sources.formula",
    "solve": "deconv_cli.solvers.solve",
    "pseudo_inverse": "deconv_cli.workflows.library",
    "ModelLayer": "deconv_cli.saved_layers",
    "list_layers": "deconv_cli.saved_layers",
    "load_layer": "deconv_cli.saved_layers",
    "save_layer": "deconv_cli.saved_layers",
    "load_kernel_field": "deconv_cli.saved_fields",
    "save_kernel_field": "deconv_cli.saved_fields",
    "load_pseudo_inverse": "deconv_cli.saved_inverses",
    "save_pseudo_inverse": "deconv_cli.saved_inverses",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name not in _HOMES:
        raise AttributeError(f"module 'deconv_cli' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
