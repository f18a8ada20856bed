"""What tasks need of a device's files: the system's own, Python's, and what the owner opens.

A list of what is needed, not of what is secret: a home folder holds more secrets than anyone can
name. The worker's folders, with its keys, are in no case on it, even when the owner opens one that
they are in; its code is for no task to change.
"""

from __future__ import annotations

import importlib.util
import os
import site
import stat
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from retire_cluster.conf import neighbours
from retire_cluster.conf.loading import default_data_dir
from retire_cluster.node.device import editable_installs, entry_points
from retire_cluster.node.walls import paths
from retire_cluster.node.walls.paths import is_below

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
    #: What the owner opens and that is only open in parts, because something of ours is in it.
    parted: tuple[str, ...] = ()
    #: Links that lead to what is in the others, with where they lead.
    links: tuple[tuple[str, str], ...] = ()
    #: Folders of the worker and its like, which are in no case open.
    ours: tuple[str, ...] = ()


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
    ours, homes = _ours(data_dir, environ), paths.homes(environ)
    code = list(_code(modules, homes))
    code += [os.path.realpath(path) for path in code]
    write: list[str] = []
    parted: list[str] = []
    for path in owners:
        real = os.path.realpath(path)
        # A home folder that modules are in is not theirs alone.
        kept = [path for path in code if path not in homes or is_below(path, real)]
        parts = around(path, [*ours, *kept])
        write += parts
        parted += [path] if parts != [real] else []
    named = [*_SYSTEM, *_configuration()]
    named += [name for name in programs if os.path.isabs(name) and os.path.isfile(name)]
    theirs = [*paths.of_programs(environ, homes, write), *_of_the_user(environ)]
    theirs += _apart(modules, homes)
    projects = [path for path in _projects(homes) if not paths.leads_through(path, write)]
    pythons = [*_pythons(homes), *projects]
    # What a task may change does not say what else is open: not to the next worker either.
    wanted = [path for path in (*named, *theirs) if not paths.leads_through(path, write)]
    inside = {*pythons, *modules}  # The installer puts a worker's environment beside its data.
    read = [
        part
        for path in (*wanted, *pythons)
        for part in around(path, ours, inside=path in inside)
        if not any(is_below(part, folder) for folder in write)
    ]
    links = [(path, os.path.realpath(path)) for path in dict.fromkeys([*wanted, *pythons, *owners])]
    links = [(path, real) for path, real in links if os.path.exists(path)]
    links = [(path, real) for path, real in links if os.path.abspath(path) != real]
    return Reach(
        _once(read), _once(write), tuple(_devices()), tuple(parted), tuple(links), tuple(ours)
    )


def around(path: str, ours: Iterable[str], *, inside: bool = False, depth: int = 0) -> list[str]:
    """A path, or as much of it as is beside folders of ours; links are followed once, here.

    :param inside: a path in a folder of ours is meant so
    """
    real = os.path.realpath(path)
    if not inside and any(is_below(real, folder) for folder in ours):
        return []
    if real in ours:
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


def _apart(paths: Iterable[str], homes: Sequence[str]) -> Iterator[str]:
    """Those that are no home folder, and hold none."""
    yield from (path for path in paths if os.path.realpath(path) not in homes)


def _of_the_user(environ: Mapping[str, str]) -> Iterator[str]:
    """Libraries and Python packages that a user has installed for himself."""
    for folder in (site.getusersitepackages(), os.path.join(environ.get("HOME", ""), ".local/lib")):
        if os.path.isabs(folder) and os.path.isdir(folder):
            yield folder


def _pythons(homes: Sequence[str]) -> Iterator[str]:
    """The interpreter, its libraries, this package, and the packages with own types."""
    for prefix in (sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix):
        yield from paths.of_prefix(prefix, homes)
    folders = [os.path.dirname(sys.executable), os.path.dirname(os.path.realpath(sys.executable))]
    folders.append(str(Path(__file__).resolve().parents[2]))
    for point in entry_points.installed():
        folders += _home_of(point.value.partition(":")[0].strip().partition(".")[0])
    yield from _apart(folders, homes)


def _projects(homes: Sequence[str]) -> Iterator[str]:
    """The folders of packages with own types that are installed in place."""
    for root in editable_installs.roots(sys.path, entry_points.GROUP):
        real = os.path.realpath(root)
        # A home folder that somebody made a package of holds more than that.
        if not any(is_below(home, real) for home in homes):
            yield root


def _code(modules: Sequence[str], homes: Sequence[str]) -> Iterator[str]:
    """What the worker, its task processes and the next worker run: for no task to change."""
    for path in _pythons(homes):
        # A system's prefix holds much else; what is Python's in it comes with the modules.
        if os.path.realpath(path) not in ("/", "/usr", "/usr/local"):
            yield path
    yield from modules
    found = sysconfig.get_paths()
    yield from (found[name] for name in ("stdlib", "platstdlib", "purelib", "platlib", "scripts"))


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
