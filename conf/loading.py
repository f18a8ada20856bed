"""Flags over environment over TOML over defaults: from texts to `Settings`.

`load` is pure. `read_settings` is the one function that looks at the process's environment and
the disk; every command calls it once, at its edge.
"""

from __future__ import annotations

import difflib
import os
import posixpath
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from retire_cluster.conf.machine.homefolder import expanded, home_folder
from retire_cluster.conf.sections import SECTIONS
from retire_cluster.conf.settings import Settings, all_specs
from retire_cluster.conf.spec import (
    ENVIRONMENT_PREFIX,
    SettingsError,
    Spec,
    from_document,
    from_text,
    specs,
    wrong_with,
)

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

#: Names the data folder when `--data-dir` does not.
DATA_DIR_VARIABLE = "RETIRE_CLUSTER_DATA_DIR"
#: Names the TOML file when `--config` does not.
CONFIG_VARIABLE = "RETIRE_CLUSTER_CONFIG"
#: Variables of test suites; no setting.
_FREE_PREFIX = "RETIRE_CLUSTER_TEST_"
#: Source of a setting that a flag gave.
COMMAND_LINE = "command line"
MAX_FILE_BYTES = 1 << 20

#: Dotted name → value and where it came from.
_Taken = dict[str, tuple[Any, str]]


def load(
    text: str | None,
    environ: Mapping[str, str],
    overrides: Mapping[str, Any],
    *,
    source: str = "configuration file",
    platform: str = sys.platform,
) -> Settings:
    """Return settings from a TOML text, environment variables and flags, the last one winning.

    `overrides` maps dotted names (`api.port`, `data_dir`) to values; None means the flag was not
    given. An empty environment variable counts as unset. `source` is what messages call the file.

    Raises `SettingsError`, one line naming the setting, its source and the cure, for TOML that
    does not parse, an unknown name anywhere, or a value that is out of bounds.
    """
    known = {spec.dotted: spec for spec in all_specs()}
    taken: _Taken = {}
    taken.update(_from_toml(text or "", source, known))
    taken.update(_from_environment(environ, known.values()))
    taken.update(_from_overrides(overrides, known))

    data_dir, data_dir_source = taken.pop("data_dir", (None, ""))
    if data_dir is None:
        usual = default_data_dir(platform, environ)
        if usual is None:
            raise SettingsError(
                "data_dir",
                "this user has no home folder (HOME is not set); name the folder with --data-dir"
                " or RETIRE_CLUSTER_DATA_DIR",
            )
        folder = usual
    elif not isinstance(data_dir, (str, os.PathLike)) or not os.fspath(data_dir):
        raise SettingsError("data_dir", "must be the path of a folder", data_dir_source)
    elif "\0" in os.fspath(data_dir):
        raise SettingsError("data_dir", "must be a path without a NUL character", data_dir_source)
    else:
        try:
            folder = Path(expanded(os.fspath(data_dir)))
        except LookupError as error:
            raise SettingsError("data_dir", str(error.args[0]), data_dir_source) from None

    for dotted, (value, origin) in taken.items():
        reason = wrong_with(known[dotted], value)
        if reason:
            raise SettingsError(dotted, reason, origin)
    sections: dict[str, Any] = {}
    for name, kind in SECTIONS.items():
        values = {s.name: taken[s.dotted][0] for s in specs(kind) if s.dotted in taken}
        try:
            sections[name] = kind(**values)
        except SettingsError as error:
            origins = sorted({taken[s.dotted][1] for s in specs(kind) if s.dotted in taken})
            raise SettingsError(error.field, error.reason, " and ".join(origins)) from None
    origins_by_name = {dotted: origin for dotted, (_, origin) in taken.items()}
    if data_dir is not None:
        origins_by_name["data_dir"] = data_dir_source
    return Settings(data_dir=folder, sources=MappingProxyType(origins_by_name), **sections)


def read_settings(
    overrides: Mapping[str, Any],
    config: str | os.PathLike[str] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """Return this process's settings: from its environment and, where one is named, a TOML file.

    Raises `SettingsError` as `load` does, and for a file that is missing, unreadable, not UTF-8 or
    larger than `MAX_FILE_BYTES`.

    :param config: the file; else `CONFIG_VARIABLE` names it
    """
    environ = os.environ if environ is None else environ
    path = config or environ.get(CONFIG_VARIABLE) or None
    text, source = (None, "") if path is None else (_read_text(Path(path)), os.fspath(path))
    settings = load(text, environ, overrides, source=source or "configuration file")
    return replace(settings, data_dir=_absolute(settings.data_dir))


def _absolute(folder: Path) -> Path:
    """Return the folder's absolute path, for what we start works in other folders.

    Raises `SettingsError` for one that is relative to a folder that is gone.
    """
    try:
        return Path(os.path.abspath(folder))
    except OSError:
        raise SettingsError(
            "data_dir",
            f"{str(folder)!r:.200} is relative to a folder that is gone; write it from / on, or"
            " change into a folder that is there",
        ) from None


def default_data_dir(platform: str, environ: Mapping[str, str]) -> Path | None:
    """Return the folder for a program's data on this platform; None: the user has no home."""
    variable = {"win32": "LOCALAPPDATA", "darwin": ""}.get(platform, "XDG_DATA_HOME")
    named = environ.get(variable, "")
    if named and (platform == "win32" or posixpath.isabs(named)):  # XDG: a relative one is ignored
        return Path(named) / "retire-cluster"
    home = home_folder(platform, environ)
    if home is None:
        return None
    below = {"win32": "AppData/Local", "darwin": "Library/Application Support"}
    return home / below.get(platform, ".local/share") / "retire-cluster"


def _from_toml(text: str, source: str, known: Mapping[str, Spec]) -> _Taken:
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise SettingsError(source, f"is not valid TOML: {_one_line(error)}") from None
    taken: _Taken = {}
    for section, value in document.items():
        if section == "data_dir":
            taken[section] = (value, source)
            continue
        if section not in SECTIONS:
            raise SettingsError(section, f"is no section{_nearest(section, SECTIONS)}", source)
        if not isinstance(value, dict):
            raise SettingsError(
                section, f"must be a section: write [{section}] above its settings", source
            )
        for name, item in value.items():
            dotted = f"{section}.{name}"
            if dotted not in known:
                names = [spec.dotted for spec in specs(SECTIONS[section])]
                raise SettingsError(dotted, f"is no setting{_nearest(dotted, names)}", source)
            taken[dotted] = (from_document(known[dotted], item), source)
    return taken


def _from_environment(environ: Mapping[str, str], known: Iterable[Spec]) -> _Taken:
    by_variable = {spec.env: spec for spec in known}
    taken: _Taken = {}
    for variable in sorted(environ):
        if not variable.startswith(ENVIRONMENT_PREFIX) or variable.startswith(_FREE_PREFIX):
            continue
        text = environ[variable]
        if variable == CONFIG_VARIABLE or not text.strip():
            continue
        if variable == DATA_DIR_VARIABLE:
            taken["data_dir"] = (text, variable)
        elif variable in by_variable:
            spec = by_variable[variable]
            taken[spec.dotted] = (from_text(spec, text), variable)
        else:
            names = [*by_variable, DATA_DIR_VARIABLE, CONFIG_VARIABLE]
            raise SettingsError(
                variable, f"is no setting{_nearest(variable, names)}; unset it", "environment"
            )
    return taken


def _from_overrides(overrides: Mapping[str, Any], known: Mapping[str, Spec]) -> _Taken:
    taken: _Taken = {}
    for dotted, value in overrides.items():
        if value is None:
            continue
        if dotted == "data_dir":
            taken[dotted] = (value, COMMAND_LINE)
        elif dotted in known:
            taken[dotted] = (from_document(known[dotted], value), COMMAND_LINE)
        else:
            raise SettingsError(dotted, f"is no setting{_nearest(dotted, known)}", COMMAND_LINE)
    return taken


def _nearest(word: str, words: Iterable[str]) -> str:
    found = difflib.get_close_matches(word, list(words), n=1, cutoff=0.5)
    return f"; did you mean {found[0]}?" if found else ""


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise SettingsError(
            os.fspath(path), f"cannot be read: {error.strerror or error}; name another by --config"
        ) from None
    if len(raw) > MAX_FILE_BYTES:
        raise SettingsError(os.fspath(path), "is larger than 1 MiB; this is no settings file")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise SettingsError(os.fspath(path), "is not UTF-8; save it as UTF-8") from None
