"""What the verbs that ask the cluster share: flags, the connection, errors to exit codes."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from retire_cluster.cli import cures, exits
from retire_cluster.cli.output import Output, clean
from retire_cluster.cli.payloads import check_sendable
from retire_cluster.cli.target import Caller, Target, find_target
from retire_cluster.conf.arguments import Parser
from retire_cluster.conf.spec import SettingsError
from retire_cluster.schemas.errors import ClusterError, ClusterUnavailable, ValidationError
from retire_cluster.schemas.text.json_text import JSONError

PAGE_SIZE = 100


@dataclass(frozen=True)
class Session:
    """One run of a verb: whom it asks and where it prints."""

    client: Caller
    output: Output
    target: Target
    args: argparse.Namespace


Command = Callable[[Session], int]


def connection_flags() -> argparse.ArgumentParser:
    """Return the flags of every verb that asks the cluster, as an argparse parent."""
    found = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    group = found.add_argument_group("the cluster")
    group.add_argument("--cluster-host", metavar="HOST", help="where the main node is")
    group.add_argument("--cluster-port", type=int, metavar="N", help="its admin port (8080)")
    group.add_argument("--cluster-key", metavar="FILE", help="key for a main node elsewhere")
    group.add_argument("--data-dir", metavar="FOLDER", help="find the cluster by its data folder")
    group.add_argument("--config", metavar="FILE", help="TOML file of settings")
    group.add_argument("--json", action="store_true", help="print the envelope of the REST API")
    return found


def verb_parser(prog: str, description: str, **options: Any) -> argparse.ArgumentParser:
    """Return a parser for `retire-cluster PROG`."""
    return Parser(
        prog=f"retire-cluster {prog}", description=description, allow_abbrev=False, **options
    )


def run_verb(args: argparse.Namespace, command: Command, *, timeout_seconds: float = 5.0) -> int:
    """Connect and run the command; return its exit code, or that of the error it ended with."""
    output = Output.standard(as_json=args.json)
    try:
        target = find_target(
            host=args.cluster_host,
            port=args.cluster_port,
            data_dir=args.data_dir,
            config=args.config,
            key_file=args.cluster_key,
        )
    except SettingsError as error:
        output.hint(f"retire-cluster: {error}")
        return exits.USAGE
    client = target.client(timeout_seconds)
    try:
        return command(Session(client, output, target, args))
    except ClusterUnavailable as error:
        shown = target.unreachable(error)
        output.error(shown)
        return exits.for_error(shown)
    except ClusterError as error:
        output.error(error, "" if output.as_json else cures.of(error, client))
        return exits.for_error(error)
    except JSONError as error:  # bytes that are no text among the words that were typed
        output.error(_unsendable_word(args, error))
        return exits.INVALID
    finally:
        client.close()


def _unsendable_word(args: argparse.Namespace, error: JSONError) -> ValidationError:
    """Return an error that names the argument that cannot be sent, where one can be told."""
    for name, value in vars(args).items():
        words = value if isinstance(value, list) else [value]
        for word in words:
            try:
                check_sendable(word, name.replace("_", "-"))
            except ValidationError as found:
                return found
    return ValidationError("", f"this cannot be sent as JSON: {error}")


def all_items(client: Caller, op: str, filters: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield every item of a list operation, page by page."""
    page = 1
    while True:
        data = client.call(op, {**filters, "page": page, "page_size": PAGE_SIZE})
        yield from data["items"]
        if not data["pagination"]["has_next"]:
            return
        page += 1


def call_each(
    session: Session,
    op: str,
    field: str,
    names: Sequence[str],
    line: Callable[[Mapping[str, Any]], str],
    **extra: Any,
) -> tuple[list[dict[str, Any]], int]:
    """Call `op` for every name (its argument `field`), and print a line for each.

    Returns the answers and the first error's exit code; the others are tried nevertheless. A
    single name's error is raised.
    """
    if len(names) == 1:
        data = session.client.call(op, {field: names[0], **extra})
        session.output.data(data, line(data))
        return [data], exits.OK
    answers = []
    code = exits.OK
    for name in names:
        try:
            answers.append(session.client.call(op, {field: name, **extra}))
        except ClusterError as error:
            if error.status >= 500:
                raise
            session.output.hint(f"{clean(name)}: {clean(error.message)}")
            code = code or exits.for_error(error)
    session.output.data(answers, "\n".join(map(line, answers)))
    return answers, code


def given(**values: Any) -> dict[str, Any]:
    """Return the filters that were given: neither None nor empty."""
    return {name: value for name, value in values.items() if value not in (None, [], "")}
