"""No false alarm: healthy networks, whatever their weights and their data.

Three seeds in every run; all twenty with `DECONV_ALL_SEEDS=1 python -m pytest tests/gradients/test_healthy.py`.
"""

from __future__ import annotations

import os

import pytest
import torch
from gradient_cases import checked, load_fixture

healthy = load_fixture("healthy")
SEEDS = range(20 if os.environ.get("DECONV_ALL_SEEDS") else 3)


def pictures(*shape):
    return lambda generator: torch.randn(shape, generator=generator)


def words(n_words, *shape):
    return lambda generator: torch.randint(0, n_words, shape, generator=generator)


CASES = {
    "cnn": (healthy.Cnn, pictures(4, 1, 16, 16)),
    "lstm": (healthy.Lstm, pictures(4, 7, 5)),
    "gru": (healthy.Gru, words(11, 4, 6)),
    "transformer": (healthy.Transformer, words(13, 4, 6)),
    "batch norm": (healthy.Normalized, pictures(4, 3, 8, 8)),
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("trained_by", ["cross entropy", "projection"])
def test_a_healthy_network_gives_no_alarm(name, seed, trained_by):
    build, draw = CASES[name]
    torch.manual_seed(seed)
    model = build()
    generator = torch.Generator().manual_seed(100 + seed)
    inputs = draw(generator)
    options = {}
    if trained_by == "cross entropy":
        options = {"loss": torch.nn.CrossEntropyLoss, "target": torch.randint(0, 3, (4,), generator=generator)}
    found = checked(model, inputs=inputs, seed=seed, **options)
    assert {finding.verdict for finding in found.parameters} <= {"OK", "NONDIFFERENTIABLE"}, [
        (f.name, f.verdict, f.detail, f.causes) for f in found.parameters if f.verdict != "OK"
    ]
    assert found.general == ()
    assert not [sentence for sentence in found.not_checked if "leak" not in sentence]
