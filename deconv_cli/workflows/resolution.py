"""Fill in the settings that were left open, each with its reason, before anything is computed."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from deconv_cli.errors import UsageError
from deconv_cli.input_defaults import DEFAULTS, Defaults
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.layer_options import PLAIN, LayerOptions
from deconv_cli.noise_model import NoiseModel
from deconv_cli.settings import ReconstructionSettings, ResolvedSettings
from deconv_cli.solvers.choice import GIVEN
from deconv_cli.solvers.photo_prior import is_blur
from deconv_cli.solvers.pseudo_inverse import PseudoInverse
from deconv_cli.tone_curve import ToneCurve
from deconv_cli.vocabulary import InputKind, Light, PaddingLike, Size, format_lambda, format_padding
from deconv_cli.workflows.layer_settings import check_settings_of_field, check_settings_of_layer
from deconv_cli.workflows.light import RECORDED, choose_light

_WHITE_OF_8_BITS = 255
_PHOTO = "the picture was taken for a photograph, whose finest detail may be invented; prior=quadratic invents none"


@dataclass(frozen=True)
class RecordedConvolution:
    """What a file records of the convolution that made it.

    Attributes:
        boundary: what lay outside the image.
        padding: how far the kernel reached outside.
        light: in what it acted; `None` where that is not recorded.
        layer: stride, dilation, groups and direction.
        input_size: pixels of the image along each axis of space, of which such a layer may leave several possible.
        tap: what was summed in the place of products, as it was typed; `None` for products.
        reason: where that is known from, for the report.
    """

    boundary: str
    padding: PaddingLike
    light: Light | None = Light.STORED
    layer: LayerOptions = PLAIN
    input_size: Size | None = None
    tap: str | None = None
    reason: str = RECORDED


@dataclass(frozen=True)
class Reasons:
    """Why a boundary, a λ and the light are what they are, each a sentence without its full stop."""

    boundary: str
    lam: str
    light: str


@dataclass(frozen=True)
class Resolution:
    """Settings with nothing left open but, perhaps, λ.

    Attributes:
        settings: the settings; their λ is 0 for now where it is yet to be chosen.
        reasons: why they are what they are.
        chooses_lambda: whether λ is to be chosen from the data.
        lams: λ of each channel, where it was given so.
        is_per_channel: whether each channel has a kernel of its own.
        tone_curve: what is undone first and done again last; `None` where samples are taken as they are stored.
        known_curve: how the samples encode light, where that is known but not recorded by what blurred them.
        notes: what a user should know, a sentence each.
        sample_type: of the input's file, by the NumPy name; `None` where it follows from the tensor.
        ceiling: the value at which a sample is full and no more than a bound, in light where that is restored; `None`
            where there is none.
        has_bounds: whether full samples are bounds in the picture that the data are a part of: then all are, however
            few, and the estimate is found so closely that parts agree. `None` where the data tell.
        frame: boundary and padding of the picture that the data are a part of, where the error is predicted as it is in
            that picture; `None` where the data are all of it.
        n_pieces: of that picture, whose predicted errors are pooled.
        is_tested: whether the residual is tested and the problem assessed; else no more than the size of the residual
            is measured, as of a block of a large picture, which other pieces are looked at for.
    """

    settings: ResolvedSettings
    reasons: Reasons
    chooses_lambda: bool = False
    lams: tuple[float, ...] = ()
    is_per_channel: bool = False
    tone_curve: ToneCurve | None = None
    known_curve: ToneCurve | None = None
    notes: tuple[str, ...] = ()
    sample_type: str | None = None
    ceiling: float | None = None
    has_bounds: bool | None = None
    frame: tuple[str, PaddingLike] | None = None
    n_pieces: int = 1
    is_tested: bool = True


def resolve(
    settings: ReconstructionSettings,
    kernel: Kernel,
    recorded: RecordedConvolution | None = None,
    tone_curve: ToneCurve | None = None,
) -> Resolution:
    """Fill in what is left open: by what the input records of itself, else by the kind of input.

    Args:
        settings: what was given.
        kernel: canonical kernel, of any dtype.
        recorded: what the input's file says about the convolution that made it.
        tone_curve: how the input encodes light, where that is known.

    Raises:
        UsageError: a setting that would change nothing.
    """
    if kernel.field is not None:
        check_settings_of_field(settings)
    layer = settings.layer_over(PLAIN if recorded is None else recorded.layer)
    kernel = kernel.with_layer(layer)
    defaults = DEFAULTS[settings.defaults]
    if not layer.is_plain:
        check_settings_of_layer(settings, layer)
        # What a layer with a stride or groups gives are no samples of a scene, whose spectrum tells noise from detail.
        defaults = replace(defaults, noise="white")
        settings = replace(settings, defaults=InputKind.TENSOR)
    boundary, boundary_reason = settings.boundary, GIVEN
    if boundary == "auto" and recorded is not None:
        boundary, boundary_reason = recorded.boundary, recorded.reason
    elif boundary == "auto" and layer.transposed:
        boundary, boundary_reason = "zero", "a transposed convolution looks at no pixel outside of its input"
    elif boundary == "auto":
        boundary, boundary_reason = defaults.boundary, defaults.boundary_reason
    padding = settings.padding
    if padding is None:
        padding = "same" if recorded is None else recorded.padding
    light = choose_light(settings.light, tone_curve, None if recorded is None else recorded.light)
    _check_light_of_noise(settings, light.light)
    is_photograph = _is_photograph(settings, kernel, light.curve)
    if settings.prior == "auto":
        settings = replace(settings, prior="photo" if is_photograph else settings.objective)
    n_outputs, n_inputs = kernel.n_channels
    penalty = settings.penalty or (defaults.penalty if n_outputs >= n_inputs else "identity")
    # The channels of a picture that nobody made from one image are channels, and no views of one image.
    is_stacked = (
        layer.is_plain and settings.defaults is InputKind.PICTURE and recorded is None and n_outputs > n_inputs == 1
    )
    is_per_channel = kernel.is_per_channel or is_stacked
    lam, lambda_reason = _lambda(settings, defaults)
    if settings.has_lambda and not isinstance(lam, str):
        check_noise_is_used(settings, f"λ is {format_lambda(lam)} here ({lambda_reason})")
    lams = lam if isinstance(lam, tuple) else ()
    if lams and not (kernel.shared or is_per_channel):
        raise UsageError(
            f"λ was given for each of {len(lams)} channels, but a kernel of shape {tuple(kernel.taps.shape)} mixes "
            "them; give one λ."
        )
    resolved = ResolvedSettings(
        **{field.name: getattr(settings, field.name) for field in fields(settings)}
        | {"light": light.light, "boundary": boundary, "padding": padding, "penalty": penalty}
        | {"dimensions": settings.dimensions or kernel.n_axes}
        | {"input_size": settings.input_size or _recorded_size(layer, recorded)}
        | {field.name: getattr(layer, field.name) for field in fields(layer)}
        | {"noise": settings.noise if settings.noise is not None else defaults.noise}
        | {"lam": lam if isinstance(lam, float) else 0.0}
    )
    return Resolution(
        resolved,
        Reasons(boundary_reason, lambda_reason, light.reason),
        chooses_lambda=lam == "auto",
        lams=lams,
        is_per_channel=is_per_channel,
        tone_curve=light.curve,
        known_curve=tone_curve if recorded is None else None,
        notes=(
            *([_stacked(kernel)] if is_stacked and not kernel.is_per_channel else []),
            *([_PHOTO] if is_photograph else []),
        ),
    )


def _is_photograph(settings: ReconstructionSettings, kernel: Kernel, curve: ToneCurve | None) -> bool:
    """Return whether the input is most likely a blurred photograph, and no setting belongs to another prior."""
    is_picture = settings.defaults is InputKind.PICTURE and curve is not None and curve.white == _WHITE_OF_8_BITS
    is_plain = kernel.n_axes == 2 and kernel.shared and kernel.field is None and kernel.layer.is_plain
    if not (is_picture and is_plain and settings.leaves_prior_open):
        return False
    return is_blur(kernel)


def _recorded_size(layer: LayerOptions, recorded: RecordedConvolution | None) -> Size | None:
    """Give the size of the image that is on record, where it is that of the same layer."""
    return recorded.input_size if recorded is not None and recorded.layer == layer else None


def _stacked(kernel: Kernel) -> str:
    n_channels = kernel.taps.shape[0]
    return (
        f"the kernel of shape {tuple(kernel.taps.shape)} was taken for one kernel for each of {n_channels} channels, "
        'since the input is a picture; defaults="tensor" merges the channels into one image instead'
    )


def _lambda(settings: ReconstructionSettings, defaults: Defaults) -> tuple[float | tuple[float, ...] | str, str]:
    if not settings.has_lambda:
        return 1.0, "of no use"
    if settings.lam is not None:
        return settings.lam, GIVEN if settings.lam != "auto" else "chosen from the data"
    if settings.rcond is not None:
        return 0.0, "rcond truncates instead"
    if settings.lambda_rule is not None:
        return "auto", "chosen from the data"
    return defaults.lam, defaults.lambda_reason


def _check_light_of_noise(settings: ReconstructionSettings, light: Light) -> None:
    """Refuse noise that was found in light for stored samples, and the other way round: it is another noise there."""
    models = settings.noise if isinstance(settings.noise, tuple) else (settings.noise,)
    for model in models:
        if isinstance(model, NoiseModel) and model.light not in (None, light):
            raise UsageError(
                f"the noise in '{model.source}' was found under light={model.light}, and is another one under "
                f"light={light}, which holds here; choose light={model.light}, or leave noise out."
            )


def check_noise_is_used(settings: ReconstructionSettings, what: str) -> None:
    """Refuse a size of the noise that nothing looks at.

    Args:
        settings: what was given.
        what: why no λ is chosen with it.

    Raises:
        UsageError: it was given, and nothing does.
    """
    if settings.noise_sigma is not None and not settings.predict:
        raise UsageError(
            f"noise_sigma helps to choose λ or to predict the error, but {what} and no prediction is asked for; leave "
            "it out, or choose λ auto."
        )


def resolution_of(
    inverse: PseudoInverse,
    settings: ReconstructionSettings,
    recorded: RecordedConvolution | None = None,
    tone_curve: ToneCurve | None = None,
) -> Resolution:
    """Take what is solved from an inverse that was built before, and the rest from the settings.

    Raises:
        UsageError: a setting that would change nothing.
    """
    reason = "fixed in the factor"
    fixed = inverse.settings
    check_noise_is_used(settings, f"λ is {fixed.lam:g} here ({reason})")
    pairs = []
    if recorded is not None:
        pairs = [
            ("boundary", recorded.boundary, fixed.boundary),
            ("padding", format_padding(recorded.padding), format_padding(fixed.padding)),
            ("a layer with", recorded.layer.describe() or "stride 1", fixed.layer.describe() or "stride 1"),
        ]
    notes = tuple(
        f"deconv forward made this file with {name} {theirs}, but the factor was made for {name} {ours}; "
        "make sure that this is meant"
        for name, theirs, ours in pairs
        if theirs != ours
    )
    merged = {field.name: getattr(fixed, field.name) for field in fields(fixed)}
    merged |= {name: getattr(settings, name) for name in ("noise_sigma", "noise", "quantization", "predict", "seed")}
    light = choose_light(settings.light, tone_curve, None if recorded is None else recorded.light)
    _check_light_of_noise(settings, light.light)
    return Resolution(
        ResolvedSettings(**merged | {"light": light.light}),
        Reasons(reason, reason, light.reason),
        tone_curve=light.curve,
        notes=notes,
    )
