"""`retire-cluster service`: have the system start a part of the cluster, and keep it running."""

from __future__ import annotations

import argparse
import getpass
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from retire_cluster.cli import exits
from retire_cluster.cli.output import Output
from retire_cluster.cli.service import units
from retire_cluster.cli.service.units import Service
from retire_cluster.cli.session import verb_parser
from retire_cluster.conf.loading import read_settings
from retire_cluster.conf.machine.homefolder import home_folder
from retire_cluster.conf.spec import SettingsError
from retire_cluster.node.link import join_line

#: In the worker's data folder, 0600.
JOIN_FILE = "join.line"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,60}\Z")
#: Words that would put a secret where everybody can read it.
_SECRET_FLAGS = ("--api-key",)


class ServiceError(Exception):
    """It cannot be done; the text is one line with the cure."""


@dataclass(frozen=True)
class Step:
    """One thing to do: write a file, or run a command."""

    path: Path | None = None
    content: bytes = b""
    mode: int = 0o644
    command: tuple[str, ...] = ()
    #: A failure is no matter.
    optional: bool = False
    #: The content is nobody's business, also when steps are only shown.
    secret: bool = False


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    given: list[str] = []
    if "--" in words:
        cut = words.index("--")
        words, given = words[:cut], words[cut + 1 :]
    args = _parser().parse_args(words)
    output = Output.standard()
    try:
        service, join = _service(args, given)
        steps = plan(args.verb, service, manager(sys.platform, os.environ), os.environ)
        steps = _with_join(args.verb, service, join, steps)
        return _perform(steps, output, dry_run=args.dry_run, verb=args.verb)
    except (ServiceError, SettingsError) as error:
        output.hint(f"retire-cluster service: {error}")
        return exits.USAGE


def _parser() -> argparse.ArgumentParser:
    parser = verb_parser(
        "service",
        "Have the system start a part of the cluster and keep it running. Flags for the part itself"
        " follow after --, as in: retire-cluster service install worker -- --slots 2",
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb, text in (
        ("install", "set it up and start it"),
        ("uninstall", "stop it and take it away; its data stays"),
        ("status", "how it is"),
    ):
        found = verbs.add_parser(verb, help=text, allow_abbrev=False)
        found.add_argument("role", choices=[*units.ROLES], help="what it runs")
        found.add_argument("--name", help="its name for the system (retire-cluster-ROLE)")
        found.add_argument(
            "--system", action="store_true", help="for the whole machine, from boot on (needs root)"
        )
        found.add_argument("--user", default="", help="with --system: the user it runs as")
        found.add_argument("--data-dir", metavar="FOLDER", help="folder for all that it keeps")
        found.add_argument(
            "--dry-run", action="store_true", help="print what would be written and run"
        )
    return parser


def _service(args: argparse.Namespace, given: Sequence[str]) -> tuple[Service, str]:
    """Return the service, and the join line that was among the words for it."""
    name = args.name or f"retire-cluster-{args.role}"
    if not _NAME.match(name):
        raise ServiceError(f"--name: {name!r:.80} must be letters, digits, . _ -")
    if args.user and not args.system:
        raise ServiceError("--user: goes with --system")
    for word in given:
        if word.split("=")[0] in _SECRET_FLAGS:
            raise ServiceError(
                f"{word.split('=')[0]}: others could read it in the command line; keep keys with"
                " `retire-cluster keys create`, or in the settings file (--config)"
            )
    if args.system and not args.data_dir and sys.platform != "win32":
        folder = f"/var/lib/{name}"
    else:
        folder = str(read_settings({"data_dir": args.data_dir}, None).data_dir.absolute())
    given, join = list(given), ""
    found = join_line.without_line(given) if args.role == "worker" else None
    if found is not None:
        # Units and tasks can be read by everybody, and so can command lines.
        given, join = found
        at = given.index("--join=-" if "--join=-" in given else "--join")
        given[at : at + (1 if given[at] == "--join=-" else 2)] = [
            "--join-file", str(Path(folder) / JOIN_FILE),
        ]  # fmt: skip
    python = os.path.abspath(sys.executable)
    command = (python, "-m", "retire_cluster.cli.main", args.role, "--data-dir", folder, *given)
    return Service(args.role, name, command, folder, args.system, args.user), join


def _with_join(verb: str, service: Service, join: str, steps: list[Step]) -> list[Step]:
    """Return the steps with the file of the join line: after the folder, before anything starts."""
    if service.role != "worker":
        return steps
    path = Path(service.data_dir) / JOIN_FILE
    if verb == "uninstall":
        return [*steps, Step(path=path, mode=0)]
    if verb != "install" or not join:
        return steps
    more = [Step(path=path, content=join.encode() + b"\n", mode=0o600, secret=True)]
    if service.user:
        more.append(Step(command=("chown", service.user, str(path))))
    return [steps[0], *more, *steps[1:]]


def manager(platform: str, environ: Mapping[str, str]) -> str:
    """Return what starts services here: `systemd`, `launchd`, `windows` or `termux`."""
    if "com.termux" in environ.get("PREFIX", ""):
        return "termux"
    if platform == "win32":
        return "windows"
    return "launchd" if platform == "darwin" else "systemd"


def plan(verb: str, service: Service, kind: str, environ: Mapping[str, str]) -> list[Step]:
    """Return what a verb comes to with this manager. Raises `ServiceError`."""
    home = home_folder(sys.platform, environ)
    if home is None and not service.system:
        raise ServiceError(
            "this user has no home folder (HOME is not set); use --system, or set it"
        )
    return _PLANS[kind](verb, service, home or Path("/"))


def _folder(service: Service) -> Step:
    return Step(path=Path(service.data_dir), mode=0o700)


def _systemd(verb: str, service: Service, home: Path) -> list[Step]:
    scope = () if service.system else ("--user",)
    folder = Path("/etc/systemd/system") if service.system else home / ".config/systemd/user"
    path = folder / f"{service.name}.service"
    ctl = ("systemctl", *scope)
    if verb == "install":
        own = ("chown", service.user, service.data_dir)
        steps = [_folder(service)]
        steps += [Step(command=own)] if service.user else []
        steps += [
            Step(path=path, content=units.systemd(service).encode()),
            Step(command=(*ctl, "daemon-reload")),
            Step(command=(*ctl, "enable", "--now", path.name)),
        ]
        if not service.system:
            # Without it the service ends when its user logs out.
            steps.append(Step(command=("loginctl", "enable-linger"), optional=True))
        return steps
    if verb == "status":
        return [Step(command=(*ctl, "--no-pager", "status", path.name))]
    return [
        Step(command=(*ctl, "disable", "--now", path.name), optional=True),
        Step(path=path, mode=0),
        Step(command=(*ctl, "daemon-reload")),
    ]


def _launchd(verb: str, service: Service, home: Path) -> list[Step]:
    folder = Path("/Library/LaunchDaemons") if service.system else home / "Library/LaunchAgents"
    label = f"org.retire-cluster.{service.name}"
    path = folder / f"{label}.plist"
    domain = "system" if service.system else f"gui/{os.getuid() if hasattr(os, 'getuid') else 0}"
    if verb == "install":
        return [
            _folder(service),
            Step(path=path, content=units.launchd(service)),
            Step(command=("launchctl", "bootout", f"{domain}/{label}"), optional=True),
            Step(command=("launchctl", "bootstrap", domain, str(path))),
        ]
    if verb == "status":
        return [Step(command=("launchctl", "print", f"{domain}/{label}"))]
    return [
        Step(command=("launchctl", "bootout", f"{domain}/{label}"), optional=True),
        Step(path=path, mode=0),
    ]


def _windows(verb: str, service: Service, home: Path) -> list[Step]:
    path = Path(service.data_dir) / f"{service.name}.xml"
    if verb == "install":
        try:
            user = getpass.getuser()
        except (OSError, KeyError, ImportError):  # an unknown user id; by version of Python
            raise ServiceError("this user has no name; set USERNAME") from None
        text = units.task_scheduler(service, user)
        return [
            _folder(service),
            Step(path=path, content=text.encode("utf-16")),
            Step(command=("schtasks", "/Create", "/F", "/TN", service.name, "/XML", str(path))),
            Step(command=("schtasks", "/Run", "/TN", service.name)),
        ]
    if verb == "status":
        return [Step(command=("schtasks", "/Query", "/V", "/FO", "LIST", "/TN", service.name))]
    return [
        Step(command=("schtasks", "/End", "/TN", service.name), optional=True),
        Step(command=("schtasks", "/Delete", "/F", "/TN", service.name)),
        Step(path=path, mode=0),
    ]


def _termux(verb: str, service: Service, home: Path) -> list[Step]:
    if service.system:
        raise ServiceError("--system: Termux has one user; leave it out")
    path = home / ".termux/boot" / service.name
    if verb == "install":
        return [
            _folder(service),
            Step(path=path, content=units.termux_boot(service).encode(), mode=0o700),
            Step(command=("sh", "-c", f"nohup {path} > /dev/null 2>&1 &")),
        ]
    pattern = f"retire_cluster.cli.main {service.role} --data-dir {service.data_dir}"
    if verb == "status":
        return [Step(command=("pgrep", "-f", pattern))]
    return [Step(path=path, mode=0), Step(command=("pkill", "-f", pattern), optional=True)]


_PLANS: dict[str, Callable[[str, Service, Path], list[Step]]] = {
    "systemd": _systemd,
    "launchd": _launchd,
    "windows": _windows,
    "termux": _termux,
}


def _perform(steps: Sequence[Step], output: Output, *, dry_run: bool, verb: str) -> int:
    for step in steps:
        if dry_run:
            output.data({}, _shown(step))
        elif step.command:
            code = _run(step, output)
            if code and verb == "status":
                return exits.NOT_FOUND
        else:
            _write(step)
    if not dry_run and verb != "status":
        output.hint("done")
    return exits.OK


def _shown(step: Step) -> str:
    if step.command:
        return f"$ {units.plain_command(step.command)}"
    if step.path is not None and not step.content:
        return f"{'# remove' if not step.mode else '# folder'} {step.path}"
    if step.secret:
        return f"# {step.path}: the join line, readable by its owner only"
    encoding = "utf-16" if step.content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8"
    return f"# {step.path}\n{step.content.decode(encoding)}"


def _run(step: Step, output: Output) -> int:
    try:
        done = subprocess.run(step.command, stdin=subprocess.DEVNULL, check=False)
    except FileNotFoundError:
        if step.optional:
            return 0
        raise ServiceError(
            f"{step.command[0]} is not on this system; --dry-run shows what to set up by hand"
        ) from None
    if done.returncode and not step.optional:
        if "status" in step.command or step.command[0] in ("pgrep",):
            return done.returncode
        raise ServiceError(f"`{units.plain_command(step.command)}` failed (above)")
    return 0


def _write(step: Step) -> None:
    assert step.path is not None
    try:
        if step.content:
            step.path.parent.mkdir(parents=True, exist_ok=True)
            _replace(step.path, step.content, step.mode)
        elif step.mode:
            step.path.mkdir(mode=step.mode, parents=True, exist_ok=True)
        else:
            step.path.unlink(missing_ok=True)
    except OSError as error:
        cure = "run it as root, or leave --system out" if error.errno == 13 else "check the folder"
        raise ServiceError(f"{step.path} cannot be written: {error.strerror}; {cure}") from None


def _replace(path: Path, content: bytes, mode: int) -> None:
    """Write a file that is at no moment readable by more people than it is to be."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(name, mode)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
