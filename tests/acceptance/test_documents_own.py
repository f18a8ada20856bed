"""Our own documents do what they say: every block of code in them is run."""

from __future__ import annotations

import functools
import json
import re
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from retire_cluster.broker.client import AdminClient
from retire_cluster.cli.main import VERBS
from retire_cluster.conf.curve import ADMIN_KEY, client_keys
from tests.acceptance import documents
from tests.acceptance.documents import Block, blocks
from tests.acceptance.kit import Cluster, Process, Rest, run
from tests.command_kit import until

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
#: Documents whose blocks belong together and are run in order by a test of their own.
ELSEWHERE = {"cookbook.md": "test_cookbook.py", "tutorial.md": "test_tutorial.py"}
BLOCKS = [block for path in DOCUMENTS if path.name not in ELSEWHERE for block in blocks(path)]
#: How a block that is not run as it stands begins → why.
NOT_RUN = {
    "python3 bootstrap.py up": "makes a .venv from an index; tests/unit/project/test_bootstrap.py",
    " you ──REST──▶ facade": "a picture",
    "flowchart ": "a picture; tests/unit/test_layout.py holds the code to it",
    "retire-cluster-worker --join": "run below with a real line",
    "server {\n    listen 443": "tests/acceptance/test_proxy.py, where nginx is installed",
    "echo PUBLIC_HOST=": "wants a Docker engine; tests/acceptance/test_container.py goes without",
    "JOIN=$(docker compose": "the same",
    "python3 bootstrap.py audit": "asks an index of vulnerabilities; test_supply_chain.py",
    "prometheus --config.file=": "tests/contract/test_monitoring.py, where promtool is installed",
    "# thumbnails/tasks.py": "run by test_the_task_type_of_the_readme_runs",
    "# pyproject.toml, beside": "run by test_the_task_type_of_the_readme_runs",
    '{"id": ': "an event; compared by test_an_event_looks_like_the_one_that_is_shown",
    "GET /api/v1/events ": "requests in words; tests/contract/test_contract_answers.py",
    "websocat ": "clients of others; tests/integration/api/kit.py has one",
    "prometheus --config.file": "of others; tests/contract/test_monitoring.py runs promtool",
    "pip install openapi-python-client": "run by tests/acceptance/test_generated_client.py",
    ".venv/bin/python -m tests.chaos.redteam": "takes minutes; tests/chaos/test_chaos_redteam.py",
    "from retire_cluster_rest_api_client": "run by tests/acceptance/test_generated_client.py",
}
RUN = [b for b in BLOCKS if not b.text.startswith(tuple(NOT_RUN))]
#: Verbs whose own verbs have the flags.
NESTED = ("token", "admin-key", "keys", "service", "devices", "tasks")
#: Commands of others that the documents name.
COMMANDS = ("retire-cluster-main", "retire-cluster-worker", "retire-cluster-api")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    allowed = ("--allow", "python_call", "--allow-root")
    found = Cluster(tmp_path_factory.mktemp("documents"), "--no-rate-limit", *allowed)
    try:
        yield found
    finally:
        assert found.close() == 0


@pytest.mark.parametrize("beginning", NOT_RUN)
def test_what_is_not_run_is_there(beginning: str) -> None:
    assert [block.name for block in BLOCKS if block.text.startswith(beginning)]


@pytest.mark.parametrize("document", ELSEWHERE)
def test_a_document_with_a_test_of_its_own_has_it(document: str) -> None:
    code = Path(__file__).with_name(ELSEWHERE[document]).read_text("utf-8")
    assert f'"{document}"' in code
    assert document in {path.name for path in DOCUMENTS}


@pytest.mark.parametrize("block", RUN, ids=lambda block: block.name)
def test_a_block_of_ours_does_what_it_says(block: Block, rest: Rest, tmp_path: Path) -> None:
    script = block.at(rest.port)
    if block.language == "python":
        documents.python(script)
    elif block.language == "javascript":
        documents.javascript(script, tmp_path)
    elif block.language == "bash":
        answers = [json.loads(line) for line in documents.bash(script).splitlines()]
        assert len(answers) == block.text.count("curl ")
        assert {answer["status"] for answer in answers} <= {"success", "healthy"}
    else:
        pytest.fail(f"{block.name}: say in NOT_RUN why it is not run, or how to run it here")


def test_what_the_documents_submit_succeeds(rest: Rest) -> None:
    for block in RUN:
        if block.language == "bash" and "-X POST" in block.text:
            lines = documents.bash(block.at(rest.port)).splitlines()
            posted = [json.loads(line)["data"] for line in lines if '"submitted_at"' in line]
            ids = [i for data in posted for i in data.get("task_ids", [data.get("task_id")])]
            assert ids, block.name
            for task_id in ids:
                assert rest.result(task_id)["status"] == "success", block.name


def test_the_worker_line_of_the_readme_joins(cluster: Cluster, tmp_path: Path) -> None:
    block = next(b for b in BLOCKS if b.text.startswith("retire-cluster-worker "))
    line = block.text.strip()
    words = line.split()[1:]
    assert words == ["--join", "rc1.…"]
    made = run(
        "token", "create", "--uses", "2", "--host", "127.0.0.1", "--data-dir", str(cluster.data_dir)
    )
    address = made.stdout.split()[-1]
    data = ("--data-dir", str(tmp_path / "data"))
    offer = run("worker", "--join", address, *data, "--test")
    assert offer.returncode == 0, offer.stderr
    before = cluster.rest.online()
    worker = Process(tmp_path / "log", "worker", "--join", address, *data)
    try:
        until(lambda: len(cluster.rest.online()) == len(before) + 1, "the worker to join")
    finally:
        assert worker.stop() == 0


def test_the_task_type_of_the_readme_runs(cluster: Cluster, tmp_path: Path) -> None:
    code, settings = (
        next(b for b in BLOCKS if b.text.startswith(f"# {name}"))
        for name in ("thumbnails/tasks.py", "pyproject.toml, beside")
    )
    package = tmp_path / "thumbnails"
    package.mkdir()
    (package / "tasks.py").write_text(code.text, "utf-8")
    named = re.search(r'\[project\]\nname = "(.+)"\nversion = "(.+)"\n', settings.text)
    assert named, "pip asks for a name and a version"
    metadata = tmp_path / f"{named[1]}-{named[2]}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {named[1]}\nVersion: {named[2]}\n"
    )
    group = re.search(r'\[project\.entry-points\."(.+)"\]\n(\w+) = "(.+)"', settings.text)
    assert group
    (metadata / "entry_points.txt").write_text(f"[{group[1]}]\n{group[2]} = {group[3]}\n")
    cluster.join("own", "--allow-root", PYTHONPATH=str(tmp_path))
    types = cluster.rest.get("/tasks/types")
    assert "thumbnail" in types["supported_types"]
    assert "thumbnail" in types["custom_types"]
    assert types["by_type"]["thumbnail"]["description"] == "Make a thumbnail."
    result = cluster.rest.result(cluster.rest.submit("thumbnail", {"path": "cat.png"}))
    assert result["result_data"] == {"size": len("cat.png")}
    assert result["worker_device_id"] == "own"


def test_the_lines_that_up_prints_work_when_pasted(cluster: Cluster, tmp_path: Path) -> None:
    printed = cluster.up.log.read_text()
    submit = re.search(r"^  (\S*retire-cluster submit .*)$", printed, re.MULTILINE)
    curl = re.search(r"^  (curl -X POST .*)$", printed, re.MULTILINE)
    join = re.search(r"^  (\S*retire-cluster-worker --join .*) FOLDER$", printed, re.MULTILINE)
    assert submit
    assert curl
    assert join
    # By a shell that knows nothing of the environment the cluster was started from.
    plain = {"PATH": "/usr/local/bin:/usr/bin:/bin"}
    assert json.loads(documents.bash(submit[1], **plain))["echo"] == {"message": "Hello"}
    assert json.loads(documents.bash(curl[1], **plain))["status"] == "success"
    offer = documents.bash(f"{join[1]} {tmp_path} --test", **plain)
    assert "echo" in offer


# --- what stands between the blocks ---------------------------------------------------------------


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_the_links_between_the_documents_lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", path.read_text("utf-8"))
    local = [link for link in links if "://" not in link]
    assert [link for link in local if not (path.parent / link).exists()] == []


@functools.cache
def help_of(*verbs: str) -> str:
    """What a verb, or a verb's verb, says of itself."""
    done = run(*verbs, "--help")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_the_commands_and_flags_that_are_named_exist(path: Path) -> None:
    for code in re.findall(r"`([^`\n]+)`", path.read_text("utf-8")):
        words = code.split()
        if words[0] in COMMANDS:
            verb = words[0].removeprefix("retire-cluster-")
        elif words[0] == "retire-cluster" and len(words) > 1:
            verb = words[1]
        else:
            continue
        assert verb in VERBS, code
        below = words[2:3] if verb in NESTED and words[2:] and words[2][0].isalpha() else []
        # What follows a bare -- belongs to another command.
        for flag in re.findall(r"--[a-z][a-z-]*", code.partition(" -- ")[0]):
            assert flag in help_of(verb, *below), code


def test_the_addresses_that_are_named_are_served(rest: Rest) -> None:
    served = set(rest.ask("GET", "/api/v1/openapi.json").json["paths"])
    text = "\n".join(path.read_text("utf-8") for path in DOCUMENTS)
    address = r"[` ](?:GET |POST |PUT )?(/api/v1/[a-z/._{}-]+|/metrics|/health)"
    named = set(re.findall(address, text))
    assert {"/metrics", "/health", "/api/v1/tasks/types"} <= named
    assert sorted(path.rstrip("./") for path in named - served) == []


def test_an_event_looks_like_the_one_that_is_shown(rest: Rest) -> None:
    page = (ROOT / "docs" / "events.md").read_text("utf-8")
    shown = json.loads(page.partition("```json\n")[2].partition("```")[0])
    task_id = rest.ask("POST", "/api/v1/tasks", {"task_type": "echo", "payload": {}}).data[
        "task_id"
    ]
    path = f"events?since=0&wait=20&type=task.running&task_id={task_id}"
    (real,) = until(lambda: rest.get(f"/{path}")["events"], "the event of its start")
    assert list(real) == list(shown)
    assert real["data"].keys() == shown["data"].keys()
    assert real["type"] == shown["type"]


def test_the_numbers_of_operations_are_the_ones_that_are_given(cluster: Cluster) -> None:
    text = (ROOT / "docs" / "operations.md").read_text("utf-8")
    listed = text.partition("admin operation `metrics`: `")[2].partition("`.")[0]
    names = {re.sub(r"[\[{].*", "", word.strip()) for word in re.split(r",(?![^{]*})", listed)}
    keys = client_keys(cluster.data_dir / ADMIN_KEY)
    client = AdminClient("127.0.0.1", cluster.admin_port, keys=lambda: keys)
    try:
        assert set(client.call("metrics")) == names
    finally:
        client.close()


def test_a_copy_made_while_it_runs_is_whole(cluster: Cluster, tmp_path: Path) -> None:
    assert '`sqlite3 cluster.db ".backup copy.db"`' in (ROOT / "docs/operations.md").read_text()
    original = sqlite3.connect(cluster.data_dir / "cluster.db")
    copy = sqlite3.connect(tmp_path / "cluster.db")
    try:
        original.backup(copy)
        assert copy.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    finally:
        copy.close()
        original.close()
    another = Cluster(tmp_path / "another", "--no-rate-limit", "--workers", "0")
    tasks = cluster.rest.ask("GET", "/api/v1/tasks").json["pagination"]["total_items"]
    assert another.close() == 0
    for leftover in another.data_dir.glob("cluster.db*"):
        leftover.unlink()
    shutil.copy(tmp_path / "cluster.db", another.data_dir / "cluster.db")
    another = Cluster(tmp_path / "another", "--no-rate-limit", "--workers", "0")
    try:
        assert another.rest.ask("GET", "/api/v1/tasks").json["pagination"]["total_items"] == tasks
    finally:
        assert another.close() == 0
