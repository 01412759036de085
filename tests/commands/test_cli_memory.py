"""`--max-memory`: read, obeyed, refused where it is too little, and kept in the line that repeats the run."""

import shlex

from deconv_cli.commands.exit_codes import ExitCode


def test_a_memory_limit_is_obeyed_and_recorded(deconv, gray, gentle, tmp_path):
    words = ["invert", gray, "-k", gentle, "-o", tmp_path / "x.tif", "--force"]
    report = deconv(*words, "--json", "--max-memory", "1.5GiB").report
    assert f"--max-memory={3 * 2**29}" in shlex.split(report["rerun"])
    assert not any(word.startswith("--max-memory") for word in shlex.split(deconv(*words, "--json").report["rerun"]))
    done = deconv(*words, "--max-memory", "20kB", expect=ExitCode.INPUT_REFUSED)
    assert "more than the 19.53 KiB that --max-memory allows" in " ".join(done.stderr.split())
    done = deconv(*words, "--max-memory", "plenty", expect=ExitCode.USAGE)
    assert "must be like 8GiB" in " ".join(done.stderr.split())
