"""What docs/monitoring promises of `/metrics`: real scrapes, Prometheus' own tool on the files."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
FOLDER = DOCS / "monitoring"
_NAME = re.compile(r"\bretire_cluster_\w+")
_SUFFIX = re.compile(r"_(bucket|sum|count)$")


@pytest.fixture(scope="module")
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("no promtool here; the package prometheus has it")
    return found


@pytest.fixture(scope="module")
def scrape(api: Any) -> str:
    """A scrape after something has succeeded, failed and waited."""
    for task_type, payload in (("echo", {}), ("python_eval", {"expression": "1/0"})):
        api.finished(api.submit(task_type, payload))
    reply = api.get("/metrics")
    assert reply.status == 200
    return str(reply.text)


@pytest.fixture(scope="module")
def families(scrape: str) -> dict[str, str]:
    """Metric name → kind."""
    return dict(line.split()[2:4] for line in scrape.splitlines() if line.startswith("# TYPE"))


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "rules", "alerts.yml"),
        ("check", "config", "prometheus.yml"),
        ("test", "rules", "alerts_test.yml"),
    ],
    ids=" ".join,
)
def test_promtool_accepts_the_files(promtool: str, arguments: tuple[str, ...]) -> None:
    done = subprocess.run(
        [promtool, *arguments], cwd=FOLDER, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCESS" in done.stdout


def test_promtool_has_no_complaint_but_the_documents_own_name(promtool: str, scrape: str) -> None:
    done = subprocess.run(
        [promtool, "check", "metrics"],
        input=scrape,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    complaints = (done.stdout + done.stderr).strip().splitlines()
    assert [line for line in complaints if "retire_cluster_devices_total" not in line] == []


def test_the_documented_examples_are_in_a_scrape(scrape: str, families: dict[str, str]) -> None:
    assert "# HELP retire_cluster_devices_total Total number of registered devices\n" in scrape
    assert families["retire_cluster_devices_total"] == "gauge"
    assert re.search(r'^retire_cluster_devices_total\{status="online"\} \d', scrape, re.M)
    assert "# HELP retire_cluster_tasks_total Total number of tasks\n" in scrape
    assert families["retire_cluster_tasks_total"] == "counter"
    assert re.search(r'^retire_cluster_tasks_total\{status="success"\} [1-9]', scrape, re.M)
    assert "_created" not in scrape


def test_the_page_lists_every_metric_and_its_kind(families: dict[str, str]) -> None:
    page = (DOCS / "monitoring.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| `(retire_cluster_\w+)` \| (\w+) \|", page, re.M))
    assert rows == families


def test_rules_and_panels_ask_for_metrics_that_exist(families: dict[str, str]) -> None:
    board = json.loads((FOLDER / "grafana.json").read_text("utf-8"))
    asked = {
        name for panel in board["panels"] for target in panel["targets"]
        for name in _NAME.findall(target["expr"])
    }  # fmt: skip
    asked |= set(_NAME.findall((FOLDER / "alerts.yml").read_text("utf-8")))
    assert len(asked) > 12
    bare = {name if name in families else _SUFFIX.sub("", name) for name in asked}
    assert bare - set(families) == set()


def test_every_alert_is_explained_and_tested() -> None:
    names = re.findall(r"- alert: (\w+)", (FOLDER / "alerts.yml").read_text("utf-8"))
    page, tests = (DOCS / "monitoring.md").read_text("utf-8"), (FOLDER / "alerts_test.yml")
    assert len(names) == 10
    for name in names:
        assert f"`{name}`" in page
        assert name in tests.read_text("utf-8")


def test_panels_of_the_dashboard_do_not_overlap() -> None:
    board = json.loads((FOLDER / "grafana.json").read_text("utf-8"))
    cells: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        mine = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert at["x"] + at["w"] <= 24
        assert not cells & mine, panel["title"]
        cells |= mine
