"""The command line's parser: an option that does not exist names the one that was meant."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """`argparse.ArgumentParser` with "did you mean"."""

    def error(self, message: str) -> NoReturn:
        """Print usage, the message and, for a mistyped option, the near one; exit 2."""
        found = re.search(r"unrecognized arguments: (.*)", message)
        words = found[1].split() if found else []
        mistyped = next((word.partition("=")[0] for word in words if word.startswith("--")), "")
        near = difflib.get_close_matches(mistyped, self._option_string_actions, n=1, cutoff=0.6)
        super().error(f"{message} (did you mean {near[0]}?)" if mistyped and near else message)

    def _print_message(self, message: str, file: Any = None) -> None:
        # argparse keeps quiet about a help text that a full disk does not take.
        if message and file is not None and file is sys.stdout:
            file.write(message)
        else:
            super()._print_message(message, file)
