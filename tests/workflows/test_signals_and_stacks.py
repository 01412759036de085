"""λ, noise, predicted error and trust of signals and stacks, on scenes that are known."""

from __future__ import annotations

import math

import pytest
import torch
from cases import random

import deconv_cli
from deconv_cli.diagnostics.image_model import ImageModel
from deconv_cli.diagnostics.noise_spectrum import SpectrumBasis, draw_noise, fit_noise_spectrum
from deconv_cli.diagnostics.torus_modes import torus_modes
from deconv_cli.layer_options import LayerOptions
from deconv_cli.noise_model import FREQUENCIES, NoiseModel
from deconv_cli.operators.layer_convolution import LayerConvolution
from deconv_cli.settings import ReconstructionSettings
from deconv_cli.workflows.measurement import equivalent_convolution
from deconv_cli.workflows.pipeline import Pipeline

SIZES = {1: (500,), 3: (12, 18, 17)}
REACH = {1: 8, 3: 2}
WIDTHS = {1: (2.5,), 3: (1.2, 1.0, 1.0)}
SIGMA = 2.0


def scene(size, seed):
    """Bars that hide one another, or balls whose edges are as soft as pixels make them."""
    draw = torch.Generator().manual_seed(seed)
    image = torch.zeros(size, dtype=torch.float64)
    if len(size) == 1:
        for _ in range(40 * size[0]):
            half = float(0.7 * (torch.rand(1, generator=draw) + 0.01) ** (-1 / 1.5))
            center = float(torch.rand(1, generator=draw)) * size[0]
            bar = slice(max(round(center - half), 0), max(round(center + half), 0))
            image[bar] = 100 * torch.rand(1, generator=draw, dtype=torch.float64)
        return image[None]
    grid = torch.stack(torch.meshgrid(*[torch.arange(m, dtype=torch.float64) for m in size], indexing="ij"), dim=-1)
    for _ in range(60):
        center, width, height = (torch.rand(m, generator=draw, dtype=torch.float64) for m in (3, 3, 1))
        width = 1.5 + 5 * width
        distance = ((grid - center * torch.tensor(size)) / width).square().sum(-1)
        image += 100 * height * torch.sigmoid((1 - distance) * 2 * width.mean())
    return image[None]


def gaussian(widths, reach):
    steps = torch.arange(-reach, reach + 1, dtype=torch.float64)
    taps = torch.ones(())
    for width in widths:
        taps = taps[..., None] * torch.exp(-0.5 * (steps / width).square())
    return taps / taps.sum()


def blur(n):
    return gaussian(WIDTHS[n], REACH[n])


def observed(n, seed, sigma=SIGMA):
    """Data of the middle of a scene, and what is to be found there."""
    reach, size = REACH[n], SIZES[n]
    whole = scene(tuple(m + 2 * reach for m in size), seed)
    y = deconv_cli.forward(whole, blur(n), dimensions=n, padding="valid")
    truth = whole[(slice(None), *[slice(reach, -reach)] * n)]
    return (y + sigma * random(tuple(y.shape), seed=seed + 50)).float(), truth


@pytest.fixture(scope="module", params=[1, 3])
def restored(request):
    n = request.param
    results = []
    for seed in range(4 if n == 1 else 1):
        y, truth = observed(n, seed)
        results.append((y, truth, deconv_cli.invert(y, blur(n), dimensions=n, defaults="picture", truth=truth)))
    return n, results


def test_the_choice_of_lambda_is_near_the_best(restored):
    n, results = restored
    y, truth, found = results[0]
    errors = {1.0: float((found.image - truth).square().mean())}
    for ratio in (0.1, 0.3, 3.0, 10.0):
        settings = {"dimensions": n, "defaults": "picture", "lam": ratio * found.lam, "tolerance": 1e-4}
        errors[ratio] = float((deconv_cli.invert(y, blur(n), **settings).image - truth).square().mean())
    assert 10 * math.log10(errors[1.0] / min(errors.values())) <= 0.5
    assert errors[1.0] < 0.85 * float((y - truth).square().mean())
    assert found.boundary == "unknown"
    assert found.lambda_choice.sigma == pytest.approx(SIGMA, rel=0.25)


def test_the_predicted_error_is_that_of_most_bands(restored):
    n, results = restored
    pairs = zip(*(found.predicted_error.bands for *_, found in results), strict=True)
    ratios = [math.hypot(*(b.predicted for b in bands)) / math.hypot(*(b.actual for b in bands)) for bands in pairs]
    if n == 1:  # two samples of each signal lie in a band: take some bands together
        ratios = [sum(ratios[k : k + 4]) / 4 for k in range(0, len(ratios) - 3, 4)]
    assert sum(0.75 <= ratio <= 1.25 for ratio in ratios) >= 0.7 * len(ratios)
    predicted = results[0][2].predicted_error
    assert predicted.map.shape == results[0][1].shape
    assert predicted.trusted.shape == SIZES[n]
    assert predicted.trusted_share > 0.5
    assert results[0][2].is_trusted
    assert not results[0][2].residual_tests.finding.is_rejection


def drawn(size, slope, seed=4):
    """A scene of a power law, of brightness 100 ± 30."""
    coefficients = torch.zeros({1: 2, 3: 7}[len(size)], dtype=torch.float64)
    coefficients[-1] = slope
    one = torch.eye(1, dtype=torch.float64)
    image = ImageModel(coefficients, one, 1.0).draw(1, size, seed, torch.float64)[0]
    return 100 + 30 * image / image.std()


@pytest.mark.parametrize(("n", "size", "slope"), [(1, (4000,), -0.7), (3, (28, 32, 30), -1.7)])
def test_a_wrong_kernel_is_found_out(n, size, slope):
    x, right = drawn(size, slope), gaussian([1.5] * n, 5)
    settings = {"dimensions": n, "boundary": "circular"}
    y = deconv_cli.forward(x, right, **settings) + 0.5 * random((1, *size))
    # Where λ decides a part of the frequencies and the data the others.
    lam, findings = {1: 1e-2, 3: 1e-3}[n], {}
    for name, taps in (("right", right), ("wide", torch.ones((9,) * n, dtype=torch.float64) / 9**n)):
        settings |= {"defaults": "picture", "noise": "white", "lam": lam}
        findings[name] = deconv_cli.invert(y, taps, **settings).residual_tests.finding.name
    assert findings["wide"] == "WRONG_KERNEL"
    assert findings["right"] != "WRONG_KERNEL"


@pytest.mark.parametrize(("n", "size"), [(1, (4000,)), (3, (20, 24, 22))])
def test_the_spectrum_of_the_noise_is_found_and_white_noise_is_left_white(n, size):
    model = NoiseModel(2.0, tuple(2 / (1 + (f / 0.2) ** 6) + 0.02 for f in FREQUENCIES))
    noise = draw_noise(model, random((1, *size)), seed=1, n_axes=n)
    taps = gaussian([1.5] * n, 5)
    scene_seen = deconv_cli.forward(drawn(size, -0.7 - 0.5 * (n - 1)), taps, dimensions=n, boundary="circular")
    found = fit_noise_spectrum((scene_seen + 2 * noise)[None], SpectrumBasis.of(taps[None, None], size))
    ratios = [a * found.sigma**2 / (b * 4) for a, b in zip(found.spectrum[5:10], model.spectrum[5:10], strict=True)]
    assert all(0.5 < ratio < 2 for ratio in ratios)
    white = 100 + 3 * random((1, 1, *size))
    assert fit_noise_spectrum(white, SpectrumBasis.of(torch.ones((1, 1, *[1] * n)), size)).is_white


@pytest.mark.parametrize("torus", [(512,), (32, 40), (16, 18, 20)])
def test_images_are_drawn_with_the_power_of_their_model(torus):
    slope = {1: [2.0, -0.7], 2: [2.0, 0.3, 0.1, 0.0, 0.0, -1.2], 3: [2.0, 0.3, 0.0, 0.1, 0.0, 0.0, -1.7]}[len(torus)]
    model = ImageModel(torch.tensor(slope, dtype=torch.float64), torch.eye(1, dtype=torch.float64), 1.0)
    axes = tuple(range(-len(torus), 0))
    images = model.draw(60, torus, seed=1, dtype=torch.float64)
    power = torch.fft.rfftn(images, dim=axes, norm="ortho").abs().square().mean(dim=(0, 1))
    expected = model.power(torus)
    assert float(power.flatten()[0]) == pytest.approx(0, abs=1e-20)
    ratios = (power / expected).flatten()[1:]
    assert float(ratios.mean()) == pytest.approx(1, rel=0.05)
    assert float((ratios - 1).square().mean()) < 4 / 60
    assert model.exponent == pytest.approx(-slope[-1])


@pytest.mark.parametrize(
    ("n", "shape", "kernel"), [(1, (2, 60), (5,)), (3, (1, 8, 12, 10), (3, 3, 3)), (3, (2, 4, 12, 10), (3, 3))]
)
def test_what_a_page_shows_has_the_axes_of_the_data(n, shape, kernel):
    """The last is a kernel of two axes, which works on planes."""
    y, taps = random(shape).abs(), random(kernel).abs()
    pipeline = Pipeline(taps, ReconstructionSettings(dimensions=n, defaults="picture", lam=1e-2, predict=True))
    result = pipeline.reconstruct(y)
    assert result.image.shape == result.predicted_error.map.shape == y.shape
    found = pipeline.diagnose(result, y)
    assert found.residual.shape == y.shape
    assert {len(widths) for widths in found.resolution} == {len(kernel)}
    # A detail under other λ is one of a plane.
    assert bool(pipeline.vary_lambda(result, y)) == (len(kernel) > 1)


@pytest.mark.parametrize("options", [{"stride": 2}, {"groups": 2, "stride": (2, 1)}, {"dilation": 2}])
def test_the_gains_are_those_of_the_loudest_group(options: dict) -> None:
    groups = options.get("groups", 1)
    operator = LayerConvolution(
        random((4, 2, 3, 3), seed=1),
        (8, 6),
        LayerOptions(**options),
        padding=options.get("dilation", 1),
        boundary="circular",
    )
    x = random((3, *operator.input_shape), seed=2)
    residual = operator.forward(x)
    residual[:, : 4 - 4 // groups] = 0  # the last group is the one that leaves something over
    taps, data, estimate, _, _ = equivalent_convolution(operator, residual, x, residual)
    size = data.shape[-2:]
    modes = torus_modes(taps, tuple(size))
    matrix = operator.as_matrix().reshape(4, -1, 2 * groups, 48)[4 - 4 // groups :, :, 2 * groups - 2 :]
    values = torch.linalg.svdvals(matrix.flatten(2).flatten(0, 1))
    assert float(modes.sigma.max()) == pytest.approx(float(values[0]), rel=1e-9)
    squares = (modes.weights[..., None] * modes.sigma.square()).sum()
    assert float(squares) == pytest.approx(float(values.square().sum()), rel=1e-9)
    # Data and estimate are arranged alike: the torus maps the one to the other.
    whole = modes.u @ (modes.sigma[..., None] * (modes.vh @ torch.fft.rfft2(estimate[0]).permute(1, 2, 0)[..., None]))
    sizes = torch.linalg.vector_norm(whole[..., 0], dim=-1)
    expected = torch.linalg.vector_norm(torch.fft.rfft2(data[0]).permute(1, 2, 0), dim=-1)
    torch.testing.assert_close(sizes, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("options", [{"stride": 2}, {"dilation": 2, "groups": 2}, {"transposed": True, "stride": 2}])
def test_a_layer_is_diagnosed(options: dict) -> None:
    kernel, x = random((4, 4 // options.get("groups", 1), 3, 3), seed=4), 2 + random((4, 20, 18), seed=5)
    y = deconv_cli.forward(x, kernel, padding=1, **options)
    pipeline = Pipeline(kernel, ReconstructionSettings(lam=1e-3, padding=1, **options))
    diagnosis = pipeline.diagnose(pipeline.reconstruct(y), y)
    assert (diagnosis.resolution is None) == ("stride" in options)
    assert diagnosis.residual.shape == y.shape
    assert 0 < diagnosis.conditioning.degrees_of_freedom < diagnosis.conditioning.n_unknowns
    assert 0 <= diagnosis.null_share_of_data < 1
