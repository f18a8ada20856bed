"""What `tests/windows/run.py` installs and runs; Wine itself is for `bootstrap.py test`."""

from __future__ import annotations

import re
from pathlib import Path

from tests.windows import run


def test_whatever_the_tests_may_need_is_installed(root: Path) -> None:
    project = (root / "pyproject.toml").read_text("utf-8")
    names = run.packages(project)
    # A plugin that the settings of pytest rely on, a library of the product, one of Windows.
    assert {"pytest", "pytest-timeout", "hypothesis", "falcon", "pyzmq", "tzdata"} <= set(names)
    assert not set(names) & run.NOT_NEEDED.keys()
    # Whatever is added to pyproject.toml comes along by itself.
    more = project.replace('"pytest-timeout>=2.3"', '"pytest-timeout>=2.3", "pytest-new[x]>=1"')
    assert {*run.packages(more)} - {*names} == {"pytest-new"}


def test_nothing_is_left_out_that_is_not_there(root: Path) -> None:
    project = (root / "pyproject.toml").read_text("utf-8")
    for name in run.NOT_NEEDED:
        assert re.search(rf"[\"']{re.escape(name)}\b", project), name
    for name in (*run.LEFT_OUT, *run.CHOSEN_BUT):
        path, _, test = name.partition("::")
        assert f"def {test}(" in (root / path).read_text("utf-8")
    for path in run.CHOSEN:
        assert (root / path).exists(), path
