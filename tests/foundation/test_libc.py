"""Functions of the C library, called without ctypes."""

from __future__ import annotations

import errno

import pytest

from foundation import libc
from tests.support import run_python


def test_what_it_returns_and_what_it_fails_of_is_told() -> None:
    assert libc.function("getpriority")(0, 0) >= -20
    with pytest.raises(OSError, match="Bad file descriptor") as error:
        libc.function("timerfd_settime")(-1, 0, bytes(32), None)
    assert error.value.errno == errno.EBADF


def test_it_may_write_to_a_buffer() -> None:
    written = libc.buffer(64)
    assert libc.function("gethostname")(written, 64) == 0
    with open("/proc/sys/kernel/hostname", "rb") as file:
        assert bytes(written).rstrip(b"\0") == file.read().strip()


def test_a_name_that_it_has_not_is_refused() -> None:
    with pytest.raises(OSError, match="no_such_call"):
        libc.function("no_such_call")


def test_it_does_without_ctypes() -> None:
    done = run_python("import sys; from foundation import libc; print('ctypes' in sys.modules)")
    assert done.stdout == "False\n"
