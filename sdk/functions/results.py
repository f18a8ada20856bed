"""What devices answer to calls: values and errors. No pickle is opened unless they are trusted."""

from __future__ import annotations

import binascii
import contextlib
import pickle
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from retire_cluster.schemas.errors import ClusterError
from retire_cluster.schemas.interpreter import own_python
from retire_cluster.schemas.plain import BadPlain, NotPlain, decode
from retire_cluster.schemas.text.clean_text import plain, plain_lines
from retire_cluster.sdk.futures import TaskFailed

_NOT_PLAIN: Final = "NotPlain"
_TOO_LARGE: Final = "TooLarge"


class RemoteError(TaskFailed):
    """An error of a function on its device: its `type`, `message` and `traceback`, as texts."""

    code = "REMOTE_ERROR"

    def __init__(self, result: Mapping[str, Any]) -> None:
        super().__init__(result)
        error = _error_of(result)
        #: Name of the exception's class.
        self.type = plain(str(error.get("type") or "Exception"))[:200]
        self.message = plain_lines(str(error.get("message") or ""))
        #: As Python prints it, with the calls on the device.
        self.traceback = plain_lines(str(result.get("error_traceback") or ""))

    def __str__(self) -> str:
        told = f"{self.type}: {self.message}" if self.message else self.type
        cause = plain_lines(str(self.result.get("error_message") or ""))
        if self.message not in cause:
            cause = ""
        lines = [cause if len(cause) > len(told) else told]
        if self.traceback:
            lines += ["", "On the device:", self.traceback.rstrip()]
        return "\n".join(lines)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.result,)


class ResultNotPlain(RemoteError):
    """A function's result that is no plain value, or too large; the message says where."""

    code = "RESULT_NOT_PLAIN"

    def __str__(self) -> str:
        cure = "return plain values (numbers, texts, lists, dicts, arrays)"
        if self.type == _NOT_PLAIN:
            cure += ", or use Executor(trust_devices=True), which takes any object by pickle"
        return f"{self.message}; {cure}"


class BadAnswer(ClusterError):
    """A device's answer that is no answer to a call."""

    sentence = "A device's answer to a call is none."
    code = "BAD_ANSWER"
    status = 502


class Part(NamedTuple):
    """Results of some calls of one task, up to the first that failed."""

    values: list[Any]
    seconds: float
    error: BaseException | None = None


class Reader:
    """Read the answers of tasks of the type `python_call`.

    :param trust: open pickles, which runs whatever their writers want
    """

    def __init__(self, *, trust: bool) -> None:
        self._trust = trust

    def value(self, data: Any) -> Any:
        """Read the result of a call. Raises `BadAnswer`."""
        return self._read(data, "value")

    def part(self, data: Any, count: int) -> Part:
        """Read the results of a task of so many calls. Raises `BadAnswer`."""
        values = self._read(data, "values")
        seconds = data.get("seconds")
        if not isinstance(values, list) or len(values) != count:
            raise BadAnswer  # one more or less, and those of other devices go to other inputs
        return Part(values, seconds if isinstance(seconds, float) else 0.0)

    def failed_part(self, failure: TaskFailed, count: int) -> Part:
        """Read the results before the one of so many calls that failed, with its error."""
        data = failure.result.get("result_data")
        values: Any = []
        if isinstance(data, dict) and not {"values", "pickle"}.isdisjoint(data):
            try:
                values = self._read(data, "values")
            except ClusterError:
                values = []
        if not isinstance(values, list) or len(values) > count:
            values = []
        return Part(values, 0.0, self.error(failure))

    def error(self, failure: TaskFailed) -> BaseException:
        """Return the error to raise for a task that failed."""
        error = _error_of(failure.result)
        if not error:
            return failure
        # A function may raise an exception of its own by that name.
        ours = error.get("module") == NotPlain.__module__
        not_plain = ours and error.get("type") in (_NOT_PLAIN, _TOO_LARGE)
        remote = (ResultNotPlain if not_plain else RemoteError)(failure.result)
        if self._trust and "pickle" in error:
            # Whatever opening it raises, the text of the error is there.
            with contextlib.suppress(Exception):
                own = self._open(error)
                # An exit is the device's, not one of this program.
                if isinstance(own, Exception):
                    own.__cause__ = remote
                    return own
        return remote

    def _read(self, data: Any, name: str) -> Any:
        if not isinstance(data, dict):
            raise BadAnswer
        if self._trust and "pickle" in data:
            return self._open(data)
        if name not in data:
            raise BadAnswer(
                "a device answered with a pickle, which is opened only with"
                " Executor(trust_devices=True)"
                if "pickle" in data
                else None
            )
        try:
            return decode(data[name])
        except BadPlain as error:
            raise BadAnswer(f"a device's answer is no value: {error}") from None

    def _open(self, data: Mapping[str, Any]) -> Any:
        if data.get("python") != own_python():
            raise BadAnswer(f"a device answered with a pickle of Python {data.get('python')!r:.40}")
        try:
            raw = binascii.a2b_base64(data["pickle"])
        except (ValueError, TypeError):
            raise BadAnswer from None
        return pickle.loads(raw)


def _error_of(result: Mapping[str, Any]) -> dict[str, Any]:
    data = result.get("result_data")
    error = data.get("error") if isinstance(data, dict) else None
    return error if isinstance(error, dict) else {}
