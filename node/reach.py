"""What tasks need of a device's files: the system's own, Python's, and what the owner opens.

A list of what is needed, not of what is secret: a home folder holds more secrets than anyone can
name. The worker's folders, with its keys, are in no case on it, even when the owner opens one that
they are in.
"""

from __future__ import annotations

import importlib.util
import os
import site
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from retire_cluster.conf import neighbours
from retire_cluster.conf.loading import default_data_dir
from retire_cluster.node.tasks import custom

#: Programs and what comes with them, on any Linux.
_SYSTEM = (
    "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/opt", "/nix/store",
    "/nix/var/nix/profiles", "/gnu/store", "/var/guix/profiles", "/snap", "/home/linuxbrew",
    "/proc", "/sys", "/run/current-system", "/run/opengl-driver", "/var/cache/fontconfig",
    "/var/lib/texmf", "/var/lib/ca-certificates",
)  # fmt: skip
_CONFIGURATION = "/etc"
#: Links of /etc that lead to where names are resolved, times are told, certificates are.
_LEADING_ELSEWHERE = ("resolv.conf", "hosts", "localtime", "nsswitch.conf", "ssl/certs", "pki/tls")
_DEVICES = (
    "/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty",
)  # fmt: skip
#: Graphics processors and their like: by what their names begin with.
ACCELERATORS = ("dri", "nvidia", "kfd", "accel", "dxg", "mali", "apex_")
_MAX_DEPTH = 12


@dataclass(frozen=True)
class Reach:
    """Whole paths of files and folders; a folder stands for all below it."""

    #: May be read, and run.
    read: tuple[str, ...] = ()
    #: May be changed: what the owner opens.
    write: tuple[str, ...] = ()
    #: Device files, and folders of them, that may be used.
    devices: tuple[str, ...] = ()
    #: What the owner opens and that is only open in parts, because a folder of ours is in it.
    parted: tuple[str, ...] = ()
    #: Links that lead to what is in the others, with where they lead.
    links: tuple[tuple[str, str], ...] = ()


def of_this_device(
    data_dir: Path,
    owners: Sequence[str],
    programs: Sequence[str],
    modules: Sequence[str],
    environ: Mapping[str, str],
) -> Reach:
    """What tasks of a worker need.

    :param data_dir: the worker's own
    :param owners: folders that its owner opens
    :param programs: those that its owner names; a whole path may be anywhere
    :param modules: where task processes find modules
    """
    ours = _ours(data_dir, environ)
    wanted = [*_SYSTEM, *_configuration(), *_on_path(environ), *_of_the_user(environ)]
    wanted += [name for name in programs if os.path.isabs(name) and os.path.isfile(name)]
    read = [part for path in wanted for part in around(path, ours)]
    # The installer makes the environment of a worker in the folder that its data is in.
    read += [part for path in (*_pythons(), *modules) for part in around(path, ours, inside=True)]
    write = [part for path in owners for part in around(path, ours)]
    parted = [path for path in owners if around(path, ours) != [os.path.realpath(path)]]
    named = dict.fromkeys([*wanted, *_pythons(), *modules, *owners])
    links = [(path, os.path.realpath(path)) for path in named if os.path.exists(path)]
    links = [(path, real) for path, real in links if os.path.abspath(path) != real]
    return Reach(_once(read), _once(write), tuple(_devices()), tuple(parted), tuple(links))


def around(path: str, ours: Iterable[str], *, inside: bool = False, depth: int = 0) -> list[str]:
    """A path, or as much of it as is beside folders of ours; links are followed once, here.

    :param inside: a path in a folder of ours is meant so
    """
    real = os.path.realpath(path)
    if not inside and any(is_below(real, folder) for folder in ours):
        return []
    if inside and real in ours:
        return []
    below = [folder for folder in ours if folder != real and is_below(folder, real)]
    if not below or depth > _MAX_DEPTH:
        return [] if below else [real]
    found: list[str] = []
    try:
        names = sorted(os.listdir(real))
    except OSError:
        return []
    for name in names:
        child = os.path.join(real, name)
        if not os.path.islink(child):
            found += around(child, below, depth=depth + 1)
    return found


def is_below(path: str, folder: str) -> bool:
    """Whether a whole path is a folder, or in it; no link is followed."""
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def _ours(data_dir: Path, environ: Mapping[str, str]) -> list[str]:
    """The folders of this worker, of the `up` that it belongs to, and of others of this user."""
    found: list[str | Path] = [data_dir.absolute()]
    if data_dir.absolute().parent.name == "workers":
        found.append(data_dir.absolute().parents[1])
    usual = default_data_dir(sys.platform, environ)
    if usual is not None:
        found.append(usual)
    found += neighbours.folders()
    return list(_once(os.path.realpath(path) for path in found))


def _configuration() -> Iterator[str]:
    """/etc; for root only what everybody may read of it, for root may read it all."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        yield _CONFIGURATION
    else:
        yield from _public(_CONFIGURATION, 2)
    for name in _LEADING_ELSEWHERE:
        path = os.path.join(_CONFIGURATION, name)
        if os.path.islink(path):
            yield path


def _public(folder: str, depth: int) -> Iterator[str]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        try:
            mode = entry.stat(follow_symlinks=False).st_mode
        except OSError:
            continue
        if stat.S_ISDIR(mode) and depth > 1:
            if mode & stat.S_IROTH:
                yield from _public(entry.path, depth - 1)
        elif mode & stat.S_IROTH and not stat.S_ISLNK(mode):
            yield entry.path


def _on_path(environ: Mapping[str, str]) -> Iterator[str]:
    home = environ.get("HOME", "")
    for folder in environ.get("PATH", "").split(os.pathsep):
        if os.path.isabs(folder) and folder.rstrip(os.sep) not in ("", home.rstrip(os.sep)):
            yield folder


def _of_the_user(environ: Mapping[str, str]) -> Iterator[str]:
    """Libraries and Python packages that a user has installed for himself."""
    for folder in (site.getusersitepackages(), os.path.join(environ.get("HOME", ""), ".local/lib")):
        if os.path.isabs(folder) and os.path.isdir(folder):
            yield folder


def _pythons() -> Iterator[str]:
    """The interpreter, its libraries, this package, and the packages with own types."""
    yield from (sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix)
    yield from (os.path.dirname(sys.executable), os.path.dirname(os.path.realpath(sys.executable)))
    yield str(Path(__file__).resolve().parents[1])
    for point in custom.installed():
        yield from _home_of(point.value.partition(":")[0].strip().partition(".")[0])


def _home_of(module: str) -> list[str]:
    """Where a package is that was installed so that its source can be worked on."""
    try:
        spec = importlib.util.find_spec(module)
        if spec is None:
            return []
        return [*(spec.submodule_search_locations or ()), *([spec.origin] if spec.origin else ())]
    except Exception:  # finders are strangers' code
        return []


def _devices() -> Iterator[str]:
    yield from _DEVICES
    yield "/dev/shm"
    try:
        names = sorted(os.listdir("/dev"))
    except OSError:
        return
    yield from (f"/dev/{name}" for name in names if name.startswith(ACCELERATORS))


def _once(paths: Iterable[str]) -> tuple[str, ...]:
    """Each path once, and none that is below another."""
    kept: list[str] = []
    for path in sorted(set(paths), key=lambda path: path.split(os.sep)):
        if not kept or not is_below(path, kept[-1]):
            kept.append(path)
    return tuple(kept)
