"""Model files of every kind, code that they must not run, and what a refusal looks like."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hostile_pickles import MakesFolder
from torch import nn


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.fixture
def hostile(tmp_path):
    """An object whose unpickling makes a folder; the folder must never be there."""
    marker = tmp_path / "was_run"
    yield MakesFolder(marker)
    assert not marker.exists()


@pytest.fixture
def refused():
    """Run something that must be refused in one sentence."""

    def run(error, call, *args, says, **options) -> str:
        with pytest.raises(error) as caught:
            call(*args, **options)
        sentence = str(caught.value)
        assert sentence.endswith(".")
        assert "\n" not in sentence
        assert "--" not in sentence  # the names of options are the command line's
        for part in [says] if isinstance(says, str) else says:
            assert part in sentence, sentence
        return sentence

    return run


@pytest.fixture
def digest():
    return lambda path: hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def code(tmp_path):
    """Write a Python file that defines models, and give its place."""

    def write(text: str, name: str = "net") -> Path:
        path = tmp_path / f"{name}_{tmp_path.name}.py"
        path.write_text(f"import torch\nfrom torch import nn\n{text}")
        return path

    return write


@pytest.fixture
def save(tmp_path):
    """Save an object with torch.save."""

    def write(found, name: str = "model.pt", **options) -> Path:
        torch.save(found, tmp_path / name, **options)
        return tmp_path / name

    return write


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 5), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3, bias=False))
