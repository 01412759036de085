"""What fills in the settings of a reconstruction that are left open, for pictures and for tensors.

Nothing here imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from deconv_cli.settings import Auto, NoiseKindLike
from deconv_cli.vocabulary import InputKind


@dataclass(frozen=True)
class Defaults:
    """What fills in the settings that are left open, and why.

    Attributes:
        boundary: what lies outside the image.
        boundary_reason: why.
        lam: λ.
        lambda_reason: why.
        penalty: the operator L, where the kernel has at least as many outputs as inputs; else it is the identity.
        noise: what kind of noise is expected.
    """

    boundary: str
    boundary_reason: str
    lam: float | Auto
    lambda_reason: str
    penalty: str
    noise: NoiseKindLike


DEFAULTS = {
    # λ is small enough for data that carry float32's digits.
    InputKind.TENSOR: Defaults(
        "zero", "layers of networks pad their tensors with zeros", 1e-6, "default for tensors", "identity", "white"
    ),
    # A penalty on the pixels themselves would pull what lies outside the frame to black, and show it as bright lines
    # along the edges.
    InputKind.PICTURE: Defaults(
        "unknown", "a picture shows part of a larger scene", "auto", "chosen from the data", "gradient", "auto"
    ),
}
