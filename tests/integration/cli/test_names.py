"""Every verb that prints a name, where names are hostile behind all that cleans them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from retire_cluster.broker.core.placement.notes import Note, TaskKind
from retire_cluster.cli.main import main
from retire_cluster.schemas.protocol import messages as msg
from retire_cluster.schemas.protocol.messages import TypeInfo
from tests.integration.main_kit import MainNode, eventually
from tests.unit.schemas.text.test_steering import HOSTILE, steers

BAD = "".join(HOSTILE[:-2])


@pytest.fixture
def hostile(main_node: MainNode) -> tuple[MainNode, str, str]:
    """A main node with a hostile device, a task that failed on it and one that waits for it."""
    device = main_node.device("box", task_types=(TypeInfo("mine", "d", None, True),))
    failed = main_node.submit(task_type="mine", requirements={"max_retries": 0})[0]
    key = device.next_task()[0]
    device.started(key)
    details = json.dumps({"logs": f"l{BAD}", "error_traceback": f"t{BAD}"}).encode()
    device.send(
        msg.Finished.of(
            device.session, 1, [msg.FinishedItem(key, "failed", 0.1, "error", f"e{BAD}")]
        ),
        [b"{}", details],
    )
    eventually(lambda: main_node.status(failed) == "failed", "the failure")
    waiting = main_node.submit(task_type="mine", metadata={"name": f"n{BAD}"})[0]
    record = main_node.broker.state.devices["box"]
    record.hostname = record.version = record.platform = record.role = f"h{BAD}"
    record.last_error = record.not_accepting_reason = record.ip_address = f"r{BAD}"
    record.accepting = False
    record.tags = frozenset({f"t{BAD}"})
    record.left_out = (f"task type {BAD} is left out",)
    record.capabilities = {f"c{BAD}": f"v{BAD}", "cpu_count": f"n{BAD}"}
    info = record.types["mine"]
    record.types = {
        "mine": replace(info, description=f"d{BAD}", distribution=f"p{BAD}"),
        f"x{BAD}": info,
    }
    note = Note("not_here", f"m{BAD}", 0.0, 300.0, 1)
    note.active = True
    record.notes = {TaskKind("mine", ""): note}
    return main_node, failed, waiting


VERBS = [
    "devices ls", "devices show box", "devices ping box", "devices drain box", "devices resume box",
    "status", "top --once", "doctor", "tasks ls", "tasks show FAILED", "tasks show WAITING",
    "tasks result FAILED", "tasks wait FAILED", "explain WAITING", "explain FAILED",
    "tasks cancel WAITING", "config get", "devices rm box", "devices readmit box",
    f"devices show {'x' + HOSTILE[0]}", f"explain {HOSTILE[0]}", f"tasks show {HOSTILE[9]}",
]  # fmt: skip


@pytest.mark.parametrize("as_json", [False, True])
def test_no_verb_prints_what_steers_a_terminal(
    hostile: tuple[MainNode, str, str], as_json: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    node, failed, waiting = hostile
    where = [
        "--cluster-host", "127.0.0.1", "--cluster-port", str(node.facts.admin_port),
        "--data-dir", str(node.settings.data_dir), *(["--json"] if as_json else []),
    ]  # fmt: skip
    said = ""
    for verb in VERBS:
        words = [{"FAILED": failed, "WAITING": waiting}.get(word, word) for word in verb.split(" ")]
        main([*words, *where])
        shown = capsys.readouterr()
        assert not steers(shown.out + shown.err), (verb, shown)
        assert shown.out + shown.err, verb
        said += shown.out
    assert "\\x1b" in said or "\\u001b" in said
