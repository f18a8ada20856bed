"""A worker put together: what this device is, what its tasks may do, and what it offers."""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import os
import re
import secrets
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from retire_cluster.conf.settings import Settings
from retire_cluster.conf.usage import Unusable
from retire_cluster.node.core.pace import Pace
from retire_cluster.node.core.records import Introduction
from retire_cluster.node.device import probe
from retire_cluster.node.device.identity import (
    device_id,
    host_name,
)
from retire_cluster.node.device.policy import Policy, missing
from retire_cluster.node.link.credentials import Credentials
from retire_cluster.node.link.sockets import Address, Dialer
from retire_cluster.node.running.catalog import Catalog
from retire_cluster.node.running.description import OwnTypes, own_types
from retire_cluster.node.running.leftovers import Leftovers
from retire_cluster.node.running.package_watcher import Installed
from retire_cluster.node.running.task_process import Plan, modules
from retire_cluster.node.running.workplace import Workplace, root_in
from retire_cluster.node.system import process_tree
from retire_cluster.node.system.resource_limits import Bounds
from retire_cluster.node.tasks.base import Limits
from retire_cluster.node.walls import task_cgroups
from retire_cluster.node.walls.confinement import AUTO, Unconfined, find_confinement
from retire_cluster.node.walls.task_cgroups import ending
from retire_cluster.schemas.protocol.messages import first_left_out
from retire_cluster.schemas.vocabulary import TAG_PATTERN, Platform

_MIB = 1024 * 1024
_TAG = re.compile(rf"{TAG_PATTERN}\Z")

log = logging.getLogger("retire_cluster.node")


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
    """Find out what this device is and has. Raises `Unusable` and `OSError`.

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
