"""What is added in one place and left out in another is named (CONTRIBUTING.md, Add something)."""

from __future__ import annotations

import importlib.util
import inspect
import re
from pathlib import Path
from typing import get_args

import pytest
from falcon.inspect import inspect_routes

from retire_cluster.broker.core import events as ev
from retire_cluster.broker.core.cluster import HANDLERS
from retire_cluster.cli.main import VERBS
from retire_cluster.cli.verbs.completion import WORDS
from retire_cluster.node.device.policy import Policy
from retire_cluster.node.process.perform import perform
from retire_cluster.node.running.catalog import Catalog, Place
from retire_cluster.node.selftest.samples import SAMPLES
from retire_cluster.node.tasks.base import Limits
from retire_cluster.schemas.errors import BY_CODE
from retire_cluster.schemas.rest.endpoints import API, ENDPOINTS, Endpoint
from retire_cluster.schemas.rest.responses import SCHEMAS
from retire_cluster.schemas.rights import RIGHTS
from retire_cluster.schemas.task_types import BUILTIN
from retire_cluster.schemas.vocabulary import (
    OFF_BY_DEFAULT,
    RESERVED_DEVICE_IDS,
)
from tests.unit.api.kit import Bench

#: Verbs that need no words beside their own.
PLAIN = {"version", "main", "api", "join"}
#: Modules in cli/verbs that are no verbs but parts of some.
PARTS = {"bulk"}


@pytest.mark.parametrize("name", sorted(BUILTIN))
def test_a_built_in_type_is_described_offered_run_and_documented(name: str, root: Path) -> None:
    catalog = Catalog(Policy(allow=frozenset(OFF_BY_DEFAULT), allow_root=True))
    assert name in {info.name for info in catalog.advertised()}, "a row in node/running/catalog.py"
    kind = catalog.kind(name)
    sampled = kind.sample is not None or name == "http_request" or name in SAMPLES
    assert sampled, "a payload in node/selftest/samples.py::SAMPLES, for --test"
    if kind.place is Place.CHILD and not kind.entry_point:
        header = {
            "task_type": name, "task_id": "t", "attempt": 1, "timeout_seconds": 1,
            "limits": vars(Limits()),
        }  # fmt: skip
        told, _ = perform(
            header, b"{}", tell=lambda percent, message: None, write_log=lambda line: None,
            is_cancelled=lambda: False,
        )  # fmt: skip
        assert "entry_point" not in (told["error_message"] or ""), "node/process/perform.py runs it"
    contract = (root / "docs" / "contract.md").read_text("utf-8")
    assert f"| `{name}` |" in contract, "a row in docs/contract.md"


@pytest.mark.parametrize("name", sorted(VERBS))
def test_every_verb_has_a_module_help_and_completion(name: str) -> None:
    verb = VERBS[name]
    assert importlib.util.find_spec(verb.module), f"a module {verb.module}"
    call = getattr(importlib.import_module(verb.module), verb.function)
    assert list(inspect.signature(call).parameters)[:1] == ["argv"]
    assert verb.help
    assert name in PLAIN or name in WORDS, "cli/verbs/completion.py has its words"


def test_every_module_of_the_verbs_is_a_verb_or_a_part_of_one(root: Path) -> None:
    modules = {file.stem for file in (root / "cli" / "verbs").glob("[a-z]*.py")}
    named = {verb.module.rpartition(".")[2] for verb in VERBS.values()}
    assert modules - named == PARTS, "a line in cli/main.py::VERBS"


def test_every_event_of_the_state_has_its_rule() -> None:
    events, handled = set(get_args(ev.Event)), HANDLERS.keys()
    assert events - handled == set(), "a row in broker/core/cluster.py::HANDLERS"
    assert handled - events == set(), "a member of the union broker/core/events.py::Event"


@pytest.mark.parametrize("endpoint", ENDPOINTS.values(), ids=lambda each: each.operation_id)
def test_every_endpoint_has_its_right_its_answers_schema_and_its_errors(endpoint: Endpoint) -> None:
    assert endpoint.operation_id in RIGHTS, "a row in schemas/rights.py::RIGHTS"
    assert not endpoint.answer or endpoint.answer in SCHEMAS, (
        "a schema in schemas/rest/task_responses.py, device_responses.py or responses.py"
    )
    assert set(endpoint.errors) <= BY_CODE.keys(), "a class in schemas/errors.py"


def test_every_right_is_an_endpoints() -> None:
    spare = RIGHTS.keys() - {endpoint.operation_id for endpoint in ENDPOINTS.values()}
    assert spare == set(), "a row in schemas/rest/endpoints.py"


def test_every_endpoint_of_the_table_has_a_route_of_its_own_and_no_other_is_routed() -> None:
    routed = {
        (method.method, route.path)
        for route in inspect_routes(Bench().facade.app)
        for method in route.methods
        if not method.internal and method.method != "HEAD"
    }
    pages = {route for route in routed if route[1].startswith("/ui")}
    assert ENDPOINTS.keys() - routed == set(), "a line in http/app.py::create_app"
    assert routed - pages - ENDPOINTS.keys() == set(), "a row in schemas/rest/endpoints.py"


def test_every_word_below_devices_is_no_devices_name() -> None:
    below = re.compile(re.escape(f"{API}/devices/") + r"(\w+)(/.*)?")
    words = {found[1] for _, path in ENDPOINTS if (found := below.fullmatch(path))}
    assert words == RESERVED_DEVICE_IDS, "schemas/vocabulary.py::RESERVED_DEVICE_IDS"
