"""The task types of this device: what it advertises, what it refuses, where each one runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from retire_cluster.node.device.policy import Policy
from retire_cluster.node.tasks import (
    command,
    echo,
    http_request,
    python_call,
    python_eval,
    sleep,
    system_info,
)
from retire_cluster.node.tasks.base import BadPayload, Denied, NotHere
from retire_cluster.node.tasks.own_type import OwnType
from retire_cluster.schemas import needs
from retire_cluster.schemas.protocol.messages import TypeInfo
from retire_cluster.schemas.text.json_text import JSONError, loads
from retire_cluster.schemas.vocabulary import OFF_BY_DEFAULT

Check = Callable[[Mapping[str, Any]], None]


class Place(Enum):
    """Where a type runs."""

    #: In the worker itself, at once: `echo`.
    INLINE = "inline"
    #: In the worker itself, from what it knows: `system_info`.
    FACTS = "facts"
    #: As a timer: `sleep`.
    TIMER = "timer"
    #: In a process that can be killed.
    CHILD = "child"


@dataclass(frozen=True)
class Kind:
    """One task type on this device."""

    info: TypeInfo
    place: Place
    #: Raises `TaskFailed` for a payload that cannot be used; None: the task process looks.
    check: Check | None = None
    #: Whether this very payload is repeatable; None: the type says it for all.
    repeatable_if: Callable[[Mapping[str, Any]], bool] | None = None
    #: `module:attribute` of what gets a process of its own for each task: an own type, a call.
    entry_point: str = ""
    #: A payload to try such a type with, None when its author gave none.
    sample: Mapping[str, Any] | None = None


class Catalog:
    """Every task type this device has, and its owner's word on each."""

    def __init__(
        self,
        policy: Policy,
        own_types: Sequence[OwnType] = (),
        left_out: Sequence[str] = (),
    ) -> None:
        self.policy = policy
        self.replace_own(own_types, left_out)

    def replace_own(self, own_types: Sequence[OwnType], left_out: Sequence[str]) -> None:
        """Offer other own types from now on."""
        policy = self.policy
        #: Own types that cannot be offered, with the reasons.
        self.left_out = tuple(left_out)
        self._kinds = {kind.info.name: kind for kind in _builtin(policy)}
        for own in own_types:
            kind = Kind(own.info, Place.CHILD, entry_point=own.entry_point, sample=own.test_payload)
            self._kinds.setdefault(own.info.name, kind)
        self._refusals = {name: policy.refusal(name) for name in self._kinds}
        self._always = {
            name: kind.info.repeatable
            for name, kind in self._kinds.items()
            if kind.repeatable_if is None
        }
        #: Whether there is anything to run that needs a process for each task.
        self.has_own = any(
            kind.entry_point and not self._refusals[name] for name, kind in self._kinds.items()
        )

    def advertised(self) -> tuple[TypeInfo, ...]:
        """The types to name in HELLO: those that may run here."""
        return tuple(kind.info for name, kind in self._kinds.items() if not self._refusals[name])

    def kept_back(self) -> tuple[str, ...]:
        """Types that only being root keeps from running."""
        allowed = (name for name in self._kinds if name not in self.policy.deny)
        return tuple(
            name
            for name in allowed
            if self.policy.refused_for_root(name)
            and (name not in OFF_BY_DEFAULT or name in self.policy.allow)
        )

    def kind(self, task_type: str) -> Kind:
        """The type, when it may run here; raises `Denied` or `NotHere` when not."""
        kind = self._kinds.get(task_type)
        if kind is None:
            refusal = self.policy.refusal(task_type)
            if refusal is None:
                raise NotHere(f"this device has no type {task_type}")
            raise Denied(refusal)
        refusal = self._refusals[task_type]
        if refusal is not None:
            raise Denied(refusal)
        return kind

    def repeatable(self, task_type: str, payload: bytes) -> bool:
        """Whether running this twice does no harm."""
        known = self._always.get(task_type)
        if known is not None:
            return known
        kind = self._kinds.get(task_type)
        if kind is None or kind.repeatable_if is None:
            return False
        try:
            content = loads(payload)
        except JSONError:
            return True
        return not isinstance(content, dict) or kind.repeatable_if(content)


def decode(payload: bytes) -> dict[str, Any]:
    """A payload's content; raises `BadPayload`."""
    try:
        content = loads(payload or b"{}")
    except JSONError as error:
        raise BadPayload("", f"is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise BadPayload("", "must be an object")
    return content


def _builtin(policy: Policy) -> tuple[Kind, ...]:
    def check_command(payload: Mapping[str, Any]) -> None:
        command.check(payload, shell=policy.shell)
        refusal = policy.command_refusal(payload)
        if refusal is not None:
            raise Denied(refusal)

    def told(info: TypeInfo) -> TypeInfo:
        allows = needs.told(
            info.name,
            shell=policy.shell and not policy.commands,
            programs=policy.programs() if policy.commands else None,
            private_addresses=policy.private_addresses,
        )
        return replace(info, allows=allows)

    return (
        Kind(echo.INFO, Place.INLINE),
        Kind(sleep.INFO, Place.TIMER, sleep.check),
        Kind(system_info.INFO, Place.FACTS, system_info.check),
        Kind(python_eval.INFO, Place.CHILD, python_eval.check),
        Kind(told(http_request.INFO), Place.CHILD, http_request.check, http_request.is_repeatable),
        Kind(told(command.INFO), Place.CHILD, check_command),
        Kind(
            python_call.INFO,
            Place.CHILD,
            python_call.check,
            entry_point=python_call.ENTRY_POINT,
            sample=python_call.SAMPLE,
        ),
    )
