"""The blocks of docs/extending.md run in order; each part is one object and one line, and serves at the prompt too."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import deconv_cli
from deconv_cli.commands.app import app
from deconv_cli.commands.exit_codes import ExitCode
from deconv_cli.io.regions import open_regions

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"
REGISTRIES = [
    "BOUNDARIES",
    "PENALTIES",
    "SOLVERS",
    "PRIORS",
    "CODECS",
    "REGION_FORMATS",
    "KERNEL_SOURCES",
    "TAPS",
    "LOSSES",
    "LOSSES",
    "GRADIENT_RULES",
]


def blocks():
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def added():
    """Run the page as one program; its parts stay until the tests of this file are through."""
    before = {name: set(getattr(deconv_cli, name)) for name in REGISTRIES}
    namespace = {"__name__": "extending"}
    parts = {}
    try:
        for block in blocks():
            exec(compile(block, str(PAGE), "exec"), namespace)
        parts = {name: set(getattr(deconv_cli, name)) - before[name] for name in REGISTRIES}
        yield parts
    finally:
        for name in REGISTRIES:
            for part in set(getattr(deconv_cli, name)) - before[name]:
                getattr(deconv_cli, name).unregister(part)


def test_every_kind_of_part_gets_one(added):
    assert all(len(parts) == 1 for parts in added.values()), added


def test_each_part_is_registered_by_one_line():
    text = "".join(blocks())
    assert {name: text.count(f"deconv_cli.{name}.register(") for name in REGISTRIES} == dict.fromkeys(REGISTRIES, 1)


def run(*words, expect=ExitCode.SUCCESS):
    done = CliRunner().invoke(app, [str(word) for word in words], prog_name="deconv", catch_exceptions=False)
    assert done.exit_code == expect, done.stderr
    return done


def test_the_parts_serve_at_the_prompt(added, tmp_path):
    scene = np.random.default_rng(0).integers(0, 255, (40, 36)).astype(np.uint8)
    (tmp_path / "scene.pgm").write_bytes(b"P5\n36 40\n255\n" + scene.tobytes())
    blurred, restored = tmp_path / "blurred.pgm", tmp_path / "restored.npy"
    run("forward", tmp_path / "scene.pgm", "-k", "ring:2@1", "--boundary", "antisymmetric", "-o", blurred)
    assert blurred.read_bytes().startswith(b"P5\n36 40")
    part = open_regions(tmp_path / "scene.pgm").read((slice(3, 9), slice(20, 36)))
    np.testing.assert_array_equal(part, scene[3:9, 20:])
    words = ["invert", blurred, "-k", "ring:2@1", "-o", restored, "--json", "--force"]
    settings = ["--lambda", "1e-2", "--penalty", "third-differences", "--method", "plain"]
    report = json.loads(run(*words, *settings).stdout)
    assert (report["boundary"], report["boundary_reason"]) == (
        "antisymmetric",
        "recorded in the file by deconv forward",
    )
    assert (report["penalty"], report["method"]) == ("third-differences", "plain")
    assert "Σ|x|" in run(*words, "--prior", "sparse", "--weight", "0.5", "--max-iterations", "20", expect=3).stdout


def test_a_part_is_listed_where_a_name_is_wrong(added):
    with pytest.raises(deconv_cli.UsageError, match=r"must be one of zero, .*antisymmetric"):
        deconv_cli.ReconstructionSettings(boundary="sideways")


def test_a_name_is_given_once_and_built_in_parts_stay(added):
    with pytest.raises(deconv_cli.UsageError, match="boundary 'antisymmetric' is registered already"):
        deconv_cli.BOUNDARIES.register("antisymmetric", None)
    with pytest.raises(deconv_cli.UsageError, match="was not registered by the caller"):
        deconv_cli.BOUNDARIES.unregister("zero")
