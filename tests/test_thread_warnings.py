"""The warnings settings of one thread do not affect the others."""

import logging
import threading
import warnings

import numpy as np
import pytest
import tifffile

from deconv_cli.errors import warnings_here
from deconv_cli.io.codecs.tiff_reader import opened_tiff


def in_a_thread(call):
    """Call something in a thread of its own; gives what it raised."""
    raised = []

    def caught():
        try:
            call()
        except (Warning, ValueError) as error:
            raised.append(error)

    thread = threading.Thread(target=caught)
    thread.start()
    thread.join(10)
    return raised


def warn():
    warnings.warn("damaged", UserWarning, stacklevel=1)


def test_warnings_are_errors_in_this_thread_alone():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warn()
        with warnings_here("error"):
            with pytest.raises(UserWarning, match="damaged"):
                warn()
            assert in_a_thread(warn) == []
        warn()


def test_warnings_are_ignored_in_this_thread_alone():
    with warnings_here("ignore"):  # in tests they are errors
        warn()
        assert len(in_a_thread(warn)) == 1
    with pytest.raises(UserWarning):
        warn()


def test_a_warning_that_was_shown_before_is_an_error_all_the_same():
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("default")
        warn()
        with warnings_here("error"), pytest.raises(UserWarning):
            warn()


def test_what_tifffile_logs_of_damage_stops_the_thread_that_reads_alone(tmp_path):
    tifffile.imwrite(tmp_path / "x.tif", np.zeros((4, 5), np.uint8))
    log = logging.getLogger("tifffile")
    with opened_tiff(tmp_path / "x.tif"):
        assert in_a_thread(lambda: log.warning("another file")) == []
    with pytest.raises(ValueError, match="this file"), opened_tiff(tmp_path / "x.tif"):
        log.warning("this file")
