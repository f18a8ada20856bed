"""`retire-cluster config`: settings of the running cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from retire_cluster.cli import exits
from retire_cluster.cli.output import Style, facts
from retire_cluster.cli.payloads import read_pair, read_value
from retire_cluster.cli.session import Session, connection_flags, given, run_verb, verb_parser
from retire_cluster.schemas.errors import NotFound, ValidationError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; return its exit code."""
    parser = verb_parser("config", "Settings of the running cluster.")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    parents = [connection_flags()]
    getter = verbs.add_parser("get", help="show them", parents=parents, allow_abbrev=False)
    getter.add_argument("name", nargs="?", metavar="SECTION[.NAME]")
    getter.set_defaults(command=get)
    setter = verbs.add_parser(
        "set", help="change them at once, kept over restarts", parents=parents, allow_abbrev=False
    )
    setter.add_argument("changes", nargs="+", metavar="SECTION.NAME=VALUE")
    setter.set_defaults(command=change)
    resetter = verbs.add_parser(
        "reset", help="back to defaults", parents=parents, allow_abbrev=False
    )
    resetter.set_defaults(command=reset)
    args = parser.parse_args(argv)
    return run_verb(args, args.command)


def get(session: Session) -> int:
    """Show settings."""
    name = session.args.name or ""
    section, dot, field = name.partition(".")
    data: Any = session.client.call("config.get", given(section=section))
    if dot:
        if field not in data:
            raise NotFound(f"{section} has no setting {field!r}; it has {', '.join(sorted(data))}")
        text = facts([(name, data[field])], session.output.style)
        session.output.data({field: data[field]}, text)
        return exits.OK
    session.output.data(data, config_text(data, session.output.style, section))
    return exits.OK


def change(session: Session) -> int:
    """Change settings, one atomic update a section."""
    answers = [
        _update(session, section, values)
        for section, values in changes_by_section(session.args.changes).items()
    ]
    names = [str(name) for answer in answers for name in answer["updated_fields"]]
    text = f"updated: {', '.join(names)}" if names else "nothing changed"
    session.output.data(answers[0] if len(answers) == 1 else answers, text)
    return exits.OK


def _update(session: Session, section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Update one section; its errors name what is wrong as it was typed, section and all."""
    try:
        return session.client.call("config.update", {"section": section, "values": values})
    except ValidationError as error:
        if error.field == "section":
            session.client.call("config.get", {"section": section})  # raises when there is none
            raise ValidationError(
                section, f"cannot be changed while the cluster runs; {error.field} {error.reason}"
            ) from None
        listed = [
            {**entry, "field": f"{section}.{entry['field']}"} if entry.get("field") else entry
            for entry in error.details.get("errors") or ()
        ]
        field = f"{section}.{error.field}" if error.field else section
        raise ValidationError(field, error.reason, errors=listed) from None


def reset(session: Session) -> int:
    """Reset every setting to its default."""
    data = session.client.call("config.reset")
    session.output.data(data, f"reset at {data['reset_at']}")
    return exits.OK


def changes_by_section(words: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the values of `section.name=value` words by section. Raises `ValidationError`."""
    found: dict[str, dict[str, Any]] = {}
    for word in words:
        dotted, text = read_pair(word, "config")
        section, dot, name = dotted.partition(".")
        if not dot or not section or not name:
            raise ValidationError("config", f"{word!r} is not of the form section.name=value")
        found.setdefault(section, {})[name] = read_value(text)
    return found


def config_text(data: Mapping[str, Any], style: Style, section: str = "") -> str:
    """Return settings for people, as dotted names."""
    rows: list[tuple[str, Any]] = []
    for name, value in data.items():
        if isinstance(value, Mapping) and not section:
            rows += [(f"{name}.{inner}", item) for inner, item in value.items()]
        else:
            rows.append((f"{section}.{name}" if section else name, value))
    return facts(rows, style)
