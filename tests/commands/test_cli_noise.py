"""`deconv forward --noise`: the promised distribution, and the same for the same seed."""

import numpy as np
import pytest
import torch


@pytest.fixture
def point(save):
    """A kernel that changes nothing."""
    return save("point", [[1.0]])


@pytest.fixture
def noisy(deconv, point, tmp_path, values):
    def run(source, *options):
        deconv("forward", source, "-k", point, "-o", tmp_path / "noisy.npy", "--force", "-q", *options)
        return values(tmp_path / "noisy.npy")

    return run


def test_the_same_seed_gives_the_same_noise(noisy, photograph):
    options = ["--noise", "gaussian:2", "--seed"]
    first = noisy(photograph, *options, "5")
    assert torch.equal(noisy(photograph, *options, "5"), first)
    assert not torch.equal(noisy(photograph, *options, "6"), first)
    assert torch.equal(noisy(photograph, *options, "0"), noisy(photograph, "--noise", "gaussian:2"))


def test_gaussian_noise_of_channels_and_neighbors_is_independent(noisy, save):
    n = 200
    sample = noisy(save("flat", np.zeros((2, n, n))), "--noise", "gaussian:1")[0]
    for other in (sample[1], sample[0].roll(1, 0), sample[0].roll(1, 1)):
        assert abs(float((sample[0] * other).mean())) < 5 / n


def test_poisson_noise_counts_up_to_its_peak(noisy, save):
    x = np.full((400, 300), 20.0)
    x[:200] = 5.0
    peak = 800  # counts at 20, so 200 at 5, and 40 counts for each unit
    sample = noisy(save("steps", x), "--noise", f"poisson:{peak}")[0, 0]
    for rows, level in ((slice(200, 400), 20.0), (slice(0, 200), 5.0)):
        counts = sample[rows].flatten() * 40
        assert torch.allclose(counts, counts.round(), atol=1e-3)
        n, expected = counts.numel(), level * 40
        assert abs(float(counts.mean()) - expected) < 5 * (expected / n) ** 0.5
        assert abs(float(counts.var()) - expected) < 5 * expected * (2 / n) ** 0.5 * 1.1


def test_poisson_noise_leaves_the_dark_dark(noisy, save):
    x = np.zeros((20, 20))
    x[3, 4] = 7.0
    sample = noisy(save("star", x), "--noise", "poisson:50")[0, 0]
    assert float(sample[3, 4]) > 0
    assert int((sample != 0).sum()) == 1


def test_noise_is_added_to_the_blurred_image(deconv, photograph, gentle, tmp_path, values):
    words = ["forward", photograph, "-k", gentle, "--dtype", "float64", "--output-dtype", "float64"]
    words += ["--light", "stored"]
    deconv(*words, "-o", tmp_path / "clean.npy")
    done = deconv(*words, "-o", tmp_path / "noisy.npy", "--noise", "gaussian:0.5", "--seed", "3")
    difference = values(tmp_path / "noisy.npy") - values(tmp_path / "clean.npy")
    assert float(difference.std()) == pytest.approx(0.5, rel=5 / (2 * difference.numel()) ** 0.5)
    assert "gaussian:0.5, seed 3" in done.stderr
