"""The system-call filter of a confined process: no new processes, no reaching into others, and
nothing that stays behind in the kernel when the process is gone (System V memory, queues).

RLIMIT_NPROC alone does not do: Linux does not hold root to it, and root is who runs in containers.
The filter is seccomp-BPF (linux/seccomp.h, linux/filter.h), built by hand because it is short.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import struct
import sys
from typing import Final

_ARCHES: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""Machine -> AUDIT_ARCH. Elsewhere there is no filter, and the self-test of the sandbox refuses."""

# Name -> numbers on (x86_64, aarch64); None where the machine lacks the call.
_DENIED: Final[dict[str, tuple[int | None, int | None]]] = {
    "fork": (57, None),
    "vfork": (58, None),
    "execve": (59, 221),
    "execveat": (322, 281),
    "kill": (62, 129),
    "tkill": (200, 130),
    "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138),
    "pidfd_send_signal": (424, 424),
    "pidfd_getfd": (438, 438),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "unshare": (272, 97),
    "setns": (308, 268),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "io_uring_setup": (425, 425),
    "userfaultfd": (323, 282),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
}
_CLONE: Final = (56, 220)
_CLONE3: Final = 435
_CLONE_THREAD: Final = 0x10000
_X32: Final = 0x40000000

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
_SECCOMP_MODE_FILTER = 2


def filter_program(machine: str) -> bytes | None:
    """The filter as an array of ``struct sock_filter``; None for a machine we have no table of."""
    arch = _ARCHES.get(machine)
    if arch is None:
        return None
    column = 0 if machine == "x86_64" else 1
    denied = [numbers[column] for numbers in _DENIED.values()]

    def step(code: int, value: int, then: int = 0, otherwise: int = 0) -> bytes:
        return struct.pack("=HBBI", code, then, otherwise, value)

    def unless_equal_skip(value: int, steps: int) -> bytes:
        return step(_EQUAL, value, 0, steps)

    refuse = step(_RETURN, _ERRNO | errno.EPERM)
    program = [
        step(_LOAD, 4),  # seccomp_data.arch
        step(_EQUAL, arch, 1, 0),
        step(_RETURN, _KILL),
        step(_LOAD, 0),  # seccomp_data.nr
        step(_AT_LEAST, _X32, 0, 1),
        refuse,
    ]
    for number in denied:
        if number is not None:
            program += [unless_equal_skip(number, 1), refuse]
    # The flags of clone3 lie in memory, where a filter cannot look; the C library then uses clone.
    program += [unless_equal_skip(_CLONE3, 1), step(_RETURN, _ERRNO | errno.ENOSYS)]
    program += [
        unless_equal_skip(_CLONE[column], 3),
        step(_LOAD, 16),  # seccomp_data.args[0], lower half
        step(_ANY_BIT, _CLONE_THREAD, 1, 0),
        refuse,
        step(_RETURN, _ALLOW),
    ]
    return b"".join(program)


class _FilterHeader(ctypes.Structure):
    """``struct sock_fprog``."""

    _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.c_char_p))


def _prctl(option: int, *arguments: object) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, *arguments) != 0:
        raise OSError(ctypes.get_errno(), "prctl failed")


def hide() -> None:
    """Close this process to others of the same user: no ptrace, no /proc/PID/mem."""
    if sys.platform == "linux":
        _prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def confine() -> None:
    """Install the filter on this process for good. OSError where the kernel refuses."""
    if sys.platform != "linux":
        return
    _prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    program = filter_program(os.uname().machine)
    if program is None:
        return
    _prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    header = _FilterHeader(len(program) // 8, program)
    _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(header), 0, 0)
