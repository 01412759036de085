"""Every choice that a reconstruction has, once: the keyword arguments of the library and the options of the command.

Nothing here imports torch. Open settings are filled in from the input; `ResolvedSettings` is the same record with a
value for everything.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from typing import Any, ClassVar, Literal, Self

from deconv_cli.errors import UsageError
from deconv_cli.layer_options import PLAIN, TRANSPOSED, LayerOptions, PerAxis
from deconv_cli.noise_model import NoiseModel
from deconv_cli.parts import BOUNDARIES, OWN_SETTINGS, PENALTIES, ShownInNotebook, method_names, prior_names
from deconv_cli.vocabulary import (
    MAX_SEED,
    SPELLED_OUT,
    ArithmeticDType,
    InputKind,
    LambdaRule,
    Light,
    PaddingLike,
    as_typed,
    check_dimensions,
    check_name,
    check_padding,
    check_spacing,
    format_lambda,
    is_whole,
    option_name,
    parse_word,
    shortened,
)

MAX_ITERATIONS = 2000

Auto = Literal["auto"]
NoiseKindLike = Literal["white", "auto"]


@dataclass(frozen=True, kw_only=True)
class ReconstructionSettings(ShownInNotebook):
    """How a convolution is to be undone; `None` or `auto` lets the input decide.

    Attributes:
        defaults: values for open settings: those for a `tensor` or for a `picture`. `None` means `picture` for
            Richardson–Lucy, which counts light, and else `tensor`.
        dimensions: axes of space of the images: 1 for signals, 2 for pictures, 3 for stacks. A kernel of fewer axes
            is applied to each plane or line. `None` follows the kernel: one axis means signals, two to four mean
            pictures, and five mean stacks.
        padding: reach of the kernel outside the image; `None` follows the input's record, else `same`.
        stride: pixels from one output to the next, or of a transposed layer from one image pixel to the next in the
            output; one number, or one for each axis. `None` follows the input's record, else 1; likewise the next four.
        dilation: pixels from one tap to the next; one number, or one for each axis.
        groups: sets of channels that the kernel does not mix.
        transposed: the layer is a transposed convolution, as `torch.nn.ConvTranspose2d`.
        output_padding: of a transposed layer, pixels by which its output is larger than the smallest possible.
        input_size: pixels of the image along each axis, if a stride allows several sizes; `None` means stride × output
            if that is one of them, else the smallest.
        boundary: the boundary rule; `auto` follows the input's record, else `unknown` for a picture and `zero` for a
            tensor.
        light: `linear` undoes the tone curve of the samples first and applies it again last, so that λ, noise and
            errors are of light; `stored` uses samples as they are; `auto` follows the input's record, else `linear` if
            a tone curve is known.
        lam: λ ≥ 0 in ‖Ax − y‖² + λσ²max‖Lx‖², or one for each channel if the kernel does not mix them; `auto` chooses
            it from the data; `None` means `auto` for a picture and 1e-6 for a tensor.
        lambda_rule: the rule that chooses λ; `None` means `gcv`, and `whiteness` for light of 8-bit samples if it
            wants more than ten times as large a λ.
        noise_sigma: standard deviation of the noise, in units of the samples, or of light on their scale; `None` or
            `auto` estimates it.
        noise: kind of the noise: `white`, `auto` to find it from the data, a model, or a model for each channel if the
            kernel does not mix them; `None` means `auto` for a picture and `white` for a tensor. Full samples of 8 or
            16 bits are then lower bounds, but measurements for `white`.
        penalty: the operator L; `None` means `gradient` for a picture, if the kernel allows it, and else `identity`.
        spacing: distances of neighboring pixels along each axis of space, in any unit: differences in the penalty and
            in the total variation are divided by them, the smallest being 1. `None` means equal distances.
        nonnegative: no pixel of the estimate is below zero.
        prior: `quadratic` for the penalty above, or another objective; `auto` means `photo` for 8-bit pictures with a
            tone curve, unless a setting of the quadratic prior such as `lam` is given, and else `quadratic`.
        weight: of the total variation or of another prior, in units of the samples; `auto` or `None` follows the noise.
        strength: for prior `photo`, a factor on the noise: smoother above 1, sharper below. `None` means 1.
        gain: for Richardson–Lucy, units of the samples a count; `auto` estimates it, `None` holds samples out instead.
        iterations: for Richardson–Lucy and the total variation, a fixed number of iterations.
        method: the solver; `auto` chooses the cheapest.
        tolerance: the certificate at which an iteration stops; `None` means the solver's own.
        max_iterations: largest number of iterations.
        max_memory: bytes that building and applying the inverse may take; `None` for all free memory.
        dtype: precision of the arithmetic; `None` means float64 for float64 data, else float32.
        predict: also predict the error of every pixel.
        seed: of the random numbers that predict the error; `None` for 0.

    Raises:
        UsageError: an invalid value, or settings that contradict one another.
    """

    defaults: InputKind | None = None
    dimensions: int | None = None
    padding: PaddingLike | None = None
    stride: PerAxis | None = None
    dilation: PerAxis | None = None
    groups: int | None = None
    transposed: bool | None = None
    output_padding: PerAxis | None = None
    input_size: tuple[int, ...] | None = None
    boundary: str = "auto"
    light: Light | Auto = "auto"
    lam: float | tuple[float, ...] | Auto | None = None
    lambda_rule: LambdaRule | None = None
    noise_sigma: float | None = None
    noise: NoiseKindLike | NoiseModel | tuple[NoiseModel, ...] | None = None
    penalty: str | None = None
    spacing: tuple[float, ...] | None = None
    nonnegative: bool = False
    prior: str = "auto"
    weight: float | Auto | None = None
    strength: float | None = None
    gain: float | Auto | None = None
    iterations: int | None = None
    method: str = "auto"
    tolerance: float | None = None
    max_iterations: int = MAX_ITERATIONS
    max_memory: int | None = None
    dtype: ArithmeticDType | None = None
    predict: bool = False
    seed: int | None = None

    _is_resolved: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self._is_resolved:
            self._check()

    def __repr__(self) -> str:
        """Name the settings that differ from their defaults, as they are typed."""
        given = ", ".join(f"{name}={as_typed(name, value)}" for name, value in self.changed.items())
        return f"{type(self).__name__}({given})"

    @property
    def changed(self) -> dict[str, Any]:
        """The settings that differ from their defaults."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) != f.default}

    @classmethod
    def of(cls, **values: Any) -> Self:  # noqa: ANN401
        """Make settings of keyword arguments.

        Raises:
            UsageError: an argument that is no setting, or an invalid value.
        """
        known = [field.name for field in fields(cls)]
        unknown = sorted(values.keys() - set(known))
        if unknown:
            raise UsageError(f"there is no setting '{unknown[0]}'; the settings are {', '.join(known)}.")
        found = cls.trusted(**values)
        found._check()
        return found

    @classmethod
    def trusted(cls, **values: Any) -> Self:  # noqa: ANN401
        """Make settings of values that were checked before, and of what an input decides."""
        found = object.__new__(cls)
        for field in fields(cls):
            found._set(field.name, values.get(field.name, field.default))
        return found

    @property
    def layer(self) -> LayerOptions:
        """Stride, dilation, groups and direction; settings that were not given are those of a plain convolution."""
        return self.layer_over(PLAIN)

    def layer_over(self, known: LayerOptions) -> LayerOptions:
        """Return a known layer, with the given options replaced."""
        given = {f.name: getattr(self, f.name) for f in fields(LayerOptions) if getattr(self, f.name) is not None}
        return replace(known, **given)

    @property
    def objective(self) -> str:
        """The prior that decides what is minimized: `quadratic`, or the name of one in `PRIORS`."""
        if self.method == "richardson-lucy":
            return "richardson-lucy"
        if self.nonnegative:
            return "nonnegative"
        if self.prior == "auto":
            return "quadratic" if self.strength is None else "photo"
        return self.prior

    @property
    def leaves_prior_open(self) -> bool:
        """Whether the kind of the input may choose the prior: nothing was given that belongs to one of them."""
        belonging = (self.lam, self.lambda_rule, self.penalty, self.spacing, self.noise)
        is_open = self.prior == "auto" and self.objective == "quadratic"
        return is_open and all(value is None for value in belonging)

    @property
    def is_linear(self) -> bool:
        """Whether the estimate is linear in the data."""
        return self.objective == "quadratic"

    @property
    def predicts(self) -> bool:
        """Whether the error of the estimate can be predicted, and full samples may count as lower bounds."""
        return self.objective in ("quadratic", "photo")

    @property
    def objective_name(self) -> str:
        """What is minimized, or by which method, in words."""
        names = {"richardson-lucy": "method richardson-lucy", "nonnegative": "a nonnegative estimate"}
        return names.get(self.objective, f"prior {self.objective}")

    @property
    def stops_at_noise(self) -> bool:
        """Whether an iteration without λ stops by itself at the noise, since neither steps nor a weight are given."""
        return self.objective in ("richardson-lucy", "tv") and self.iterations is None and self.weight in (None, "auto")

    @property
    def has_lambda(self) -> bool:
        """Whether there is a quadratic penalty, and so a λ."""
        return self.objective in ("quadratic", "nonnegative")

    def as_options(self) -> dict[str, object]:
        """Return the settings that differ from their defaults as options of the command line, by option name."""
        given = {f.name: getattr(self, f.name) for f in fields(ReconstructionSettings)}
        defaults = {f.name: f.default for f in fields(ReconstructionSettings)}
        defaults |= {f.name: f.default for f in fields(LayerOptions) if given[f.name] is not None}
        return {option_name(name): as_typed(name, v) for name, v in given.items() if v != defaults[name]}

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _check(self) -> None:
        """Refuse bad values of settings by `UsageError`, and bring the others into one form."""
        self._check_words()
        self._check_layer()
        self._check_numbers()
        for sentence in self._contradictions():
            raise UsageError(sentence)

    def _check_words(self) -> None:
        left_open = () if self._is_resolved else ("auto",)
        if self.defaults is not None:
            self._set("defaults", parse_word(InputKind, self.defaults, "defaults"))
        self._set("light", check_name((*left_open, *Light), self.light, "light"))
        if self.boundary not in left_open:
            self._set("boundary", BOUNDARIES.check(self.boundary))
        if self.penalty is not None:
            self._set("penalty", PENALTIES.check(self.penalty))
        if self.lambda_rule is not None:
            self._set("lambda_rule", parse_word(LambdaRule, self.lambda_rule, "lambda_rule"))
        if self.dtype is not None:
            word = str(self.dtype).removeprefix("torch.")
            self._set("dtype", parse_word(ArithmeticDType, word, "dtype"))
        if (instead := OWN_SETTINGS.get(str(self.prior))) is not None:
            raise UsageError(f"prior={self.prior} does not exist; use {instead} instead.")
        self._set("prior", check_name((*left_open, *prior_names()), self.prior, "prior"))
        self._set("method", check_name(method_names(), self.method, "method"))
        if self.padding is not None:
            self._set("padding", check_padding(self.padding))

    def _check_layer(self) -> None:
        """Bring the options of a layer into the form of `LayerOptions`, and refuse what torch would."""
        for name in (field.name for field in fields(LayerOptions)):
            value = getattr(self, name)
            if value is not None:
                # Output padding is refused where it meets a layer that is not transposed, which may be known later.
                known = PLAIN if name != "output_padding" else TRANSPOSED
                self._set(name, getattr(replace(known, **{name: value}), name))
        size: Any = self.input_size
        if size is None:
            return
        numbers: tuple[Any, ...] = tuple(size) if isinstance(size, tuple | list) else (size,)
        if not numbers or not all(is_whole(n) and int(n) >= 1 for n in numbers):
            raise UsageError(f"input_size must be a positive whole number for each axis of space, but is {size!r}.")
        self._set("input_size", tuple(int(n) for n in numbers))

    def _check_numbers(self) -> None:
        given: object = self.noise_sigma
        if given == "auto":
            self._set("noise_sigma", None)
        own_lams = "" if self._is_resolved else ", or one for each channel"
        self._take("lam", Real, f"auto, zero or a positive number{own_lams}", lambda v: v >= 0)
        self._take("noise_sigma", Real, "auto or a positive number", lambda v: v > 0)
        self._check_noise()
        self._set("dimensions", check_dimensions(self.dimensions))
        self._set("spacing", check_spacing(self.spacing))
        self._take("weight", Real, "auto or a positive number", lambda v: v > 0)
        self._take("strength", Real, "a positive number", lambda v: v > 0)
        self._take("gain", Real, "auto or a positive number", lambda v: v > 0)
        self._take("iterations", Integral, "a positive whole number", lambda v: v >= 1)
        self._take("tolerance", Real, "a number between 0 and 1", lambda v: 0 < v < 1)
        self._take("max_iterations", Integral, "a positive whole number", lambda v: v >= 1)
        self._take("max_memory", Integral, "a positive whole number of bytes", lambda v: v >= 1)
        self._take("seed", Integral, f"a whole number from 0 to {MAX_SEED}", lambda v: 0 <= v <= MAX_SEED)
        for name in ("nonnegative", "predict"):
            if not isinstance(getattr(self, name), bool):
                raise UsageError(f"{name} must be True or False, but is {getattr(self, name)!r}.")

    def _check_noise(self) -> None:
        given: object = self.noise
        models = given if isinstance(given, tuple) and given else (given,)
        if given not in (None, "white", "auto") and not all(isinstance(model, NoiseModel) for model in models):
            raise UsageError(
                f"noise must be white, auto or, in Python, a NoiseModel, but is {given}; noise_sigma gives a known "
                "size."
            )

    def _take(self, name: str, kind: type, wanted: str, holds: Callable[[Any], bool]) -> None:
        """Turn a number of any library into a plain one, or each of several, and refuse it outside its range."""
        value: Any = getattr(self, name)
        if value is None and name != "max_iterations" and not (name == "lam" and self._is_resolved):
            return
        if isinstance(value, str) and value == "auto" and "auto" in wanted:
            return
        are_several = isinstance(value, tuple) and len(value) > 0 and "for each" in wanted
        numbers = value if are_several else (value,)
        for number in numbers:
            is_number = isinstance(number, kind) and not isinstance(number, bool)
            if not is_number or not math.isfinite(number) or not holds(number):
                raise UsageError(f"{SPELLED_OUT.get(name, name)} must be {wanted}, but is {shortened(repr(number))}.")
        plain = tuple(int(number) if kind is Integral else float(number) for number in numbers)
        self._set(name, plain if are_several else plain[0])

    def _contradictions(self) -> Iterator[str]:
        """Find settings that contradict one another, or that would change nothing; a sentence each."""
        objective, is_rl, name = self.objective, self.method == "richardson-lucy", self.objective_name
        if self.weight is not None and objective in ("quadratic", "nonnegative", "richardson-lucy"):
            yield 'weight is for a prior such as tv, which was not given; add prior="tv", or use lam instead.'
        if self.gain is not None and not is_rl:
            yield 'gain is for method="richardson-lucy" only; use that method, or leave it out.'
        if self.strength is not None and objective != "photo":
            yield 'strength is for prior="photo" only; use that prior, or leave strength out.'
        if self.iterations is not None and (objective not in ("richardson-lucy", "tv") or self.gain is not None):
            yield (
                'iterations is for prior="tv", or for method="richardson-lucy" if you leave gain out; use one of '
                "them, or leave iterations out."
            )
        has_prior = self.prior not in ("auto", "quadratic")
        if is_rl and (self.nonnegative or has_prior):
            what = "nonnegative=True, which always holds for its estimates,"
            what = what if self.nonnegative else f"prior={self.prior}"
            yield f"method richardson-lucy takes no prior, but {what} was given; leave it out."
        if self.nonnegative and has_prior:
            yield f"prior={self.prior} and nonnegative=True do not go together; leave one of them out."
        if self.noise_sigma is not None and (is_rl or isinstance(self.weight, float)):
            yield "noise_sigma has no effect here, since neither a weight nor λ follows from the noise; leave it out."
        if self.spacing is not None and self.has_lambda and self.penalty == "identity":
            yield "spacing divides differences between pixels, but penalty identity uses no differences; leave it out."
        if not self._is_resolved:  # there λ and penalty have a value, whether or not the objective looks at them
            if not self.has_lambda and (self.lam is not None or self.lambda_rule is not None):
                given = "lam" if self.lam is not None else "lambda_rule"
                yield f"{name} has no λ, but {given}={getattr(self, given)} was given; leave it out."
            if not self.has_lambda and self.penalty is not None:
                yield f"{name} has no other penalty, but penalty={self.penalty} was given; leave it out."
            if self.lambda_rule is not None and self.lam is not None and not isinstance(self.lam, str):
                shown = format_lambda(self.lam)
                yield f'lambda_rule chooses λ, but λ is {shown} here; use lam="auto", or leave one of them out.'
        if self.predict and not self.predicts:
            yield (
                f"only the priors quadratic and photo predict an error, so {name} allows no error map or trust "
                "mask; leave them out, or use one of these priors."
            )
        if self.seed is not None and not self.predict:
            yield "seed is for the predicted error, but predict is not set; leave it out, or add predict=True."


@dataclass(frozen=True, kw_only=True, repr=False)
class ResolvedSettings(ReconstructionSettings):
    """The same settings, with a value for everything that the input decides. Only `of` checks the values.

    Attributes:
        wraps: whether the image is a torus along each axis, whatever the boundary: a block of a larger picture is one
            along the axes that it is cut along; empty for no axis.
        origin: of a block, the place of its first pixel in the picture along each axis of space; empty for a picture.
        noise_levels: of prior photo, the noise of each channel in stored values, found for a whole picture so that its
            blocks agree; else empty.
    """

    defaults: InputKind = InputKind.TENSOR
    padding: PaddingLike = "same"
    stride: PerAxis = 1
    dilation: PerAxis = 1
    groups: int = 1
    transposed: bool = False
    output_padding: PerAxis = 0
    boundary: str = "zero"
    light: Light = Light.STORED
    lam: float = 0.0
    penalty: str = "identity"
    prior: str = "quadratic"
    wraps: tuple[bool, ...] = ()
    origin: tuple[int, ...] = ()
    noise_levels: tuple[float, ...] = ()

    _is_resolved: ClassVar[bool] = True

    def as_options(self) -> dict[str, object]:
        """Give the settings as options; λ, which is always among them, says that the prior is the quadratic one."""
        options = super().as_options()
        return {name: value for name, value in options.items() if (name, value) != ("--prior", "quadratic")}
