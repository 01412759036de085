"""Sample arrays and files that other programs' writers made."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

from deconv_cli.io import ImageFile, OutputPlan, plan_output, read_image


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.fixture
def imagej_file(tmp_path, rng):
    path = tmp_path / "stack.tif"
    tifffile.imwrite(
        path,
        rng.integers(0, 60000, (2, 3, 2, 16, 20)).astype("uint16"),
        imagej=True,
        resolution=(12.5, 10),
        metadata={
            "axes": "TZCYX",
            "spacing": 0.3,
            "unit": "um",
            "finterval": 2.0,
            "mode": "composite",
            "Info": "first line\nsecond line",
            "Labels": [f"plane {i}" for i in range(12)],
            "Ranges": (0.0, 100.0, 5.0, 200.0),
            "LUTs": [np.arange(768, dtype="uint8").reshape(3, 256)] * 2,
            "Properties": {"key": "value"},
            "min": 3.0,
            "max": 99.0,
        },
    )
    return path


@pytest.fixture
def ome_file(tmp_path, rng):
    path = tmp_path / "field.ome.tif"
    tifffile.imwrite(
        path,
        rng.random((2, 3, 16, 20)).astype("float32"),
        ome=True,
        photometric="minisblack",
        metadata={
            "axes": "TCYX",
            "Name": "field 3",
            "Description": "ten < eleven é",
            "PhysicalSizeX": 0.1,
            "PhysicalSizeXUnit": "µm",
            "PhysicalSizeY": 0.2,
            "PhysicalSizeYUnit": "µm",
            "PhysicalSizeZ": 1.5,
            "PhysicalSizeZUnit": "µm",
            "TimeIncrement": 0.5,
            "TimeIncrementUnit": "s",
            "Channel": {"Name": ["DAPI", "GFP", "RFP"]},
        },
    )
    return path


def plan(path: Path, source: ImageFile, **changes) -> OutputPlan:
    settings = {
        "n_channels": source.values.shape[1],
        "output_dtype": None,
        "force": False,
    }
    return plan_output(path, source, **{**settings, **changes})


@pytest.fixture
def rewrite():
    """Read a file and write it again under another name, its samples unchanged."""

    def run(source: Path, target: Path, record=None, **changes):
        image = read_image(source)
        prepared = plan(target, image, **changes).prepare(image.values.to(torch.float64))
        prepared.write(record or {"command": "invert"})
        return prepared, read_image(target)

    return run


@pytest.fixture
def planned():
    return plan
