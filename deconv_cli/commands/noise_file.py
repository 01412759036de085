"""A model of noise as it is typed at the prompt: a word, or the file of an earlier run."""

from __future__ import annotations

from pathlib import Path

from deconv_cli.errors import FileAccessError, UsageError
from deconv_cli.noise_model import NoiseModel
from deconv_cli.vocabulary import Light

_MAX_BYTES = 64 * 2**20


def read_noise(text: str) -> str | tuple[NoiseModel, ...]:
    """Read `white`, `auto`, or the noise from the JSON document of a run of `deconv invert`.

    A document of one's own is an object with the member `noise_model`, a list with one record for all channels or one
    for each: `{"noise_model": [{"sigma": 2.5, "spectrum": [...]}]}`.

    Returns:
        The models; the text itself where it names no file.

    Raises:
        UsageError: the file does not exist, or says nothing of noise.
        FileAccessError: it cannot be read.
    """
    path = Path(text)
    if text in ("white", "auto") or not path.is_file():
        if path.suffix:
            raise UsageError(f"the file of noise '{text}' does not exist; check the name and the folder.")
        return text
    from deconv_cli.io.records import open_sealed

    try:
        content = path.read_text(encoding="utf-8") if path.stat().st_size <= _MAX_BYTES else ""
        found = open_sealed(content, needs_digest=False)
    except OSError as error:
        raise FileAccessError(f"'{text}' cannot be read: {error.strerror}.") from error
    except ValueError:
        found = {}
    records = found.get("noise_model")
    if not isinstance(records, list) or not records or not all(isinstance(record, dict) for record in records):
        raise UsageError(
            f"'{text}' has no list noise_model, as the JSON of deconv invert has, or does not fit its digest; write "
            "one with --json, or with an output file in .npy."
        )
    light = found.get("light") if found.get("light") in tuple(Light) else None
    return tuple(NoiseModel.of_record(record, source=text, light=light) for record in records)
