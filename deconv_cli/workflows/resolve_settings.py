"""Fill in the open settings, each with its reason, before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from deconv_cli.errors import UsageError
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.layer_options import PLAIN, LayerOptions
from deconv_cli.parts import BOUNDARIES
from deconv_cli.settings import NoiseKindLike, ReconstructionSettings, ResolvedSettings
from deconv_cli.solvers.photo_prior import is_blur
from deconv_cli.solvers.solver import GIVEN
from deconv_cli.tone_curve import ToneCurve
from deconv_cli.vocabulary import (
    InputKind,
    Light,
    PaddingLike,
    Size,
    format_lambda,
    format_spacing,
    parse_padding,
)
from deconv_cli.workflows.arithmetic import RECORDED, choose_light

SAME_SPACING = 0.01
"""Distances of samples count as equal up to this share."""
_WHITE_OF_8_BITS = 255
_OVERRULED = (
    "the picture looks like a photograph, but a given setting belongs to the quadratic prior, so this prior is used; "
    "prior=photo restores photographs better"
)
AS_TENSOR = 'defaults="tensor" treats it as a tensor'
_MEASURED = (
    "a picture of 16 bits counts as a measurement, so the restoration invents no detail; prior=photo restores it as a "
    "photograph, which may look sharper"
)
_PHOTO = "the picture was restored as a photograph; prior=quadratic invents no detail"


@dataclass(frozen=True)
class RecordedConvolution:
    """The convolution that made an input, as a file records it.

    Attributes:
        boundary: what lay outside the image.
        padding: how far the kernel reached outside.
        light: whether it acted on light or on stored samples; `None` if that is not recorded.
        layer: stride, dilation, groups and direction.
        input_size: pixels of the image along each axis of space, since a stride can leave several sizes possible.
        tap: the function that replaced the products, as it was typed; `None` for products.
        reason: the source of the record, for the report.
    """

    boundary: str
    padding: PaddingLike
    light: Light | None = Light.STORED
    layer: LayerOptions = PLAIN
    input_size: Size | None = None
    tap: str | None = None
    reason: str = RECORDED

    @classmethod
    def of_record(cls, record: Mapping[str, Any] | None) -> RecordedConvolution | None:
        """Read the record that `deconv forward` writes into a file, if there is one."""
        if record is None or record.get("command") != "forward":
            return None
        try:
            size = record.get("input_size")
            return cls(
                BOUNDARIES.check(record["boundary"]),
                parse_padding(record["padding"]),
                Light(record.get("light", Light.STORED)),  # older files hold no light
                LayerOptions(**record.get("layer_options", {})),
                None if size is None else tuple(map(int, size)),
                record.get("tap"),
            )
        except (KeyError, TypeError, ValueError, AttributeError):
            return None


@dataclass(frozen=True, kw_only=True, eq=False)
class InputMetadata:
    """Information on an input besides its samples.

    Attributes:
        record: the record that an earlier run of this program wrote into the file.
        recorded: the convolution that made the input, if another source than `record` holds it.
        kernel_sha256: fingerprint of the kernel's file, which is compared with that of the record.
        tone_curve: how the samples encode light.
        sample_type: type of the stored samples, by its NumPy name; `None` takes it from the tensor.
        spacing: distances of neighboring samples along the axes of space.
        jpeg_table: of a JPEG, the divisors of its luma, shape `(8, 8)`.
        saturation: the stored value of a full sample, if it is not that of the type.
    """

    record: Mapping[str, Any] | None = None
    recorded: RecordedConvolution | None = None
    kernel_sha256: str | None = None
    tone_curve: ToneCurve | None = None
    sample_type: str | None = None
    spacing: tuple[float, ...] | None = None
    jpeg_table: Tensor | None = None
    saturation: float | None = None

    @property
    def convolution(self) -> RecordedConvolution | None:
        """The recorded convolution that made the input.

        Raises:
            UsageError: its taps were no products, so that nothing undoes it.
        """
        found = RecordedConvolution.of_record(self.record) or self.recorded
        if found is not None and found.tap not in (None, "product"):
            raise UsageError(
                "only products of pixels and weights can be undone, but deconv forward made this file with "
                f"tap={found.tap}; apply the kernel without a tap."
            )
        return found

    @property
    def kernel_notes(self) -> tuple[str, ...]:
        """A sentence if the record names another kernel than the one that is to be undone."""
        made_by = None if self.record is None else self.record.get("kernel")
        if RecordedConvolution.of_record(self.record) is None or not isinstance(made_by, Mapping):
            return ()
        if self.kernel_sha256 in (None, str(made_by.get("sha256"))):
            return ()
        named = f", '{made_by['path']}'" if "path" in made_by else ""
        return (
            f"deconv forward made this file with another kernel{named}; make sure that this one holds the same taps",
        )


NO_METADATA = InputMetadata()


@dataclass(frozen=True)
class Reasons:
    """Why a boundary, a λ and the light are what they are, each a sentence without its full stop."""

    boundary: str
    lam: str
    light: str


@dataclass(frozen=True)
class ResolvedInput:
    """Settings with a value for everything, except perhaps λ.

    Attributes:
        settings: the settings; λ is 0 until it is chosen from the data.
        reasons: why they are what they are.
        chooses_lambda: whether λ is to be chosen from the data.
        lams: λ of each channel, if given for each.
        is_per_channel: whether each channel has its own kernel.
        tone_curve: undone before and done again after; `None` takes samples as they are stored.
        notes: notes for the user, a sentence each.
        metadata: what is known of the input besides its samples.
        ceiling: the value of a full sample, a lower bound of its light, on the scale that is restored; `None` for none.
        has_bounds: for a part of a picture, whether full samples of the whole are bounds, so that parts agree; `None`
            decides by the data.
        frame: boundary and padding of the whole picture, to predict the error of a part of it; `None` for a whole one.
        n_pieces: number of parts whose predicted errors are pooled.
        is_tested: whether the residual is tested and the problem assessed, or only the size of the residual is
            measured.
        tests_alignment: whether the kernel is compared with itself turned, mirrored and scaled.
        measured: start and size, along each axis, of the data whose residual is measured; `None` measures all.
    """

    settings: ResolvedSettings
    reasons: Reasons
    chooses_lambda: bool = False
    lams: tuple[float, ...] = ()
    is_per_channel: bool = False
    tone_curve: ToneCurve | None = None
    notes: tuple[str, ...] = ()
    metadata: InputMetadata = NO_METADATA
    ceiling: float | None = None
    has_bounds: bool | None = None
    frame: tuple[str, PaddingLike] | None = None
    n_pieces: int = 1
    is_tested: bool = True
    tests_alignment: bool = False
    measured: tuple[Size, Size] | None = None


def default_noise(kind: InputKind) -> NoiseKindLike:
    """Return the kind of noise that is expected of a kind of input."""
    return "auto" if kind is InputKind.PICTURE else "white"


def resolve(settings: ReconstructionSettings, kernel: Kernel, metadata: InputMetadata = NO_METADATA) -> ResolvedInput:
    """Fill in the open settings from the input's record, or by the kind of input.

    The kernel is canonical, of any dtype. A setting that would change nothing, or an input that no kernel can restore,
    is a `UsageError`.
    """
    recorded = metadata.convolution
    if kernel.field is not None and settings.predict:
        raise UsageError(
            "only a single kernel allows a predicted error or a truth, but this one varies over the frame; leave them "
            "out, or use the kernel of one place."
        )
    layer = settings.layer_over(PLAIN if recorded is None else recorded.layer)
    kernel = kernel.with_layer(layer)
    counts_light = settings.defaults is None and settings.method == "richardson-lucy"
    kind = InputKind.PICTURE if counts_light else settings.defaults or InputKind.TENSOR
    is_picture = kind is InputKind.PICTURE
    noise = settings.noise if settings.noise is not None else default_noise(kind)
    notes = [*metadata.kernel_notes]
    if counts_light and layer.is_plain:
        what = "signal that was measured" if kernel.n_axes == 1 else "picture"
        notes.append(f"the array is treated as a {what}, since Richardson–Lucy counts light; {AS_TENSOR}")
    if not layer.is_plain:
        # The outputs of a stride or of groups are no samples of a scene, whose spectrum separates noise from detail.
        if settings.noise == "auto":
            raise UsageError(
                "the kind of the noise is found only for plain convolutions, but this layer has "
                f"{layer.describe()}; take white noise."
            )
        kind, noise = InputKind.TENSOR, settings.noise if settings.noise is not None else "white"
        if settings.predict:
            settings = replace(settings, predict=False, seed=None)
            notes.append(f"the error is predicted only for plain convolutions, but this layer has {layer.describe()}")
    boundary, boundary_reason = settings.boundary, GIVEN
    if boundary == "auto" and recorded is not None:
        boundary, boundary_reason = recorded.boundary, recorded.reason
    elif boundary == "auto" and layer.transposed:
        boundary, boundary_reason = "zero", "a transposed convolution reads no pixel outside of its input"
    elif boundary == "auto" and is_picture:
        boundary, boundary_reason = "unknown", "a picture shows part of a larger scene"
    elif boundary == "auto":
        boundary, boundary_reason = "zero", "layers of networks pad their tensors with zeros"
    padding = settings.padding
    if padding is None:
        padding = "same" if recorded is None else recorded.padding
    light = choose_light(settings.light, metadata.tone_curve, None if recorded is None else recorded.light)
    looks_like_photograph = kind is InputKind.PICTURE and _is_photograph(kernel, light.curve)
    is_photograph = looks_like_photograph and settings.leaves_prior_open
    is_measured = kind is InputKind.PICTURE and not looks_like_photograph and _is_photograph(kernel, light.curve, 65535)
    has_other_setting = settings.prior == "auto" and settings.is_linear
    n_outputs, n_inputs = kernel.n_channels
    # A penalty on the pixels themselves would pull the image outside the frame to black, and show bright lines along
    # its edges; that on differences is for kernels with no fewer outputs than inputs.
    penalty = settings.penalty or ("gradient" if is_picture and n_outputs >= n_inputs else "identity")
    # A picture that `deconv forward` did not make from one image has channels, not views of one image.
    is_stacked = layer.is_plain and kind is InputKind.PICTURE and recorded is None and n_outputs > n_inputs == 1
    is_per_channel = kernel.is_per_channel or is_stacked
    has_lambda = settings.has_lambda and not is_photograph
    lam, lambda_reason = _resolve_lambda(settings) if has_lambda else (1.0, "of no use")
    if has_lambda and not isinstance(lam, str) and settings.noise_sigma is not None and not settings.predict:
        advice = "predict is not set; leave it out, or choose λ auto"
        if not layer.is_plain:
            advice = f"no error is predicted for a layer with {layer.describe()}; leave it out"
        raise UsageError(
            f"noise_sigma helps to choose λ or to predict the error, but λ is {format_lambda(lam)} here "
            f"({lambda_reason}) and {advice}."
        )
    lams = lam if isinstance(lam, tuple) else ()
    if lams and not (kernel.shared or is_per_channel):
        raise UsageError(
            f"λ was given for each of {len(lams)} channels, but a kernel of shape {tuple(kernel.taps.shape)} mixes "
            "them; give one λ."
        )
    prior = settings.prior
    if prior == "auto":
        prior = "photo" if is_photograph or settings.objective == "photo" else "quadratic"
    takes_differences = penalty != "identity" if has_lambda else prior == "tv"
    spacing = settings.spacing
    if spacing is None and takes_differences:
        spacing, spacing_notes = _relative_spacing(metadata.spacing)
        notes += spacing_notes
    input_size = settings.input_size
    if input_size is None and recorded is not None and recorded.layer == layer:
        input_size = recorded.input_size
    is_single = kernel.shared and kernel.n_axes == 2 and kernel.field is None
    is_foreign = metadata.record is None and metadata.recorded is None  # not written by this program
    resolved = ResolvedSettings(
        **vars(settings)
        | vars(layer)
        | {"defaults": kind, "light": light.light, "boundary": boundary, "padding": padding, "penalty": penalty}
        | {"dimensions": settings.dimensions or kernel.n_axes, "input_size": input_size, "spacing": spacing}
        | {"noise": noise, "lam": lam if isinstance(lam, float) else 0.0, "prior": prior}
    )
    return ResolvedInput(
        resolved,
        Reasons(boundary_reason, lambda_reason, light.reason),
        chooses_lambda=lam == "auto",
        lams=lams,
        is_per_channel=is_per_channel,
        tone_curve=light.curve,
        notes=(
            *([_stacked(kernel)] if is_stacked and not kernel.is_per_channel else []),
            *([_PHOTO] if is_photograph else []),
            *([_MEASURED] if is_measured and has_other_setting and settings.lam in (None, "auto") else []),
            *([_OVERRULED] if looks_like_photograph and not is_photograph and has_other_setting else []),
            *notes,
        ),
        metadata=metadata,
        tests_alignment=is_single and kind is InputKind.PICTURE and is_foreign,
    )


def _relative_spacing(spacing: tuple[float, ...] | None) -> tuple[tuple[float, ...] | None, tuple[str, ...]]:
    """Divide the recorded distances of samples by the smallest, and note it; `None` if they are equal or unknown."""
    if spacing is None or max(spacing) <= (1 + SAME_SPACING) * min(spacing):
        return None, ()
    note = (
        f"differences are divided by distances, since the file gives {format_spacing(spacing)} between samples; "
        f"spacing={','.join('1' for _ in spacing)} treats all axes alike"
    )
    return tuple(distance / min(spacing) for distance in spacing), (note,)


def _is_photograph(kernel: Kernel, curve: ToneCurve | None, white: float = _WHITE_OF_8_BITS) -> bool:
    """Return whether a picture whose samples end at `white` is most likely a blurred photograph."""
    has_white = curve is not None and curve.white == white
    is_plain = kernel.n_axes == 2 and kernel.shared and kernel.field is None and kernel.layer.is_plain
    return has_white and is_plain and is_blur(kernel)


def _stacked(kernel: Kernel) -> str:
    n_channels = kernel.taps.shape[0]
    return (
        f"the kernel of shape {tuple(kernel.taps.shape)} was read as one kernel for each of {n_channels} channels, "
        'since the input is a picture; defaults="tensor" merges the channels into one image instead'
    )


def _resolve_lambda(settings: ReconstructionSettings) -> tuple[float | tuple[float, ...] | str, str]:
    """Return λ, or `auto`, and the reason. For tensors λ is small enough to keep the digits of float32."""
    if settings.lam not in (None, "auto"):
        return settings.lam, GIVEN
    if settings.lam == "auto" or settings.lambda_rule is not None or settings.defaults is InputKind.PICTURE:
        return "auto", "chosen from the data"
    return 1e-6, "default for tensors"
