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


def test_a_file_system_is_told_by_its_number() -> None:
    assert libc.file_system_at("/proc") == 0x9FA0
    assert libc.file_system_at("/sys") == 0x62656572
    with pytest.raises(FileNotFoundError, match="'/nowhere'"):
        libc.file_system_at("/nowhere")


def test_a_name_that_it_has_not_is_refused() -> None:
    with pytest.raises(OSError, match="no_such_call"):
        libc.function("no_such_call")


def test_it_does_without_ctypes() -> None:
    done = run_python("import sys; from foundation import libc; print('ctypes' in sys.modules)")
    assert done.stdout == "False\n"
