"""`deconv_cli.invert` with a constraint, a prior or counts: results, the weight of TV, notes and refusals."""

from __future__ import annotations

import pytest
import torch
from cases import random

import deconv_cli
from deconv_cli.diagnostics.noise_spectrum import draw_noise
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.kernels.sources.formula import make_kernel
from deconv_cli.noise_model import FREQUENCIES, NoiseModel
from deconv_cli.solvers.solution import Status
from deconv_cli.workflows.noise_of_data import find_noise_of_channels
from deconv_cli.workflows.trust import DoubtReason

KERNEL = torch.outer(torch.tensor([1.0, 2, 3, 2, 1]), torch.tensor([1.0, 2, 1])) / 36


def stars(channels=1, noise=0.0, size=(24, 22)):
    x = (random((channels, *size), seed=1) - 1.5).clamp_min(0).float()
    y = deconv_cli.forward(x, KERNEL)
    return x, y + noise * random(tuple(y.shape), seed=2).float()


def test_a_nonnegative_estimate_that_does_not_finish_names_another_method():
    y = torch.rand(1, 20, 20, generator=torch.Generator().manual_seed(0))
    result = deconv_cli.invert(y, KERNEL, lam=1e-6, nonnegative=True, max_iterations=1)
    assert result.doubts[0].sentence.endswith('method="richardson-lucy" is faster, and often better')


def test_nonnegative_is_nearer_to_stars_and_says_what_it_minimized():
    x, y = stars(channels=3, noise=0.02)
    free = deconv_cli.invert(y, KERNEL, lam=1e-3)
    bound = deconv_cli.invert(y, KERNEL, lam=1e-3, nonnegative=True)
    assert free.image.min() < 0
    assert bound.image.min() == 0
    assert (bound.image - x).norm() < 0.8 * (free.image.clamp_min(0) - x).norm()
    assert "x ≥ 0" in bound.solution.objective
    assert "x ≥ 0" not in free.solution.objective
    assert bound.well_posedness == free.well_posedness
    assert bound.lam == 1e-3
    assert bound.solution.certificate <= 1e-4


def test_total_variation_with_a_weight_from_the_noise_or_by_hand():
    x = torch.zeros(2, 40, 40)
    x[0, 10:30, 8:25] = 1
    x[1, 20:, :] = 2
    y = deconv_cli.forward(x, KERNEL, boundary="replicate") + 0.03 * random((2, 40, 40), seed=3).float()
    result = deconv_cli.invert(y, KERNEL, boundary="unknown", prior="tv", tolerance=1e-3)
    assert result.solution.status is Status.CONVERGED
    assert result.residual.root_mean_square == pytest.approx(0.03, rel=0.15)
    assert result.lam is result.penalty is result.well_posedness is None
    again = deconv_cli.invert(y, KERNEL, boundary="unknown", prior="tv", tolerance=1e-3, weight=result.solution.weight)
    assert (again.image - result.image).abs().max() < 0.02
    smooth = deconv_cli.invert(y, KERNEL, boundary="unknown", lam=1e-2, penalty="gradient")
    assert (result.image - x).norm() < 0.8 * (smooth.image - x).norm()


def test_a_known_noise_takes_the_place_of_an_estimated_one():
    y = deconv_cli.forward(torch.ones(1, 20, 20).cumsum(-1), KERNEL, boundary="replicate")
    y = y + 0.1 * random((1, 20, 20), seed=3).float()
    result = deconv_cli.invert(y, KERNEL, boundary="unknown", prior="tv", tolerance=1e-3, noise_sigma=0.2)
    assert result.residual.root_mean_square == pytest.approx(0.2, rel=0.02)


def test_lambda_may_be_chosen_before_the_constraint():
    _, y = stars(noise=0.02)
    result = deconv_cli.invert(y, KERNEL, nonnegative=True, lam="auto")
    assert result.lambda_choice is not None
    assert result.lam == result.lambda_choice.lam > 0
    assert result.image.min() == 0


def test_richardson_lucy_with_and_without_a_gain():
    x, y = stars(channels=2, size=(64, 64))
    counts = torch.poisson(2000 * (y + 0.2), generator=torch.Generator().manual_seed(4)) / 200
    for gain in (None, 1 / 200, "auto"):
        result = deconv_cli.invert(counts, KERNEL, boundary="unknown", method="richardson-lucy", gain=gain)
        assert result.solution.status is Status.STOPPED_AT_NOISE
        assert result.image.shape == x.shape
        assert result.image.min() >= 0
        assert "Poisson divergence" in result.solution.objective
        assert (result.image / 10 - 0.2 - x).norm() < 0.95 * (counts / 10 - 0.2 - x).norm()


def test_the_gain_that_was_found_is_told():
    counts = torch.poisson(torch.linspace(20, 900, 96).expand(1, 96, 96), generator=torch.Generator().manual_seed(4))
    result = deconv_cli.invert(counts / 4, KERNEL, boundary="unknown", method="richardson-lucy", gain="auto")
    assert result.settings.gain == pytest.approx(1 / 4, rel=0.1)


def sky(n_counts=0.0):
    """Stars on an even background under a Moffat function, with noise of counts or exact."""
    places = torch.randint(4, 92, (30, 2), generator=torch.Generator().manual_seed(3))
    x = torch.full((1, 96, 96), 20.0)
    x[0, places[:, 0], places[:, 1]] = torch.logspace(3, 5, 30)
    y = deconv_cli.forward(x, deconv_cli.make_kernel("moffat:3@2.8"), boundary="reflect").clamp_min(0)
    unit = float(y.max()) / n_counts if n_counts else 0.0
    return torch.poisson(y / unit, generator=torch.Generator().manual_seed(4)) * unit if n_counts else y


@pytest.mark.parametrize(
    ("n_counts", "options"),
    [(0, {}), (10, {}), (30000, {}), (30000, {"gain": "auto"}), (30000, {"tolerance": 1e-2}), (30000, {"prior": "tv"})],
)
def test_a_kernel_that_is_too_wide_for_stars_is_doubted(n_counts, options):
    options = options if "prior" in options else {"method": "richardson-lucy", **options}
    common = {"boundary": "unknown", "defaults": "picture", "max_iterations": 400, **options}
    wrong = deconv_cli.invert(sky(n_counts), deconv_cli.make_kernel("moffat:6@2.8"), **common)
    found = [doubt.sentence for doubt in wrong.doubts if doubt.reason is DoubtReason.RESIDUAL]
    assert len(found) == (n_counts != 10)  # noise hides it
    assert all("the kernel is probably wrong for these data" in sentence for sentence in found)
    assert all(("tolerance" in sentence) == ("tolerance" in options) for sentence in found)
    if "tolerance" not in options:
        right = deconv_cli.invert(sky(n_counts), deconv_cli.make_kernel("moffat:3@2.8"), **common)
        assert DoubtReason.RESIDUAL not in [doubt.reason for doubt in right.doubts]


def test_saturated_stars_under_richardson_lucy_are_noted():
    stored = (sky(30000) * 20).clamp_max(65535).round().to(torch.uint16)
    options = {"defaults": "picture", "boundary": "unknown", "method": "richardson-lucy"}
    result = deconv_cli.invert(stored, deconv_cli.make_kernel("moffat:3@2.8"), **options)
    assert any("saturated, but method richardson-lucy treats them as measurements" in note for note in result.notes)
    assert result.excess is None


@pytest.mark.parametrize(("scale", "is_noted"), [(1, False), (1 / 255, True)])
def test_a_truth_on_another_scale_is_noted(scale, is_noted):
    x, y = stars(size=(40, 40))
    result = deconv_cli.invert(255 * y, KERNEL, lam=1e-3, truth=255 * scale * x)
    assert any("bring both to one scale" in note for note in result.notes) == is_noted


def test_amplified_noise_is_no_other_scale():
    x, y = stars(size=(40, 40))
    result = deconv_cli.invert(y + 0.5 * random(y.shape, seed=8).float(), KERNEL, lam=1e-7, truth=x)
    assert result.image.std() > 10 * x.std()
    assert not any("one scale" in note for note in result.notes)


@pytest.mark.parametrize("options", [{}, {"method": "richardson-lucy", "defaults": "picture"}])
def test_a_single_pixel_has_no_scale(options):
    y = torch.ones(1, 1, 1)
    result = deconv_cli.invert(y, torch.full((1, 1), 0.5), boundary="zero", truth=2 * y, **options)
    assert (result.excess, result.notes) == (None, ())


def test_an_output_without_channels_is_refused_with_a_truth_too():
    x, y = stars(channels=1)
    with pytest.raises(deconv_cli.ShapeError, match="add the missing axes"):
        deconv_cli.invert(y[0], KERNEL, truth=x)


def test_a_kernel_larger_than_an_array_is_named_as_the_cause():
    y = random((1, 20, 20), seed=3).float()
    doubts = deconv_cli.invert(y, torch.ones(31, 31) / 961).doubts
    assert any("the kernel of 31×31 taps is larger than the data of 20×20" in doubt.sentence for doubt in doubts)


def test_a_bias_is_subtracted_first():
    _, y = stars(channels=1)
    kernel, bias = KERNEL[None, None], torch.tensor([2.0])
    for options in (
        {"nonnegative": True},
        {"prior": "tv", "weight": 0.01},
        {"method": "richardson-lucy", "gain": 1e-6},
    ):
        biased = deconv_cli.invert(y + 2, kernel, bias=bias, tolerance=1e-3, **options).image
        expected = deconv_cli.invert(y, kernel, tolerance=1e-3, **options).image
        assert (biased - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"nonnegative": True, "lam": 0.0}, "is unique only for λ above 0"),
        ({"nonnegative": True, "prior": "tv"}, "do not go together"),
        ({"prior": "tv", "lam": 1e-3}, "has no λ, but lam=0.001 was given; leave it out"),
        ({"prior": "tv", "penalty": "gradient"}, "has no other penalty"),
        ({"prior": "tv", "weight": 0.1, "method": "fft"}, "chooses its own solver"),
        ({"prior": "tv", "weight": -1.0}, "weight must be auto or a positive number, but is -1.0"),
        (
            {"nonnegative": True, "predict": True},
            "only the priors quadratic and photo predict an error",
        ),
        ({"method": "richardson-lucy", "gain": "1"}, "gain must be auto or a positive number"),
        ({"weight": 1.0}, "is for a prior such as tv, which was not given"),
        ({"gain": 1.0}, 'is for method="richardson-lucy" only'),
        ({"method": "richardson-lucy", "prior": "tv"}, "takes no prior"),
        ({"method": "richardson-lucy", "nonnegative": True}, "always holds for its estimates"),
        ({"prior": "nonnegative"}, "does not exist; use nonnegative=True instead"),
        ({"prior": "richardson-lucy"}, 'does not exist; use method="richardson-lucy" instead'),
    ],
)
def test_contradictions_are_refused(options, sentence):
    _, y = stars()
    with pytest.raises(deconv_cli.UsageError, match=sentence):
        deconv_cli.invert(y.clamp_min(0), KERNEL, **options)


@pytest.mark.parametrize(
    "options", [{"prior": "tv", "weight": 0.1}, {"method": "richardson-lucy"}, {"nonnegative": True}]
)
def test_without_a_predicted_error_the_truth_still_gives_the_real_one(options):
    x, y = stars()
    result = deconv_cli.invert(y.clamp_min(0), KERNEL, truth=x, tolerance=0.1, **options)
    assert result.predicted_error is None
    assert result.actual_error == pytest.approx(float((result.image - x).square().mean().sqrt()))


def test_there_is_no_linear_inverse_by_richardson_and_lucy():
    with pytest.raises(deconv_cli.UsageError, match="not a linear inverse"):
        deconv_cli.pseudo_inverse(KERNEL, input_size=(8, 8), method="richardson-lucy")


@pytest.mark.parametrize(
    "options",
    [{"nonnegative": True}, {"prior": "tv", "weight": 0.1}, {"method": "richardson-lucy"}],
    ids=lambda options: next(iter(options)),
)
def test_derivatives_are_refused_rather_than_dropped(options):
    _, y = stars()
    y = y.clamp_min(0).requires_grad_()
    with pytest.raises(deconv_cli.UsageError, match="has no derivative"):
        deconv_cli.invert(y, KERNEL, **options)
    with torch.no_grad():
        assert deconv_cli.invert(y, KERNEL, tolerance=0.1, **options).image.isfinite().all()
    with pytest.raises(deconv_cli.UsageError, match="has no derivative"):
        deconv_cli.invert(y.detach(), KERNEL.clone().requires_grad_(), **options)


SIZE = (40, 44)
BLUR = deconv_cli.make_kernel("gaussian:1")


def seen(noise):
    scene = torch.zeros(1, *SIZE, dtype=torch.float64)
    scene[:, 8:30, 10:25], scene[:, 20:, 30:] = 5.0, -3.0
    y = deconv_cli.forward(scene, BLUR, boundary="reflect")
    return y + noise * random(tuple(y.shape), seed=6)


def weight_of(y, **options):
    given = {"boundary": "reflect", "prior": "tv", "tolerance": 1e-2} | options
    return deconv_cli.invert(y, BLUR, **given).solution.weight


def test_the_weight_is_in_the_unit_of_the_samples():
    y = seen(0.2)
    assert weight_of(10 * y) == pytest.approx(10 * weight_of(y), rel=1e-3)


def test_the_weight_is_that_of_exponential_edges():
    y = seen(0.2)
    options = {"boundary": "reflect", "lam": "auto", "penalty": "gradient", "noise": NoiseModel(0.2)}
    x = deconv_cli.invert(y, BLUR, **options).image
    edges = torch.stack([x.diff(dim=axis, append=x.narrow(axis, -1, 1)) for axis in (1, 2)]).norm(dim=0)
    assert weight_of(y, noise=NoiseModel(0.2)) == pytest.approx(0.2**2 / (float(edges.mean()) + 0.2), rel=0.02)


def test_colored_noise_costs_little_against_the_best_weight():
    """Noise after compression or smoothing; treated as white, it is underestimated, as small as its fine detail."""
    scene = torch.zeros(1, 64, 64, dtype=torch.float64)
    scene[:, 12:48, 16:32], scene[:, 32:, 48:] = 5.0, -3.0
    y = deconv_cli.forward(scene, BLUR, boundary="reflect")
    smoothed = NoiseModel(0.6, tuple(2 / (1 + (f / 0.25) ** 6) + 0.02 for f in FREQUENCIES))
    y = y + 0.6 * draw_noise(smoothed, y, seed=3)

    def decibels(**options):
        x = deconv_cli.invert(y, BLUR, boundary="reflect", prior="tv", tolerance=1e-2, **options).image
        return 10 * float((x - scene).square().mean().log10())

    best = min(decibels(weight=weight) for weight in (0.4, 0.6, 0.9))
    assert decibels(noise=smoothed) < best + 0.3
    assert decibels(noise="auto") < best + 1.2
    assert decibels(noise="white") > best + 10


def test_a_flat_scene_gets_the_weight_of_its_noise():
    y = 0.2 * random((1, *SIZE), seed=3)
    assert weight_of(y, noise=NoiseModel(0.2)) == pytest.approx(0.2, rel=0.1)


SMOOTHED = NoiseModel(2.0, tuple(2 / (1 + (f / 0.25) ** 6) + 0.02 for f in FREQUENCIES))
SOFT = Kernel.from_tensor(make_kernel("gaussian:1.8").double())


def noisy_channels(*kinds):
    like = torch.zeros(1, 160, 160, dtype=torch.float64)
    return torch.cat([kind.sigma * draw_noise(kind, like, seed) for seed, kind in enumerate(kinds)])


def test_noise_that_is_colored_in_one_channel_is_so_in_all():
    found = find_noise_of_channels(noisy_channels(SMOOTHED, NoiseModel(2.0)).split(1), [SOFT])
    assert [model.is_white for model in found] == [False, False]
    assert 0.7 < found[1].spectrum[3] / found[1].spectrum[10] < 1.4


def test_white_noise_is_left_white_in_all_channels():
    found = find_noise_of_channels(noisy_channels(NoiseModel(2.0), NoiseModel(1.0)).split(1), [SOFT])
    assert found == (NoiseModel(), NoiseModel())
