"""All settings of one process as one value: what is shown of it, and how a section is changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from retire_cluster.conf.sections import (
    PUBLIC_SECTIONS,
    SECTIONS,
    Api,
    Database,
    Heartbeat,
    Logging,
    Policy,
    Retention,
    Scheduler,
    Server,
    Worker,
)
from retire_cluster.conf.spec import (
    Problem,
    Section,
    SettingsError,
    Spec,
    from_document,
    specs,
    wrong_with,
)
from retire_cluster.schemas.errors import NotFound, ValidationError


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings of one process, and where each of them came from."""

    #: Folder for the store, keys, identity and `endpoints.json`.
    data_dir: Path
    server: Server = field(default_factory=Server)
    heartbeat: Heartbeat = field(default_factory=Heartbeat)
    scheduler: Scheduler = field(default_factory=Scheduler)
    retention: Retention = field(default_factory=Retention)
    database: Database = field(default_factory=Database)
    logging: Logging = field(default_factory=Logging)
    api: Api = field(default_factory=Api)
    worker: Worker = field(default_factory=Worker)
    policy: Policy = field(default_factory=Policy)
    #: Dotted name → source, of the settings that are not defaults.
    sources: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}), compare=False)

    def section(self, name: str) -> dict[str, Any]:
        """Return a section as JSON shows it, without secrets. Raises `NotFound` for any other."""
        if name not in PUBLIC_SECTIONS:
            raise NotFound(f"There is no section {name!r}; there are {', '.join(PUBLIC_SECTIONS)}.")
        return public_view(getattr(self, name))

    def public(self) -> dict[str, dict[str, Any]]:
        """Return every section that `GET /config` shows."""
        return {name: self.section(name) for name in PUBLIC_SECTIONS}

    def with_sections(self, sections: Mapping[str, Section]) -> Settings:
        """Return a copy with these sections, by name, in place of its own."""
        changes: dict[str, Any] = dict(sections)
        return replace(self, **changes)

    @property
    def store_url(self) -> str:
        """Address of the store: `database.url`, or a SQLite file in the data folder."""
        return self.database.url or f"sqlite:///{(self.data_dir / 'cluster.db').as_posix()}"

    def source_of(self, dotted: str) -> str:
        """Return the source of a setting: `default`, a variable, a file, `command line`."""
        return self.sources.get(dotted, "default")


SectionT = TypeVar("SectionT", bound=Section)


def all_specs() -> Iterator[Spec]:
    """Yield every setting of every section."""
    for kind in SECTIONS.values():
        yield from specs(kind)


def public_view(section: Section) -> dict[str, Any]:
    """Return a section's values as JSON shows them: lists for tuples, secrets left out."""
    values = asdict(section)  # type: ignore[call-overload]  # every section is a dataclass
    return {
        spec.name: list(values[spec.name]) if spec.kind.startswith("tuple") else values[spec.name]
        for spec in specs(type(section))
        if not spec.secret
    }


def merge_section(current: SectionT, partial: Mapping[str, Any]) -> SectionT:
    """Return `current` with the values of `partial`: all of them or, when one is wrong, none.

    Only settings that may change at run time are taken, and the rules between fields are
    judged on the merged values. Raises `ValidationError` that lists every wrong field by its
    name in `partial`.
    """
    known = {spec.name: spec for spec in specs(type(current))}
    problems: list[Problem] = []
    changes: dict[str, Any] = {}
    for name, value in partial.items():
        spec = known.get(name)
        if spec is None:
            allowed = ", ".join(s.name for s in known.values() if s.mutable) or "nothing"
            problems.append(Problem(name, f"is no setting of {current.section}; try {allowed}"))
        elif not spec.mutable:
            problems.append(Problem(name, "cannot be changed while the cluster runs"))
        else:
            changes[name] = from_document(spec, value)
            reason = wrong_with(spec, changes[name])
            if reason:
                problems.append(Problem(name, reason))
    if not problems:
        try:
            return replace(current, **changes)  # type: ignore[type-var]  # a dataclass, as above
        except SettingsError as error:
            problems.append(Problem(error.field.partition(".")[2], error.reason))
    raise ValidationError(
        problems[0].field,
        problems[0].reason,
        errors=[problem._asdict() for problem in problems],
    )
