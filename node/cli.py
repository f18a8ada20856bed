"""`retire-cluster-worker`: makes this device a member of a cluster."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import logging
import os
import random
import re
import secrets
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from retire_cluster.conf import logs
from retire_cluster.conf.arguments import Parser
from retire_cluster.conf.curve import KeyFileError
from retire_cluster.conf.loading import read_settings
from retire_cluster.conf.machine.ownership import Foreign, check_folder
from retire_cluster.conf.machine.prctl import hide_memory
from retire_cluster.conf.outlet import last_words
from retire_cluster.conf.sections import ROLES
from retire_cluster.conf.settings import Settings
from retire_cluster.conf.spec import SettingsError
from retire_cluster.conf.usage import Unusable
from retire_cluster.node.core import exit_codes
from retire_cluster.node.core.pace import Pace
from retire_cluster.node.core.records import Introduction
from retire_cluster.node.core.session import Session
from retire_cluster.node.device import probe
from retire_cluster.node.device.clock import monotonic
from retire_cluster.node.device.identity import (
    FolderLock,
    FolderTaken,
    check_id,
    device_id,
    host_name,
)
from retire_cluster.node.device.metrics import Sampler
from retire_cluster.node.device.policy import Policy, missing, running_as_root
from retire_cluster.node.link import credentials, join_line
from retire_cluster.node.link.credentials import Credentials
from retire_cluster.node.link.local_enrolment import NotLetIn, let_in
from retire_cluster.node.link.sockets import DEFAULT_PORT, Address, Dialer
from retire_cluster.node.running.catalog import Catalog
from retire_cluster.node.running.description import OwnTypes, own_types
from retire_cluster.node.running.leftovers import Leftovers
from retire_cluster.node.running.package_watcher import Installed, Watcher
from retire_cluster.node.running.runner import Runner
from retire_cluster.node.running.spool import Spool
from retire_cluster.node.running.task_process import Plan, TaskProcess, modules
from retire_cluster.node.running.workplace import Workplace, root_in
from retire_cluster.node.selftest.report import ending
from retire_cluster.node.system import process_tree
from retire_cluster.node.system.resource_limits import Bounds
from retire_cluster.node.tasks.base import Limits
from retire_cluster.node.walls import task_cgroups
from retire_cluster.node.walls.confinement import AUTO, Unconfined, find_confinement
from retire_cluster.schemas.protocol.messages import first_left_out
from retire_cluster.schemas.vocabulary import TAG_PATTERN, Platform

PROGRAM = "retire-cluster-worker"
_MIB = 1024 * 1024
_TAG = re.compile(rf"{TAG_PATTERN}\Z")

log = logging.getLogger("retire_cluster.node")


def make_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = Parser(
        prog=PROGRAM,
        description="Joins this device to a Retire-Cluster and runs tasks for it.",
    )
    parser.add_argument(
        "--join",
        metavar="LINE",
        help="the line that `retire-cluster token create` prints on the main node, or HOST[:PORT]"
        f" (port {DEFAULT_PORT}) of one without encryption; - reads it from standard input; once"
        " joined it may be left out",
    )
    parser.add_argument(
        "--join-file",
        metavar="FILE",
        help="the same from a file, where no list of processes has it",
    )
    parser.add_argument(
        "--plain", action="store_true", help="do not encrypt, whatever key this device has"
    )
    parser.add_argument("--device-id", help="name in the cluster; made once when not given")
    parser.add_argument("--role", choices=ROLES, help="what the device is for")
    parser.add_argument("--tag", action="append", metavar="T", help="a tag; may be repeated")
    parser.add_argument("--slots", type=int, help="tasks run at once (one a core)")
    parser.add_argument(
        "--allow",
        action="append",
        metavar="TYPE",
        default=[],
        help="also run this type: command, command:shell (with a shell), or python_call (any Python"
        " function of whoever may submit, as this user, behind the walls); may be repeated",
    )
    parser.add_argument(
        "--allow-root",
        action="store_true",
        help="run command, python_call and own types even as root",
    )
    parser.add_argument(
        "--drain-seconds",
        type=float,
        default=Pace.grace_seconds,
        help="how long running tasks may go on after the first Ctrl-C (default %(default)g)",
    )
    parser.add_argument("--data-dir", help="folder of this worker's identity and results")
    parser.add_argument("--config", help="TOML file with settings")
    parser.add_argument(
        "--test",
        action="store_true",
        help="say what this device offers, run a task of each kind, ask whether it may join",
    )
    parser.add_argument("--debug", action="store_true", help="log more, with traces")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; the exit code.

    0 left in peace, 1 (`--test`) a kind of task fails here, 2 cannot start as asked or refused by
    the main node, 3 (`--test`) not reachable, 4 removed from the cluster, 130 stopped at once by a
    second signal.
    """
    arguments = make_parser().parse_args(argv)
    # Before anything of a stranger's runs, and that is when own types are described.
    hide_memory()
    try:
        settings = _settings(arguments)
        policy = _policy(arguments, settings)
        logs.configure(settings.logging, queued=True)
        settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        check_folder(settings.data_dir)
        lock = FolderLock(settings.data_dir)
    except (SettingsError, Unusable, Foreign, FolderTaken) as error:
        return _refuse(str(error))
    except OSError as error:
        return _refuse(f"the data folder cannot be used: {error}; name another by --data-dir")
    workplaces: list[Workplace] = []
    try:
        try:
            address, keys = _main_node(settings, plain=arguments.plain)
            settings, keys = _identity(
                settings, address, keys, plain=arguments.plain, trial=arguments.test
            )
            pace = Pace(grace_seconds=arguments.drain_seconds)
            worker = build(settings, policy, address, pace, keys, workplaces)
            if arguments.test:
                return _test(worker)
            spool = Spool(settings.data_dir / "results.spool")
        except (NotLetIn, Unusable) as error:
            return _refuse(str(error))
        except OSError as error:
            return _refuse(
                f"{settings.data_dir} cannot be used: {error}; name another by --data-dir"
            )
        return _run(worker, spool)
    except Exception:
        # Not a refusal: whoever watches this process starts it again.
        log.exception("the worker met an error of its own and ends")
        return exit_codes.BROKEN
    finally:
        for workplace in workplaces:
            workplace.close()
        lock.release()


@dataclass
class Worker:
    """The parts of a worker, put together but not running."""

    settings: Settings
    dialer: Dialer
    introduction: Introduction
    capabilities: dict[str, Any]
    catalog: Catalog
    plan: Plan
    limits: Limits
    pace: Pace
    installed: Installed
    #: Finds the own types of now, and what their tasks need of the files.
    describe_again: Callable[[], OwnTypes]
    credentials: Credentials | None = None


def build(
    settings: Settings,
    policy: Policy,
    address: Address,
    pace: Pace,
    keys: Credentials | None = None,
    workplaces: list[Workplace] | None = None,
) -> Worker:
    """Finds out what this device is and has. Raises `Unusable` and `OSError`.

    :param workplaces: takes what is to be closed when the worker goes
    """
    workplaces = workplaces if workplaces is not None else []
    folder = settings.data_dir
    for tag in settings.worker.tags:
        if not _TAG.match(tag):
            raise Unusable(
                f"tag {tag!r:.80}: 1 to 64 of letters, digits and _ . : = -, the first one a"
                " letter or digit"
            )
    name = device_id(settings.data_dir, settings.worker.device_id)
    platform = probe.detect_platform()
    android = platform is Platform.ANDROID
    facts = probe.capabilities(folder)
    role = settings.worker.role
    if settings.source_of("worker.role") == "default":
        role = probe.detect_role(platform).value
    leftovers = Leftovers(folder / "task-processes.json", adopting=process_tree.become_subreaper())
    ended = leftovers.end_earlier()
    if ended:
        log.warning("ended %d process(es) that an earlier worker had left", ended)
    rules = settings.policy
    environment = policy.process_environment(os.environ, android=android)
    look = partial(
        find_confinement,
        rules.user,
        rules.sandbox,
        folder,
        network=policy.network,
        folders=policy.folders,
        programs=policy.programs(),
        modules=modules(),
    )
    try:
        confinement = look()
        # Another user may not enter the worker's own folder.
        root = None if confinement.user is not None else root_in(folder)
        workplace = Workplace(root, confinement.user, leftovers.note_roots)
        workplaces.append(workplace)
        environment.update(confinement.variables())
        if confinement.user is not None:
            # The user's own is the worker's; a task gets its folder for one.
            environment.update(HOME=str(workplace.root), TMPDIR=str(workplace.root))
        if rules.user or rules.sandbox != AUTO:
            confinement.try_out(sys.executable, workplace.root, environment)
    except Unconfined as error:
        raise Unusable(str(error)) from None
    bounds = Bounds(
        memory_bytes=_memory_bytes(settings, facts),
        cpu_seconds=rules.cpu_limit_seconds,
        file_bytes=rules.file_limit_mb * _MIB,
        new_processes=rules.process_limit,
        cpu_percent=rules.cpu_percent,
    )
    groups = task_cgroups.find()
    if bounds.cpu_percent and (groups is None or "cpu" not in groups.controllers):
        log.warning(
            "policy.cpu_percent is not kept: the system has handed no control group with"
            " processor time over to this worker (Delegate=yes in its unit does)"
        )
    plan = Plan(
        workplace=workplace,
        environment=environment,
        leftovers=leftovers,
        bounds=bounds,
        confinement=confinement,
        groups=groups,
    )
    for words in missing(policy.folders):
        log.warning("%s", words)
    for path in confinement.reach.parted:
        log.warning(
            "policy.folders: %s is open to tasks but for this worker's own folder, Python and"
            " modules in it, which they cannot change; what is made anew beside those is not open:"
            " keep the two apart (--data-dir)",
            path,
        )
    installed = Installed()
    own = own_types(policy, plan)
    catalog = Catalog(policy, own.types, own.left_out)
    introduction = Introduction(
        device_id=name,
        instance=secrets.token_hex(8),
        version=_version(),
        role=role,
        platform=platform.value,
        hostname=host_name(),
        tags=probe.all_tags(settings.worker.tags, probe.automatic_tags(platform.value, facts)),
        slots=settings.worker.slots or int(facts.get("cpu_count") or 1),
        task_types=catalog.advertised(),
        left_out=first_left_out(own.left_out),
        walls=(*confinement.shown(), ending(groups)),
    )
    limits = Limits(
        shell=policy.shell,
        private_addresses=policy.private_addresses,
        memory_bytes=bounds.memory_bytes,
        folders=policy.folders,
        output_bytes=rules.output_limit_kb * 1024,
        environment={
            **policy.task_environment(os.environ, android=android),
            **confinement.variables(),
        },
        own_home=confinement.own_home,
        own_temporary=bool(confinement.files),
    )
    dialer = Dialer(address, keys.current if keys is not None else None)

    def describe() -> OwnTypes:
        with contextlib.suppress(Unconfined):
            # A package that is installed in place has brought a folder.
            plan.confine(look())
        return own_types(policy, plan)

    return Worker(
        settings,
        dialer,
        introduction,
        facts,
        catalog,
        plan,
        limits,
        pace,
        installed,
        describe,
        keys,
    )


def _test(worker: Worker) -> int:
    from retire_cluster.node.selftest.report import check
    from retire_cluster.node.selftest.samples import try_all

    sampler = Sampler(worker.settings.data_dir, monotonic)
    tried = try_all(
        worker.catalog,
        worker.limits,
        worker.plan,
        lambda: (worker.capabilities, sampler.sample()),
    )
    return check(
        worker.dialer,
        worker.introduction,
        worker.capabilities,
        worker.catalog,
        worker.credentials,
        worker.plan,
        tried,
    )


def _run(worker: Worker, spool: Spool) -> int:
    from retire_cluster.node.link.agent import Agent, Waker

    me, settings = worker.introduction, worker.settings
    for reason in spool.reasons:
        log.warning("results.spool: %s; it is set aside in results.bad", reason)
    waker = Waker()
    sampler = Sampler(settings.data_dir, monotonic)
    runner = Runner(
        slots=me.slots,
        catalog=worker.catalog,
        limits=worker.limits,
        start_process=lambda: TaskProcess(worker.plan, own_types=worker.catalog.has_own),
        facts=lambda: (worker.capabilities, sampler.sample()),
        clock=monotonic,
        wake=waker,
    )
    worker.plan.workplace.tell = runner.note_trouble
    session = Session(
        me,
        now=monotonic(),
        random=random.Random().random,
        new_session=lambda: secrets.token_hex(8),
        repeatable=worker.catalog.repeatable,
        stored=spool.results(),
        kill_on_lease_loss=settings.worker.on_lease_loss == "kill",
        pace=worker.pace,
        address=str(worker.dialer.address),
    )
    agent = Agent(
        session=session,
        runner=runner,
        catalog=worker.catalog,
        spool=spool,
        dialer=worker.dialer,
        credentials=worker.credentials,
        welcomed=_welcomed(worker),
        waker=waker,
        sample=sampler.sample,
        capabilities=worker.capabilities,
        clock=monotonic,
    )
    log.info(
        "device %s (%s, %d slots: %s) dials %s",
        me.device_id,
        me.role,
        me.slots,
        ", ".join(info.name for info in me.task_types),
        worker.dialer.address,
    )
    kept_back = worker.catalog.kept_back()
    if kept_back:
        log.warning(
            "running as root: %s will not run; start as another user, name one for tasks"
            " (policy.user), or start with --allow-root",
            ", ".join(kept_back),
        )
    listen_to_signals(agent.stop, waker.writer.fileno())
    watcher = Watcher(
        worker.installed,
        worker.describe_again,
        agent.replace_own_types,
    )
    watcher.start()
    try:
        return agent.run()
    finally:
        watcher.close()
        if threading.current_thread() is threading.main_thread():
            signal.set_wakeup_fd(-1)
        waker.close()


def _welcomed(worker: Worker) -> Callable[[], None]:
    """Remembers, once a main node said welcome, where that was."""
    if worker.credentials is not None:
        return worker.credentials.note_welcomed
    return partial(credentials.remember_plain, worker.settings.data_dir, worker.dialer.address)


def listen_to_signals(stop: Any, wakeup_fd: int) -> None:
    """Ctrl-C, SIGTERM, CTRL_BREAK and a closed terminal ask the worker to go."""
    if threading.current_thread() is not threading.main_thread():
        return
    signal.set_wakeup_fd(wakeup_fd, warn_on_full_buffer=False)
    for name in ("SIGTERM", "SIGINT", "SIGBREAK", "SIGHUP"):
        number = getattr(signal, name, None)
        # nohup and its like ignore SIGHUP on purpose.
        if number is None or signal.getsignal(number) is signal.SIG_IGN:
            continue
        signal.signal(number, lambda signum, frame: stop(signal.Signals(signum).name))


def _settings(arguments: argparse.Namespace) -> Settings:
    overrides: dict[str, Any] = {
        "data_dir": arguments.data_dir,
        "worker.join": _line(arguments),
        "worker.device_id": arguments.device_id,
        "worker.role": arguments.role,
        "worker.tags": arguments.tag,
        "worker.slots": arguments.slots,
        "policy.allow_root": True if arguments.allow_root else None,
        "logging.debug": True if arguments.debug else None,
    }
    if not 0 <= arguments.drain_seconds <= 86_400:
        raise Unusable("--drain-seconds: must be from 0 to 86400")
    return read_settings(overrides, arguments.config)


def _line(arguments: argparse.Namespace) -> str | None:
    if arguments.join_file is not None:
        if arguments.join is not None:
            raise Unusable("--join-file: goes without --join")
        return join_line.from_file(arguments.join_file) or None
    if arguments.join == join_line.STANDARD_INPUT:
        return join_line.from_standard_input()
    found: str | None = arguments.join
    return found


def _policy(arguments: argparse.Namespace, settings: Settings) -> Policy:
    rules = settings.policy
    return Policy.make(
        allow=(*rules.allow, *arguments.allow),
        deny=rules.deny,
        shell=rules.shell,
        private_addresses=rules.private_addresses,
        is_root=running_as_root(),
        allow_root=rules.allow_root,
        pass_environment=rules.pass_environment,
        commands=rules.commands,
        folders=rules.folders,
        network=rules.network != "none",
        other_user=bool(rules.user),
    )


def _main_node(settings: Settings, *, plain: bool) -> tuple[Address, Credentials | None]:
    try:
        return credentials.find(settings.data_dir, settings.worker.join.strip(), plain=plain)
    except KeyFileError as error:
        raise Unusable(str(error)) from None


def _identity(
    settings: Settings,
    address: Address,
    keys: Credentials | None,
    *,
    plain: bool,
    trial: bool,
) -> tuple[Settings, Credentials | None]:
    """The settings with this device's one name in them, and the keys that are known by it."""
    folder, wanted = settings.data_dir, settings.worker.device_id
    check_id(wanted)
    name = wanted if keys is not None and wanted else device_id(folder, wanted)
    if not plain and (keys is None or not (keys.enrolled or keys.enrolling)):
        # None yet, or one whose join never came to an end: on the main node's own machine,
        # as its user, another way is open.
        keys = let_in(folder, address, name, trial=trial) or keys
    if keys is not None:
        name = device_id(folder, keys.settle(name, asked=bool(wanted)))
    worker = replace(settings.worker, device_id=name)
    return settings.with_sections({"worker": worker}), keys


def _memory_bytes(settings: Settings, facts: dict[str, Any]) -> int:
    if settings.policy.memory_limit_mb:
        return settings.policy.memory_limit_mb * _MIB
    total_gb = facts.get("memory_total_gb")
    return int(total_gb * probe.GIB * 3 / 4) if total_gb else 0


def _version() -> str:
    try:
        return importlib.metadata.version("retire-cluster")
    except importlib.metadata.PackageNotFoundError:
        return ""


def _refuse(text: str) -> int:
    last_words(f"{PROGRAM}: {' '.join(text.split())}")
    return exit_codes.REFUSED


__all__ = ["Worker", "build", "main", "make_parser"]
