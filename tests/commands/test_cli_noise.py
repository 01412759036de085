"""`deconv forward --noise`: the promised distribution, and the same for the same seed."""

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


def test_noise_is_added_to_the_blurred_image(deconv, photograph, gentle, tmp_path, values):
    words = ["forward", photograph, "-k", gentle, "--dtype", "float64", "--output-dtype", "float64"]
    words += ["--light", "stored"]
    deconv(*words, "-o", tmp_path / "clean.npy")
    done = deconv(*words, "-o", tmp_path / "noisy.npy", "--noise", "gaussian:0.5", "--seed", "3")
    difference = values(tmp_path / "noisy.npy") - values(tmp_path / "clean.npy")
    assert float(difference.std()) == pytest.approx(0.5, rel=5 / (2 * difference.numel()) ** 0.5)
    assert "gaussian:0.5, seed 3" in done.stderr
