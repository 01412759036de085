"""Power by gain of any linear operator by probing, and a model of images that is fitted by it.

After k steps of the bidiagonalization of Golub and Kahan from b, the operator is a bidiagonal matrix B of k columns.
The squares of its singular values with the first components of its left singular vectors are a Gauss quadrature: they
give bᵀf(AAᵀ)b, for every f at once, and the outermost singular values converge first (Golub and Meurant, Matrices,
Moments and Quadrature with Applications, 2010, chapters 6 and 7). From the data this gives their power. From random
signs it gives, in the mean, the number of singular values (Hutchinson, A stochastic estimator of the trace of the
influence matrix, Communications in Statistics 18, 1989). Without reorthogonalization, a singular value that rounding
finds twice has its weight in two parts.

The model of images is that of `image_model.py`, the same in all directions. Under a layer with a stride several
frequencies of the image meet in one of the data, so nothing is fitted by frequency: the images are A·G·P^½ applied to
white ones, and probing gives the likelihood of the data for each of a few powers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deconv_cli.diagnostics.image_model import ImageModel, common_factor
from deconv_cli.diagnostics.lambda_rules import PowerByGain, choose_by_rule, likeliest_noise
from deconv_cli.operators import synchronize
from deconv_cli.operators.axes import as_factor, crop, norm, safe_ratio, space_axes
from deconv_cli.operators.circulant import next_fast_size
from deconv_cli.operators.convolution import Convolution
from deconv_cli.operators.linear_operator import LinearOperator, Shape
from deconv_cli.regularizers import Penalty
from deconv_cli.solvers.cgls import iterate
from deconv_cli.solvers.normal_equations import NormalEquations
from deconv_cli.solvers.solution import StoppingRule
from deconv_cli.vocabulary import LambdaRule, Size

# Random signs to draw at least, over all probes; one probe if an image has more.
N_PROBED = 2**15
MAX_PROBES = 16
# Samples of a batch to use at most, but at least one image.
MAX_NUMBERS = 2**22
MEAN_RULE = StoppingRule(tolerance=1e-3, max_iterations=30)
EXPONENTS = (0.0, 0.5, 1.0, 1.5, 2.0)
"""How fast amplitudes may fall with frequency: p in 1 / θᵖ."""
MIN_STEPS, MAX_STEPS = 48, 128
"""Steps of the bidiagonalization, by the size of the image. Fewer overestimate noise that is far below the image."""
STEPPED = 2**24
"""Numbers to process in all steps, unless `MIN_STEPS` process more."""


class GolubKahan:
    """A bidiagonalization of A for each vector of a batch, shape `(B, *output_shape)`."""

    def __init__(self, operator: LinearOperator, start: Tensor) -> None:
        self._operator = operator
        self._n_outputs, self._n_inputs = len(operator.output_shape), len(operator.input_shape)
        self._size, self._u = self._unit(start, self._n_outputs)
        size, self._v = self._unit(operator.adjoint(self._u), self._n_inputs)
        self._diagonal, self._below = [size], list[Tensor]()

    def extend(self, n_steps: int) -> None:
        """Take more steps."""
        for _ in range(n_steps):
            ahead = self._operator.forward(self._v) - as_factor(self._diagonal[-1], self._u, self._n_outputs) * self._u
            size, self._u = self._unit(ahead, self._n_outputs)
            self._below.append(size)
            back = self._operator.adjoint(self._u) - as_factor(size, self._v, self._n_inputs) * self._v
            size, self._v = self._unit(back, self._n_inputs)
            self._diagonal.append(size)

    def quadrature(self) -> tuple[Tensor, Tensor, Tensor]:
        """Give squares of singular values with their weights, shape `(B, k)` each, and the weight of zero, `(B,)`."""
        below = torch.stack(self._below, dim=-1).double()
        diagonal = torch.stack(self._diagonal[:-1], dim=-1).double()
        matrices = torch.zeros(*below.shape, below.shape[-1] + 1, dtype=below.dtype, device=below.device).mT
        matrices = torch.diagonal_scatter(matrices, diagonal, dim1=-2, dim2=-1)
        matrices = torch.diagonal_scatter(matrices, below, offset=-1, dim1=-2, dim2=-1)
        u, values, _ = torch.linalg.svd(matrices, full_matrices=False)
        squares = self._size.double().square()
        weights = squares[:, None] * u[:, 0].square()
        return values.square(), weights, (squares - weights.sum(-1)).clamp_min(0)

    @staticmethod
    def _unit(vectors: Tensor, n_dims: int) -> tuple[Tensor, Tensor]:
        """Give the norms of vectors, and the vectors divided by them; zero stays zero."""
        sizes = norm(vectors, n_dims)
        return sizes, vectors * as_factor(safe_ratio(torch.ones_like(sizes), sizes), vectors, n_dims)


class ProbedPower:
    """Power by gain of data `(*batch, *output_shape)` under an operator; more steps make it more exact.

    The operator contains the prior's square root if the penalty is not the identity. Gains are measured by `sigma_max`.
    """

    def __init__(self, operator: LinearOperator, y: Tensor, sigma_max: float, *, seed: int = 0) -> None:
        n_numbers = math.prod(operator.output_shape)
        images = y.reshape(-1, *operator.output_shape)[: max(1, MAX_NUMBERS // n_numbers)]
        n_probes = min(MAX_PROBES, -(-N_PROBED // n_numbers))
        probes = synchronize.normal_numbers(y, (n_probes, *operator.output_shape), seed).sign()
        self._sigma_max, self._n_images, self._n_data = sigma_max, len(images), len(images) * n_numbers
        self._process = GolubKahan(operator, torch.cat([images, probes]))

    def extend(self, n_steps: int) -> None:
        """Take more steps."""
        self._process.extend(n_steps)

    def by_gain(self) -> PowerByGain:
        """Give power and numbers at the gains of the quadrature."""
        values, weights, rest = self._process.quadrature()
        ratio, n = values / self._sigma_max**2, self._n_images
        share = n / (len(weights) - n)
        return PowerByGain(
            ratio=ratio[:n].flatten(),
            power=weights[:n].flatten(),
            outside=rest[:n].sum(),
            count_ratio=ratio[n:].flatten(),
            count=share * weights[n:].flatten(),
            n_data=float(self._n_data),
        )


class RandomImages(LinearOperator):
    """Turn white images on a torus into images whose amplitude depends on frequency, cropped to a size.

    The real amplitude is at the frequencies of `rfftn`; `channels` is G with GGᵀ the covariance of the channels.
    """

    def __init__(self, amplitude: Tensor, channels: Tensor, torus: Size, size: Size) -> None:
        self._filter, self._channels, self._torus, self._size = amplitude, channels, torus, size
        self.input_shape, self.output_shape = (len(channels), *torus), (len(channels), *size)
        self.dtype, self.device = amplitude.dtype, amplitude.device

    @classmethod
    def of_model(cls, model: ImageModel, size: Size, like: Tensor) -> RandomImages:
        """Make images of a model, in the dtype of `like`."""
        torus = roomy_torus(size)
        return cls(model.power(torus).sqrt().to(like.dtype), model.channels.to(like.dtype), torus, size)

    @classmethod
    def of_penalty(cls, penalty: Penalty, shape: Shape, like: Tensor) -> RandomImages:
        """Make images of shape `(C, *size)` that are the likelier the smaller ‖Lx‖² is, and of mean zero."""
        torus = roomy_torus(shape[1:])
        symbol = penalty.symbol(torus, like.dtype, like.device)
        is_seen = symbol > torch.finfo(like.dtype).eps * symbol.max()
        amplitude = torch.where(is_seen, symbol, 1).rsqrt() * is_seen
        return cls(amplitude, torch.eye(shape[0], dtype=like.dtype, device=like.device), torus, shape[1:])

    def forward(self, x: Tensor) -> Tensor:
        """Filter and mix `x` of shape `(*batch, C, *torus)`, and crop it to the frame."""
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


def roomy_torus(size: Size) -> Size:
    """Give the size of a torus whose images are cropped to a size, so that opposite edges are independent."""
    return tuple(next_fast_size(n + n // 4) for n in size)


class ConstantImages(LinearOperator):
    """Turn one number for each channel, shape `(C,)`, into a constant image of a shape `(C, *size)`."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.input_shape, self.output_shape = shape[:1], shape

    def forward(self, x: Tensor) -> Tensor:
        """Repeat the numbers `(*batch, C)` over all pixels."""
        n_axes = len(self.output_shape) - 1
        return x.reshape(*x.shape, *[1] * n_axes).expand(*x.shape, *self.output_shape[1:])

    def adjoint(self, y: Tensor) -> Tensor:
        """Sum the pixels of images `(*batch, C, *size)`."""
        return y.sum(dim=space_axes(len(self.output_shape) - 1))


def constant_part(operator: LinearOperator, y: Tensor) -> tuple[Tensor, Tensor]:
    """Find the constant image that fits data `(*batch, *output_shape)` best: its channels, and its outputs.

    If the outputs leave much of the image open, the mean of an estimate is not the mean of the image.
    """
    constants = operator @ ConstantImages(operator.input_shape)
    values = iterate(NormalEquations(constants, y), MEAN_RULE).value
    return values, constants.forward(values)


def fit_probed_image_model(
    operator: Convolution,
    y: Tensor,
    estimate: Tensor,
    *,
    sigma: float | None = None,
    least_sigma: float = 0.0,
    seed: int = 0,
) -> ImageModel:
    """Fit the model to the data `(C_out, *output_size)` of one image, without the bias.

    The estimate `(C_in, *size)` shows the covariance of the channels. By default σ is the most likely value, in the
    units of the samples, and at least `least_sigma`. The seed is for the random signs.
    """
    channels = common_factor(estimate, len(estimate), estimate.ndim - 1)
    mean, constant = constant_part(operator, y)
    data = y - constant
    # The scale of the gain is that of images whose pixels vary by one.
    scale = operator.spectrum.sigma_max
    n_steps = max(MIN_STEPS, min(MAX_STEPS, STEPPED // math.prod(operator.output_shape)))
    fits = []
    for exponent in EXPONENTS:
        model = ImageModel.isotropic(exponent, channels, operator.input_shape[1:])
        images = RandomImages.of_model(model, operator.input_shape[1:], y)
        probed = ProbedPower(operator @ images, data, scale, seed=seed)
        probed.extend(n_steps)
        power = probed.by_gain()
        curve = choose_by_rule(LambdaRule.ML, power, 0.0)
        noise = synchronize.as_number(likeliest_noise(power, curve.chosen))
        fits.append((min(curve.values), noise, noise / (scale * curve.chosen**0.5), model))
    _, noise, spread, model = min(fits, key=lambda fit: fit[0])
    coefficients = model.coefficients.clone()
    coefficients[0] += 2 * math.log(max(spread, 1e-30))
    return ImageModel(coefficients, channels, max(noise, least_sigma) if sigma is None else sigma, mean=mean)
