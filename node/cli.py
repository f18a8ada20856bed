"""`retire-cluster-worker`: makes this device a member of a cluster."""

from __future__ import annotations

import logging
import random
import secrets
import signal
import threading
from collections.abc import Sequence
from typing import Any

from retire_cluster.conf import logs
from retire_cluster.conf.machine.ownership import Foreign, check_folder
from retire_cluster.conf.machine.prctl import hide_memory
from retire_cluster.conf.outlet import last_words
from retire_cluster.conf.spec import SettingsError
from retire_cluster.conf.usage import Unusable
from retire_cluster.node.assembly import Worker, build
from retire_cluster.node.core import exit_codes
from retire_cluster.node.core.pace import Pace
from retire_cluster.node.core.session import Randomness, Session
from retire_cluster.node.device.clock import monotonic
from retire_cluster.node.device.facts import Facts
from retire_cluster.node.device.identity import (
    FolderLock,
    FolderTaken,
)
from retire_cluster.node.device.metrics import Sampler
from retire_cluster.node.flags import PROGRAM, make_parser, policy_of, settings_of
from retire_cluster.node.link.agent import Agent
from retire_cluster.node.link.enrolment import Enrolment
from retire_cluster.node.link.joining import identity, main_node
from retire_cluster.node.link.local_enrolment import NotLetIn
from retire_cluster.node.link.waker import Waker
from retire_cluster.node.running.package_watcher import PackageWatcher
from retire_cluster.node.running.runner import Runner
from retire_cluster.node.running.spool import Spool
from retire_cluster.node.running.task_process import TaskProcess
from retire_cluster.node.running.workplace import Workplace

log = logging.getLogger("retire_cluster.node")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit code.

    0 left in peace, 1 (`--test`) a kind of task fails here, 2 cannot start as asked or refused by
    the main node, 3 (`--test`) not reachable, 4 removed from the cluster, 130 stopped at once by a
    second signal.
    """
    arguments = make_parser().parse_args(argv)
    # Before anything of a stranger's runs, and that is when own types are described.
    hide_memory()
    try:
        settings = settings_of(arguments)
        policy = policy_of(arguments, settings)
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
            address, keys = main_node(settings, plain=arguments.plain)
            settings, keys = identity(
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
        return exit_codes.FAILED
    finally:
        for workplace in workplaces:
            workplace.close()
        lock.release()


def _test(worker: Worker) -> int:
    # Only --test needs them, and they come with a server of HTTP.
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
    me, settings = worker.introduction, worker.settings
    for reason in spool.reasons:
        log.warning("results.spool: %s; it is set aside in results.bad", reason)
    waker = Waker()
    facts = Facts(
        worker.capabilities, Sampler(settings.data_dir, monotonic).sample, now=monotonic()
    )
    runner = Runner(
        slots=me.slots,
        catalog=worker.catalog,
        limits=worker.limits,
        start_process=lambda: TaskProcess(worker.plan, own_types=worker.catalog.has_own),
        facts=facts.now,
        clock=monotonic,
        wake=waker,
    )
    worker.plan.workplace.tell = runner.note_trouble
    session = Session(
        me,
        now=monotonic(),
        randomness=Randomness(random.Random().random, lambda: secrets.token_hex(8)),
        repeatable=worker.catalog.repeatable,
        stored=spool.results(),
        kill_on_lease_loss=settings.worker.on_lease_loss == "kill",
        pace=worker.pace,
        address=str(worker.dialer.address),
    )
    agent = Agent(
        session=session,
        runner=runner,
        spool=spool,
        dialer=worker.dialer,
        enrolment=Enrolment(worker.credentials, worker.dialer.address, settings.data_dir),
        facts=facts,
        waker=waker,
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
    watcher = PackageWatcher(
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


def listen_to_signals(stop: Any, wakeup_fd: int) -> None:
    """Have Ctrl-C, SIGTERM, CTRL_BREAK and a closed terminal ask the worker to go."""
    if threading.current_thread() is not threading.main_thread():
        return
    signal.set_wakeup_fd(wakeup_fd, warn_on_full_buffer=False)
    for name in ("SIGTERM", "SIGINT", "SIGBREAK", "SIGHUP"):
        number = getattr(signal, name, None)
        # nohup and its like ignore SIGHUP on purpose.
        if number is None or signal.getsignal(number) is signal.SIG_IGN:
            continue
        signal.signal(number, lambda signum, frame: stop(signal.Signals(signum).name))


def _refuse(text: str) -> int:
    last_words(f"{PROGRAM}: {' '.join(text.split())}")
    return exit_codes.REFUSED


__all__ = ["main", "make_parser"]
