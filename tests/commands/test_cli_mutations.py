"""Flipped bits in what the tool wrote and reads again: the right result, or a refusal in one sentence."""

import random
import shutil

import numpy as np
import pytest

from deconv_cli.commands.exit_codes import ExitCode

REFUSED = (ExitCode.FAILURE, ExitCode.USAGE, ExitCode.INPUT_REFUSED)
N_FLIPS = 500


def flipped(content, chance):
    """Flip a few bits, cut the end off, or double a piece."""
    data, kind = bytearray(content), chance.randrange(8)
    if kind == 0:
        return bytes(data[: chance.randrange(len(data))])
    if kind == 1:
        start = chance.randrange(len(data))
        return bytes(data[:start] + data[start // 2 :])
    for _ in range(chance.choice([1, 1, 4])):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(data)


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", ["factor", "noise", "record"])
def test_a_file_of_ours_with_flipped_bits_is_read_rightly_or_refused(deconv, save, gentle, tmp_path, kind):
    source = save("x", np.random.default_rng(0).random((20, 22)).astype("float32"))
    blurred, target = tmp_path / "y.npy", tmp_path / "r.npy"
    deconv("forward", source, "-k", gentle, "--boundary", "circular", "--noise", "gaussian:0.05", "-o", blurred)
    words = ["invert", blurred, "-o", target, "--force", "--json", "--quiet"]
    if kind == "factor":
        path = tmp_path / "f.safetensors"
        deconv("factor", "-k", gentle, "--size", "20,22", "--boundary", "circular", "--lambda", "1e-2", "-o", path)
        words += ["--factor", path]
    elif kind == "noise":
        path = tmp_path / "n.json"
        deconv(*words, "-k", gentle, "--noise", "auto")
        shutil.copy(tmp_path / "r.npy.json", path)
        words += ["-k", gentle, "--noise", path]
    else:
        path = tmp_path / "y.npy.json"
        words += ["-k", gentle, "--lambda", "1e-2"]
    whole = path.read_bytes()
    deconv(*words)
    right, chance, n_refused = np.load(target), random.Random(kind), 0
    for _ in range(N_FLIPS):
        path.write_bytes(flipped(whole, chance))
        done = deconv(*words, expect=(ExitCode.SUCCESS, ExitCode.UNTRUSTWORTHY, *REFUSED))
        if done.code in REFUSED:
            n_refused += 1
            assert len(done.errors) == 1
            assert done.stdout == ""
        else:
            assert np.array_equal(np.load(target), right)
    assert n_refused > N_FLIPS // 2
