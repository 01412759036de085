"""Files of tensors that are mapped: every layout comes back, and damage never passes for content."""

import json
import os
import pickle
import struct
import zlib

import numpy as np
import pytest
import torch
from hostile_pickles import MakesFolder
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from deconv_cli.errors import DeconvError, FileAccessError, MalformedInputError, TooLargeError, UsageError
from deconv_cli.io import limits
from deconv_cli.io.codecs.safetensors_file import SavedState, check_state_path, read_state, write_state


def content():
    return SavedState(
        {
            "rows first": torch.arange(24, dtype=torch.float64).reshape(4, 6) / 7,
            "columns first": (torch.arange(24, dtype=torch.float32).reshape(4, 6) / 7).T,
            "planes": torch.complex(torch.rand(2, 3, 4, 5), torch.rand(2, 3, 4, 5)).permute(2, 3, 0, 1),
            "conjugate": torch.complex(torch.rand(3, 3).double(), torch.rand(3, 3).double()).mH,
            "odd": torch.rand(7),
            "whole": torch.arange(5, dtype=torch.int32),
            "bytes": torch.tensor([1, 0, 255], dtype=torch.uint8),
            "empty": torch.zeros(0, 0, dtype=torch.float64),
            "single": torch.tensor(3.5, dtype=torch.float64),
            "large": torch.rand(64, 65, dtype=torch.float64),
        },
        {"answer": 42, "λ": [1e-3, None]},
    )


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "state.safetensors"
    write_state(path, content())
    return path


def test_every_layout_comes_back(tmp_path):
    path, state = tmp_path / "state.safetensors", content()
    write_state(path, state)
    found = read_state(path)
    assert found.record == state.record
    assert found.tensors.keys() == state.tensors.keys()
    for name, tensor in state.tensors.items():
        assert found.tensors[name].dtype == tensor.dtype
        assert torch.equal(found.tensors[name], tensor), name
        assert found.tensors[name].stride() == tensor.stride() or tensor.numel() <= 1, name


def test_the_library_of_the_format_reads_it_too(written):
    found = load_file(written)
    assert torch.equal(found["rows first"], content().tensors["rows first"])
    assert found["planes"].shape == (2, 3, 4, 5, 2)


def test_numbers_begin_where_factorizations_want_them(written):
    assert all(tensor.data_ptr() % 64 == 0 for tensor in read_state(written).tensors.values())
    length = struct.unpack("<Q", written.read_bytes()[:8])[0]
    assert (8 + length) % 64 == 0


def test_a_misaligned_file_is_read_all_the_same(written, tmp_path):
    """Another writer may pack the same content as the library of the format does."""
    with safe_open(written, framework="pt") as opened:
        metadata = opened.metadata()
    again = tmp_path / "again.safetensors"
    save_file(load_file(written), again, metadata)
    found, expected = read_state(again), read_state(written)
    for name, tensor in expected.tensors.items():
        assert torch.equal(found.tensors[name], tensor)
        assert found.tensors[name].data_ptr() % 64 == 0


def test_truncated_files_are_refused(written):
    data = written.read_bytes()
    for cut in sorted({len(data) * percent // 100 for percent in range(100)} | set(range(len(data) - 9, len(data)))):
        written.write_bytes(data[:cut])
        with pytest.raises(MalformedInputError) as caught:
            read_state(written)
        assert str(written) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_flipped_bits_are_found_wherever_they_are(written):
    data, expected = written.read_bytes(), read_state(written)
    rng = np.random.default_rng(5)
    places = [*rng.integers(0, 4000, 150), *rng.integers(4000, len(data), 50)]
    n_refused = 0
    for place in places:
        damaged = bytearray(data)
        damaged[place] ^= 1 << int(rng.integers(8))
        written.write_bytes(damaged)
        try:
            found = read_state(written)
        except DeconvError:
            n_refused += 1
        else:
            assert found.record == expected.record
            assert all(torch.equal(found.tensors[name], tensor) for name, tensor in expected.tensors.items())
    assert n_refused >= 0.95 * len(places)


def test_swapped_names_are_found(written):
    data = written.read_bytes()
    written.write_bytes(data.replace(b'"whole": {"dtype"', b'"elohw": {"dtype"'))
    with pytest.raises(MalformedInputError, match="some of its tensors are not those of its record"):
        read_state(written)


def test_a_changed_number_in_the_record_is_found(written):
    data = written.read_bytes()
    assert data.count(b'\\"answer\\": 42') == 1
    written.write_bytes(data.replace(b'\\"answer\\": 42', b'\\"answer\\": 43'))
    with pytest.raises(MalformedInputError, match="its record does not match its checksum"):
        read_state(written)


def stored_record(path, change):
    """Write a record of the same file anew, with its checksum."""
    with safe_open(path, framework="pt") as opened:
        metadata = opened.metadata()
    text = json.dumps(change(json.loads(metadata["deconv_inverse"])))
    save_file(
        load_file(path), path, {"deconv_inverse": text, "deconv_inverse_crc32": f"{zlib.crc32(text.encode()):08x}"}
    )


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda record: record | {"schema": 2}, "of schema 2, but this version reads schemas up to 1"),
        (lambda record: record | {"members": 3}, "was changed"),
        (lambda record: record | {"record": None}, "was changed"),
        (lambda record: [record], "does not match its checksum"),
        (lambda record: record | {"members": record["members"] | {"odd": 3}}, "'odd' was changed"),
        *(
            (
                lambda record, order=order: (
                    record | {"members": record["members"] | {"rows first": record["members"]["rows first"] | order}}
                ),
                "'rows first' was changed",
            )
            for order in ({"order": [0]}, {"order": [0, 0]}, {"order": [0, 2]}, {"is_complex": True}, {"sum": 0})
        ),
    ],
)
def test_records_that_do_not_fit_are_refused(written, change, sentence):
    stored_record(written, change)
    with pytest.raises(MalformedInputError, match=sentence) as caught:
        read_state(written)
    assert str(written) in str(caught.value)


def test_the_record_is_read_when_nothing_is_changed(written):
    stored_record(written, lambda record: record)
    assert read_state(written).record == content().record


def test_other_files_are_refused_and_never_run(tmp_path):
    path, mark = tmp_path / "other.safetensors", tmp_path / "it ran"
    save_file({"a": torch.ones(3)}, path)
    with pytest.raises(MalformedInputError, match="should be a saved inverse, but holds other tensors; make one"):
        read_state(path)
    np.save(tmp_path / "other.npy", np.ones(3))
    with pytest.raises(MalformedInputError, match=r"should be a saved inverse, but is a NumPy \.npy file"):
        read_state(tmp_path / "other.npy")
    torch.save({"a": MakesFolder(mark)}, path)
    with pytest.raises(MalformedInputError, match="but is a PyTorch file"):
        read_state(path)
    path.write_bytes(pickle.dumps(MakesFolder(mark)))
    with pytest.raises(MalformedInputError):
        read_state(path)
    assert not mark.exists()
    for missing in (tmp_path / "no.safetensors", tmp_path):
        with pytest.raises(UsageError):
            read_state(missing)


def test_numbers_of_other_kinds_are_refused(tmp_path):
    path = tmp_path / "half.safetensors"
    write_state(path, SavedState({"a": torch.ones(4)}, {}))
    text = json.dumps({"schema": 1, "members": {"a": {"order": [0], "is_complex": False, "sum": 0}}, "record": {}})
    metadata = {"deconv_inverse": text, "deconv_inverse_crc32": f"{zlib.crc32(text.encode()):08x}"}
    save_file({"a": torch.ones(4, dtype=torch.float16)}, path, metadata)
    with pytest.raises(MalformedInputError, match="'a' was changed"):
        read_state(path)


def test_the_memory_is_the_limit(written, monkeypatch):
    monkeypatch.setattr(limits, "memory_budget", lambda: 1000)
    with pytest.raises(TooLargeError, match="memory"):
        read_state(written)


def test_places_are_checked_before_anything_is_computed(written, tmp_path):
    with pytest.raises(UsageError, match="exists already"):
        check_state_path(written, tmp_path / "kernel.npy", force=False)
    check_state_path(written, tmp_path / "kernel.npy", force=True)
    with pytest.raises(UsageError, match="is the input itself"):
        check_state_path(written, written, force=False)
    with pytest.raises(UsageError, match="change the suffix"):
        check_state_path(tmp_path / "state.npy", written, force=True)
    with pytest.raises(UsageError, match="does not exist; make it first"):
        check_state_path(tmp_path / "no" / "state.safetensors", written, force=True)


def test_a_failure_leaves_the_old_file(written, monkeypatch):
    data = written.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("deconv_cli.io.atomic.os.fsync", full)
        with pytest.raises(FileAccessError, match="No space left"):
            write_state(written, SavedState({"a": torch.ones(3)}, {}))
    with monkeypatch.context() as patch:
        # A disk that gives back other bytes than it was given.
        patch.setattr(
            "deconv_cli.io.atomic.os.fsync", lambda stream: os.pwrite(stream, b"!", os.fstat(stream).st_size - 1)
        )
        with pytest.raises(FileAccessError, match="reading the file back failed"):
            write_state(written, SavedState({"a": torch.ones(3)}, {}))
    assert written.read_bytes() == data
    assert [path.name for path in written.parent.iterdir()] == [written.name]
