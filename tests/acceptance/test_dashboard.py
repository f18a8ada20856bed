"""The dashboard in a real browser, on a real cluster. The steps are in dashboard.mjs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.kit import Cluster, Process
from tests.command_kit import until
from tests.integration.node.test_cuts import install

pytestmark = pytest.mark.slow

STEPS = Path(__file__).with_name("dashboard.mjs")
MODULES = {"playwright-core": "1.65.1", "axe-core": "4.14.1", "typescript": "5.9.3"}
MODULE = Path(__file__).resolve().parents[2] / "sdk" / "js" / "retire-cluster.mjs"
SCENARIO_SECONDS = 150

Drive = Callable[..., Any]


def chromium() -> str:
    """A Chromium that is installed here; skips without one."""
    for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"):
        found = shutil.which(name)
        if found:
            return found
    pytest.skip("no Chromium here; install the package chromium to run the dashboard's tests")


@pytest.fixture(scope="module")
def modules(root: Path) -> Path:
    """A folder with the pinned modules, kept between runs; skips where they cannot be had."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if not node or not npm:
        pytest.skip("no Node.js with npm here; install the packages nodejs and npm")
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout
    if int(version.strip().lstrip("v").split(".")[0]) < 18:
        pytest.skip(f"Node.js {version.strip()} is too old; the browser's driver needs 18")
    venv = root / ".venv"
    place = venv if venv.is_dir() else Path(tempfile.gettempdir())
    folder = place / "retire-cluster-dashboard-tests"
    wanted = {"private": True, "dependencies": MODULES}
    package = folder / "package.json"
    stamp = folder / "installed.json"
    if stamp.exists() and json.loads(stamp.read_text("utf-8")) == wanted:
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    package.write_text(json.dumps(wanted), "utf-8")
    command = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", "--no-package-lock"]
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=120, check=False
        )
    except subprocess.TimeoutExpired:
        pytest.skip("npm did not deliver playwright-core and axe-core within 120 s")
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        pytest.skip(f"npm could not install playwright-core and axe-core: {last}")
    stamp.write_text(json.dumps(wanted), "utf-8")
    return folder


@pytest.fixture(scope="module")
def drive(modules: Path) -> Drive:
    """Plays a scenario of dashboard.mjs against a cluster."""
    browser = chromium()

    def play(cluster: Cluster, scenario: str, folder: str = "") -> Any:
        done = subprocess.run(
            ["node", str(STEPS), str(modules), browser, cluster.rest.url, scenario, folder],
            capture_output=True,
            text=True,
            timeout=SCENARIO_SECONDS,
            env={**os.environ, "NO_PROXY": "*"},
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return play


@pytest.fixture(scope="module")
def cluster(drive: Drive, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two devices and no rate limit: the scenarios look at other things."""
    found = Cluster(tmp_path_factory.mktemp("dashboard"), "--workers", "2", "--no-rate-limit")
    yield found
    found.close()


@pytest.mark.parametrize(
    "scenario",
    [
        pytest.param("submit", id="a_task_of_the_form_is_seen_to_finish_live"),
        pytest.param("refused", id="a_field_says_what_is_wrong_with_it"),
        pytest.param("digits", id="no_digit_of_a_users_number_is_lost"),
        pytest.param("cancel", id="a_running_task_is_cancelled_and_tried_again"),
        pytest.param("explain", id="a_stuck_task_says_why_it_waits"),
        pytest.param("drain", id="a_drained_device_gets_nothing_new_until_it_is_resumed"),
        pytest.param("log", id="the_log_grows_holds_and_is_filtered"),
        pytest.param("many", id="retrying_many_asks_once_with_the_count"),
        pytest.param("lists", id="filters_and_pages_are_the_servers"),
        pytest.param("phone", id="nothing_is_wider_than_a_phone_of_360_pixels"),
        pytest.param("themes", id="dark_and_light_follow_the_system_and_the_button"),
        pytest.param("keyboard", id="everything_works_by_keyboard_alone"),
        pytest.param("axe", id="axe_finds_no_serious_issue_in_either_theme"),
        pytest.param("docs", id="the_documentation_is_readable_on_a_phone_and_by_axe"),
        pytest.param("weight", id="no_page_weighs_more_than_100_kb_or_asks_elsewhere"),
        pytest.param("poll", id="without_websocket_it_is_live_by_the_long_poll"),
    ],
)
def test_the_dashboard(drive: Drive, cluster: Cluster, scenario: str) -> None:
    drive(cluster, scenario)


def test_what_an_administrator_did_before_a_restart_is_in_the_log(
    drive: Drive, tmp_path: Path
) -> None:
    found = Cluster(tmp_path, "--no-rate-limit")
    try:
        assert found.cli("token", "create").returncode == 0
        found.kill_broker()
        found.rest.await_online(found.local)
        drive(found, "audit")
    finally:
        found.close()


def test_a_task_whose_output_was_cut_says_so_on_its_page(drive: Drive, tmp_path: Path) -> None:
    found = Cluster(tmp_path, "--allow", "command", RETIRE_CLUSTER_ALLOW_ROOT="1")
    try:
        drive(found, "cut")
    finally:
        found.close()


SHAPE = """
def shape(payload, context):
    return 1

shape.payload_schema = {"x": {"type": "%s"}}
"""


def test_a_type_described_otherwise_than_most_do_is_named_on_the_devices_page(
    drive: Drive, tmp_path: Path
) -> None:
    found = Cluster(tmp_path / "main", "--no-rate-limit", RETIRE_CLUSTER_ALLOW_ROOT="1")
    try:
        for device_id, kind in (("first", "integer"), ("second", "string")):
            site = tmp_path / device_id
            install(site, SHAPE % kind, "shape")
            found.join(device_id, PYTHONPATH=str(site), RETIRE_CLUSTER_ALLOW_ROOT="1")
        assert found.rest.get("/devices/second")["task_types_disputed"] == ["shape"]
        drive(found, "disputed")
    finally:
        found.close()


STEPWISE = """
import time

def stepwise(payload, context):
    context.progress(25, "first part")
    time.sleep(5)
    context.progress(None, "second part")
    time.sleep(1)
    context.progress(75, "third part")
    time.sleep(60)
"""


def test_a_task_is_told_apart_its_progress_live_and_its_output_as_text(
    drive: Drive, tmp_path: Path
) -> None:
    plugin = tmp_path / "plugin"
    facts = plugin / "stepwise-1.dist-info"
    facts.mkdir(parents=True)
    (plugin / "stepwise.py").write_text(STEPWISE, "utf-8")
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: stepwise\nVersion: 1\n", "utf-8")
    entry = "[retire_cluster.task_types]\nstepwise = stepwise:stepwise\n"
    (facts / "entry_points.txt").write_text(entry, "utf-8")
    found = Cluster(
        tmp_path / "cluster", "--allow", "command",
        RETIRE_CLUSTER_ALLOW_ROOT="1", PYTHONPATH=str(plugin),
    )  # fmt: skip
    try:
        drive(found, "shown")
    finally:
        found.close()


def test_the_pictures_survive_a_restart_of_the_main_node(drive: Drive, tmp_path: Path) -> None:
    found = Cluster(tmp_path)
    try:
        for task_id in found.rest.batch([{"task_type": "echo", "payload": {}}] * 8):
            found.rest.await_status(task_id, "success")
        found.kill_broker()
        until(found.rest.healthy, "a new main node")
        until(found.rest.online, "its device")
        drive(found, "past")
    finally:
        found.close()


def test_the_javascript_module_works_in_a_browser(drive: Drive, cluster: Cluster) -> None:
    drive(cluster, "module", str(MODULE))


USAGE = """
import RetireClusterAPI, { parseJSON, stringifyJSON, type TaskResult } from "./retire-cluster.mjs";
const api = new RetireClusterAPI("http://127.0.0.1:8081/api/v1", undefined, { retrySeconds: 5 });
const task = await api.submitTask("echo", { n: 1 }, { priority: "high", idempotencyKey: "k" });
const id: string = task.data!.task_id;
const done = await api.waitForTask<{ echo: { n: number } }>(id, { timeoutSeconds: 5 });
const big: bigint = parseJSON(stringifyJSON({ n: 2n ** 60n })).n;
const n: number | undefined = done.data?.result_data?.echo.n;
const missing: number | null | undefined = done.data?.truncated?.stdout?.total_bytes;
console.log(missing);
const results: TaskResult[] = (await api.getTaskResults([id])).data!.results;
for await (const event of api.watch({ type: "task.success" })) console.log(event.at, n, results);
console.log(big);
// @ts-expect-error there is no such priority
await api.submitTask("echo", {}, { priority: "now" });
// @ts-expect-error there is no such method
await api.submitTsak("echo", {});
"""


EXACT = r"""
import assert from "node:assert";
import { createServer } from "node:http";
import { RetireClusterAPI, parseJSON, stringifyJSON } from "./retire-cluster.mjs";
const text = '{"id":1970670598291982291,"ends":[-9223372036854775808,18446744073709551615],' +
  '"safe":9007199254740991,"float":0.1,' +
  '"text":"9007199254740993 \\" 9007199254740993","__proto__":{"x":1}}';
for (const native of [undefined, false]) {
  const read = parseJSON(text, native);
  assert.strictEqual(read.id, 1970670598291982291n);
  assert.deepStrictEqual(read.ends, [-9223372036854775808n, 18446744073709551615n]);
  assert.strictEqual(read.safe, Number.MAX_SAFE_INTEGER);
  assert.strictEqual(stringifyJSON(read), text);
}
assert.strictEqual(stringifyJSON({ n: 2 ** 60 }), '{"n":1152921504606846976}');
const digits = "12345678901234567890";
for (const bad of [`[${digits},]`, `{${digits}:1}`, `[${digits} 3]`]) {
  assert.throws(() => parseJSON(bad, false), SyntaxError, bad);
}
const long = "a\\n".repeat(2_000_000);
assert.strictEqual(parseJSON(`["${long}",9007199254740993]`, false)[1], 9007199254740993n);
let posted = "";
const server = createServer((request, response) => {
  request.on("data", (part) => { posted += part; });
  request.on("end", () => response.end(`{"status":"success","data":${text}}`));
});
await new Promise((done) => server.listen(0, "127.0.0.1", done));
const api = new RetireClusterAPI(`http://127.0.0.1:${server.address().port}`);
const { data } = await api.submitTask("echo", { id: 1970670598291982291n });
server.close();
assert.strictEqual(data.id, 1970670598291982291n);
assert.match(posted, /"payload":\{"id":1970670598291982291\}/);
BigInt.prototype.toJSON = function () { return this.toString(); };
assert.strictEqual(stringifyJSON([2n ** 60n]), "[1152921504606846976]");
"""


def test_the_javascript_module_keeps_every_digit_of_whole_numbers(tmp_path: Path) -> None:
    node = shutil.which("node") or pytest.skip("no Node.js here")
    shutil.copy(MODULE, tmp_path)
    (tmp_path / "exact.mjs").write_text(EXACT, "utf-8")
    done = subprocess.run(
        [node, "exact.mjs"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_the_types_of_the_javascript_module_hold_and_name_what_it_has(
    modules: Path, tmp_path: Path
) -> None:
    for file in (MODULE, MODULE.with_name("retire-cluster.d.mts")):
        shutil.copy(file, tmp_path)
    (tmp_path / "usage.mts").write_text(USAGE, "utf-8")
    tsc = modules / "node_modules" / "typescript" / "bin" / "tsc"
    done = subprocess.run(
        ["node", str(tsc), "--strict", "--noEmit", "--target", "es2022", "--module", "nodenext",
         "--lib", "es2022,dom,dom.iterable,dom.asynciterable", "usage.mts"],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    code, types = MODULE.read_text("utf-8"), MODULE.with_name("retire-cluster.d.mts").read_text()
    methods = set(re.findall(r"^  async \*?(\w+)\(", code, re.MULTILINE))
    assert methods == set(re.findall(r"^  (\w+)(?:<[^>]+>)?\(", types, re.MULTILINE)) - {
        "constructor"
    }


def test_a_device_says_what_it_lacks_is_pinged_and_removed(drive: Drive, tmp_path: Path) -> None:
    flags = ("--workers", "1", "--no-rate-limit", "--allow", "command")
    cluster = Cluster(tmp_path, *flags, RETIRE_CLUSTER_ALLOW_ROOT="1")
    try:
        nowhere = cluster.rest.submit("command", {"command": ["rc-nowhere"]})
        assert cluster.rest.result(nowhere)["cause"] == "not_here"
        drive(cluster, "device")
    finally:
        cluster.close()


def test_a_busy_cluster_is_watched_with_few_requests(drive: Drive, tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, "--workers", "1")
    try:
        drive(cluster, "frugal")
    finally:
        cluster.close()


def test_an_empty_cluster_makes_the_line_by_which_a_device_joins(
    drive: Drive, tmp_path: Path
) -> None:
    cluster = Cluster(tmp_path / "main", "--workers", "0", "--no-rate-limit")
    try:
        line = drive(cluster, "newcomer")["line"].split()
        assert line[:2] == ["retire-cluster-worker", "--join"]
        place = ["--data-dir", str(tmp_path / "device"), "--device-id", "newcomer"]
        worker = Process(tmp_path / "worker.log", "worker", *line[1:], *place)
        try:
            cluster.rest.await_online("newcomer")
            # What was sent before anybody was there runs now.
            (task,) = cluster.rest.get("/tasks")
            cluster.rest.await_status(task["task_id"], "success")
        finally:
            assert worker.stop() == 0
    finally:
        cluster.close()


@pytest.mark.parametrize("reads", ["false", "true"])
def test_a_key_signs_in_and_out(drive: Drive, tmp_path: Path, reads: str) -> None:
    key = ["--auth", "--api-key", "the-key-of-this-test", "--no-rate-limit"]
    cluster = Cluster(tmp_path, "--workers", "1", *key, RETIRE_CLUSTER_API_AUTH_READS=reads)
    try:
        drive(cluster, "signin")
    finally:
        cluster.close()
