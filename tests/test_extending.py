"""The blocks of docs/extending.md run in order; each part is one object and one line, and serves at the prompt too."""

import json
import os
import re
import subprocess
import sys
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
    "KERNEL_SOURCES",
    "TAPS",
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


def test_parts_of_an_installed_package_serve_at_the_prompt(tmp_path):
    """The parts of the page as a package of their own, known by its entry points alone."""
    lines, points = [blocks()[0]], ["[deconv.parts]"]
    for block in blocks():
        part = re.search(r'^deconv_cli\.(\w+)\.register\("([^"]+)", (.+)\)$', block, re.MULTILINE)
        if part is None:
            continue
        kind = getattr(deconv_cli, part[1]).kind.replace(" ", "-")
        lines.append(f"{block[: part.start()]}PART_{len(points)} = {part[3]}\n")
        points.append(f"{kind}.{part[2]} = my_parts:PART_{len(points)}")
    assert len(points) == 1 + len(REGISTRIES)
    (tmp_path / "my_parts.py").write_text("".join(lines), encoding="utf-8")
    (tmp_path / "my_parts-1.dist-info").mkdir()
    (tmp_path / "my_parts-1.dist-info" / "METADATA").write_text("Name: my-parts\nVersion: 1\n")
    (tmp_path / "my_parts-1.dist-info" / "entry_points.txt").write_text("\n".join(points), encoding="utf-8")
    scene = np.random.default_rng(0).integers(0, 255, (40, 36)).astype(np.uint8)
    (tmp_path / "scene.pgm").write_bytes(b"P5\n36 40\n255\n" + scene.tobytes())
    (tmp_path / "large.py").write_text(
        "import torch\nclass Net(torch.nn.Linear):\n    def __init__(self):\n        super().__init__(3, 1)\n"
        "        torch.nn.init.constant_(self.weight, 1e7)\n"
    )
    common = "invert blurred.pgm -k ring:2@1 --force -o"
    commands = [
        "forward scene.pgm -k ring:2@1 --boundary antisymmetric -o blurred.pgm",
        f"{common} one.npy --lambda 1e-2 --penalty third-differences --method plain",
        f"{common} two.pgm --prior sparse --weight 0.5 --max-iterations 3",
        "check-grad --model large.py:Net --input-shape 4,3",
    ]
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom deconv_cli.commands.app import app\n"
        "for line in sys.argv[1:]:\n    done = CliRunner().invoke(app, line.split(), catch_exceptions=False)\n"
        "    print(done.exit_code, done.output)\n"
    )
    path = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code, *commands],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert re.findall(r"^(\d) ", done.stdout, re.MULTILINE) == ["0", "0", "3", "4"], done.stdout
    assert "antisymmetric" in done.stdout
    assert "UNSCALED" in done.stdout
