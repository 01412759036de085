"""A statistical model of an image and its noise, fitted to the data of any linear operator.

As in `image_model.py` the power of the image falls with a power of frequency, the same in all directions, and its
channels have one covariance. Under a layer with a stride several frequencies of the image meet in one of the data, so
nothing is fitted by frequency: the images are A·G·P^½ applied to white ones, and the likelihood of the data under that
operator, for each of a few powers, is computed by probing (`golub_kahan.py`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deconv_cli.diagnostics.golub_kahan import ProbedPower
from deconv_cli.diagnostics.image_model import ImageModel, common_factor
from deconv_cli.diagnostics.lambda_rules import choose_by_rule, likeliest_noise
from deconv_cli.operators import synchronize
from deconv_cli.operators.axes import crop, space_axes
from deconv_cli.operators.circulant import next_fast_size
from deconv_cli.operators.convolution import Convolution
from deconv_cli.operators.linear_operator import LinearOperator, Shape
from deconv_cli.regularizers import Penalty
from deconv_cli.solvers.cgls import iterate
from deconv_cli.solvers.normal_equations import NormalEquations
from deconv_cli.solvers.solution import StoppingRule
from deconv_cli.vocabulary import LambdaRule, Size

MEAN_RULE = StoppingRule(tolerance=1e-3, max_iterations=30)
"""Of what finds the means of the channels."""
EXPONENTS = (0.0, 0.5, 1.0, 1.5, 2.0)
"""How fast amplitudes may fall with frequency: not at all, as those of white images, or as 1 / θ², for instance."""
MIN_STEPS, MAX_STEPS = 48, 128
"""Of the bidiagonalization, by the size of the image. With fewer steps noise that is far below the image is taken to be
larger than it is, and amplitudes to fall less."""
STEPPED = 2**24
"""So many numbers are gone through in all steps, where the least number of them does not take more."""


class RandomImages(LinearOperator):
    """Turn white images on a torus into images whose amplitude depends on frequency, cut to a size.

    Args:
        amplitude: at the frequencies of `rfftn` on the torus, real.
        channels: G with GGᵀ the covariance of the channels, shape `(C, C)`.
        torus: its size.
        size: of the images.
    """

    def __init__(self, amplitude: Tensor, channels: Tensor, torus: Size, size: Size) -> None:
        self._filter, self._channels, self._torus, self._size = amplitude, channels, torus, size
        self.input_shape, self.output_shape = (len(channels), *torus), (len(channels), *size)
        self.dtype, self.device = amplitude.dtype, amplitude.device

    @classmethod
    def of_model(cls, model: ImageModel, size: Size, like: Tensor) -> RandomImages:
        """Give images of a model, by its coefficients and channels, in the dtype of `like`."""
        torus = _larger(size)
        return cls(model.power(torus).sqrt().to(like.dtype), model.channels.to(like.dtype), torus, size)

    @classmethod
    def of_penalty(cls, penalty: Penalty, shape: Shape, like: Tensor) -> RandomImages:
        """Give images of shape `(C, *size)` that are the likelier the smaller ‖Lx‖² is, and of mean zero."""
        torus = _larger(shape[1:])
        symbol = penalty.symbol(torus, like.dtype, like.device)
        is_seen = symbol > torch.finfo(like.dtype).eps * symbol.max()
        amplitude = torch.where(is_seen, symbol, 1).rsqrt() * is_seen
        return cls(amplitude, torch.eye(shape[0], dtype=like.dtype, device=like.device), torus, shape[1:])

    def forward(self, x: Tensor) -> Tensor:
        """Filter and mix `x` of shape `(*batch, C, *torus)`, and cut a frame out."""
        mixed = torch.einsum("ij,...jn->...in", self._channels, x.flatten(-len(self._torus))).unflatten(-1, self._torus)
        return crop(self._filtered(mixed), (0,) * len(self._size), self._size)

    def adjoint(self, y: Tensor) -> Tensor:
        """Apply the transpose to `y` of shape `(*batch, C, *size)`."""
        whole = y.new_zeros(*y.shape[: -len(self._size)], *self._torus)
        crop(whole, (0,) * len(self._size), self._size).copy_(y)
        flat = self._filtered(whole).flatten(-len(self._torus))
        return torch.einsum("ji,...jn->...in", self._channels, flat).unflatten(-1, self._torus)

    def _filtered(self, images: Tensor) -> Tensor:
        axes = space_axes(len(self._torus))
        return torch.fft.irfftn(torch.fft.rfftn(images, dim=axes) * self._filter, s=self._torus, dim=axes)


def _larger(size: Size) -> Size:
    """Give the size of a torus that images are cut out of: at their edges they do not know one another."""
    return tuple(next_fast_size(n + n // 4) for n in size)


class ConstantImages(LinearOperator):
    """Turn one number for each channel, shape `(C,)`, into an image that is constant.

    Args:
        shape: of the images, `(C, *size)`.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.input_shape, self.output_shape = shape[:1], shape

    def forward(self, x: Tensor) -> Tensor:
        """Repeat the numbers `(*batch, C)` over all pixels."""
        n_axes = len(self.output_shape) - 1
        return x.reshape(*x.shape, *[1] * n_axes).expand(*x.shape, *self.output_shape[1:])

    def adjoint(self, y: Tensor) -> Tensor:
        """Add up the pixels of images `(*batch, C, *size)`."""
        return y.sum(dim=space_axes(len(self.output_shape) - 1))


def constant_part(operator: LinearOperator, y: Tensor) -> Tensor:
    """Give what the constant image that comes nearest to the data makes of them, of the shape of `y`.

    The mean of an estimate is none of the image where the outputs leave much open.

    Args:
        operator: A.
        y: shape `(*batch, *output_shape)`.
    """
    constants = operator @ ConstantImages(operator.input_shape)
    found = iterate(NormalEquations(constants, y), MEAN_RULE)
    return constants.forward(found.value)


def fit_probed_image_model(
    operator: Convolution,
    y: Tensor,
    estimate: Tensor,
    *,
    sigma: float | None = None,
    least_sigma: float = 0.0,
    seed: int = 0,
) -> ImageModel:
    """Fit the model to the data of one image.

    Args:
        operator: A.
        y: shape `(C_out, *output_size)`, without the bias.
        estimate: what was restored from them, shape `(C_in, *size)`: shows how much its channels have in common.
        sigma: standard deviation of the noise in the units of the samples; by default the likeliest.
        least_sigma: an estimate is taken to be at least this, as that of rounding.
        seed: of what is drawn to probe the operator.
    """
    channels = common_factor(estimate, len(estimate), estimate.ndim - 1)
    data = y - constant_part(operator, y)
    # The scale of the gain is that of images whose pixels vary by one.
    scale = operator.spectrum.sigma_max
    n_steps = max(MIN_STEPS, min(MAX_STEPS, STEPPED // math.prod(operator.output_shape)))
    fits = []
    for exponent in EXPONENTS:
        model = ImageModel.isotropic(exponent, channels, operator.input_shape[1:])
        probed = ProbedPower(
            operator @ RandomImages.of_model(model, operator.input_shape[1:], y), data, scale, seed=seed
        )
        probed.extend(n_steps)
        power = probed.by_gain()
        curve = choose_by_rule(LambdaRule.ML, power, 0.0)
        noise = synchronize.as_number(likeliest_noise(power, curve.chosen))
        fits.append((min(curve.values), noise, noise / (scale * curve.chosen**0.5), model))
    _, noise, spread, model = min(fits, key=lambda fit: fit[0])
    coefficients = model.coefficients.clone()
    coefficients[0] += 2 * math.log(max(spread, 1e-30))
    return ImageModel(coefficients, channels, max(noise, least_sigma) if sigma is None else sigma)
