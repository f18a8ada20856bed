"""Landlock: a thread gives up files, signals and ports, for itself and for all it starts.

See landlock(7) and the kernel's Documentation/userspace-api/landlock.rst. What a kernel cannot
forbid it leaves as it is; `abi` says how much it can. Threads that are there already are not
bound, so a process that serves others can have a thread start a program that is.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import platform
import stat
from collections.abc import Iterable
from dataclasses import dataclass

from retire_cluster.node.system.process_tree import IS_ANDROID, IS_LINUX

#: With these ABIs the kernel learned the rest of what we ask for. Before the first of them it lets
#: nobody move or link a file from one folder to another (EXDEV), whatever the rules say.
MOVE_ABI = 2
NETWORK_ABI = 4
SCOPE_ABI = 6
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF, _OPENAT2 = 444, 445, 446, 437
#: System calls have the same numbers on all of these.
_MACHINES = ("x86_64", "amd64", "i386", "i686", "aarch64", "arm", "riscv", "ppc64", "s390", "loong")
_ASK_VERSION = 1
_AT_FDCWD = -100
_RESOLVE_NO_SYMLINKS = 4
_PATH_BENEATH = 1
_PR_SET_NO_NEW_PRIVS = 38

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_MAKE_CHAR, _MAKE_BLOCK = 1 << 6, 1 << 11
_REFER, _TRUNCATE = 1 << 13, 1 << 14
_FIRST_ABI = (1 << 13) - 1
_TCP = 3
_ABSTRACT_UNIX_AND_SIGNALS = 3

READ = _EXECUTE | _READ_FILE | _READ_DIR
#: Nobody makes devices in a folder of his own.
WRITE = (_FIRST_ABI | _REFER | _TRUNCATE) & ~(_MAKE_CHAR | _MAKE_BLOCK)
#: Of a device file, or of what is below a folder of them.
USE = _READ_FILE | _WRITE_FILE | _READ_DIR
#: Of a folder: to see what it is called that is in it.
LIST = _READ_DIR
_OF_FILES = _EXECUTE | _READ_FILE | _WRITE_FILE | _TRUNCATE


class _Ruleset(ctypes.Structure):
    _fields_ = (
        ("files", ctypes.c_uint64),
        ("network", ctypes.c_uint64),
        ("scoped", ctypes.c_uint64),
    )


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("allowed", ctypes.c_uint64), ("folder", ctypes.c_int32))


class _How(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


@dataclass(frozen=True)
class Rule:
    """What may be done with a file, or with a folder and all below it.

    The path holds no symbolic link: what has become one since it was written is passed over.
    """

    path: str
    allowed: int


@functools.cache
def abi() -> int:
    """Version of the kernel's Landlock; 0: it has none, it is switched off, or not to be asked."""
    if not IS_LINUX or IS_ANDROID or not platform.machine().lower().startswith(_MACHINES):
        return 0
    try:
        return max(0, _call(_CREATE_RULESET, None, 0, _ASK_VERSION))
    except OSError:
        return 0


def restrict(rules: Iterable[Rule], *, network: bool = True) -> None:
    """Bind the calling thread, and what it starts, to these rules. It cannot be undone.

    Paths that are not there, or not for this user, are passed over. Raises `OSError`.

    :param network: whether TCP may be used
    """
    version = abi()
    files = _FIRST_ABI
    files |= _REFER if version >= 2 else 0
    files |= _TRUNCATE if version >= 3 else 0
    wanted = _Ruleset(
        files,
        _TCP if version >= NETWORK_ABI and not network else 0,
        _ABSTRACT_UNIX_AND_SIGNALS if version >= SCOPE_ABI else 0,
    )
    size = 24 if version >= SCOPE_ABI else 16 if version >= NETWORK_ABI else 8
    ruleset = _call(_CREATE_RULESET, ctypes.byref(wanted), size, 0)
    try:
        for rule in rules:
            _add(ruleset, rule, files)
        if _libc().prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "no_new_privs")
        _call(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _add(ruleset: int, rule: Rule, known: int) -> None:
    with contextlib.suppress(OSError):
        fd = open_straight(rule.path)
        try:
            allowed = rule.allowed & known
            if not stat.S_ISDIR(os.fstat(fd).st_mode):
                allowed &= _OF_FILES
            if allowed:
                beneath = _PathBeneath(allowed, fd)
                _call(_ADD_RULE, ruleset, _PATH_BENEATH, ctypes.byref(beneath), 0)
        finally:
            os.close(fd)


def open_straight(path: str) -> int:
    """A descriptor that stands for a whole path (`O_PATH`). Raises `OSError`, also for links in it.

    A task may have put one in the place of a folder that it may change.
    """
    how = _How(os.O_PATH | os.O_CLOEXEC, 0, _RESOLVE_NO_SYMLINKS)
    try:
        return _call(
            _OPENAT2, _AT_FDCWD, ctypes.c_char_p(os.fsencode(path)), ctypes.byref(how),
            ctypes.sizeof(how),
        )  # fmt: skip
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EPERM):
            raise
    return _walk(path)


def _walk(path: str) -> int:
    """As `open_straight`, where a filter of system calls does not know openat2(2)."""
    flags = os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open("/", flags)
    for name in filter(None, path.split("/")):
        try:
            inner = os.open(name, flags, dir_fd=fd)
        finally:
            os.close(fd)
        fd = inner
    if stat.S_ISLNK(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
    return fd


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _call(number: int, *arguments: object) -> int:
    words = (ctypes.c_long(word) if isinstance(word, int) else word for word in arguments)
    found = int(_libc().syscall(ctypes.c_long(number), *words))
    if found < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"system call {number}: {os.strerror(code)}")
    return found
