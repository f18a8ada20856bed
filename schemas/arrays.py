"""Write NumPy's arrays and scalars as `.npy` in base64, and read them: data, never objects.

NumPy is imported only for a value of its own, or for a text that stands for one.
"""

from __future__ import annotations

import binascii
import importlib
import io
import math
import sys
from typing import Any, Final

#: Longest header of an array; NumPy's own limit for files that it does not trust.
_MAX_HEADER_BYTES: Final = 10_000
_MAX_DIMENSIONS: Final = 32


class BadArray(ValueError):
    """A value that cannot be written, or a text that is no array; the message says why."""


class NoNumpy(BadArray):
    """A text holds an array, and NumPy is not installed here."""


def kind(value: object) -> str:
    """Return `ndarray`, or `numpy` for a scalar, of NumPy's very types; empty for all others."""
    numpy: Any = sys.modules.get("numpy")
    if numpy is None:
        return ""
    # A program may have a module of its own by that name.
    if type(value) is getattr(numpy, "ndarray", None):
        return "ndarray"
    generic = getattr(numpy, "generic", None)
    if isinstance(generic, type) and isinstance(value, generic):
        return "numpy" if getattr(value, "dtype", None).type is type(value) else ""  # type: ignore[union-attr]
    return ""


def size(value: Any) -> int:
    """Estimate the bytes of the text that `write` makes."""
    return int(value.nbytes) * 4 // 3 + 200


def write(value: Any) -> str:
    """Write an array or a scalar. Raises `BadArray`."""
    numpy: Any = importlib.import_module("numpy")
    if value.dtype.hasobject:
        raise BadArray("an array of Python objects")
    file = io.BytesIO()
    try:
        numpy.lib.format.write_array(
            file, numpy.asanyarray(value), version=(1, 0), allow_pickle=False
        )
    except ValueError as error:
        raise BadArray(f"an array that cannot be written: {error}") from None
    return binascii.b2a_base64(file.getbuffer(), newline=False).decode("ascii")


def read(text: object, *, scalar: bool) -> Any:
    """Read what `write` wrote; allocate nothing larger than the text. Raises `BadArray`."""
    if not isinstance(text, str):
        raise BadArray("an array is a text in base64")
    try:
        numpy: Any = importlib.import_module("numpy")
    except ImportError:
        raise NoNumpy("it holds an array, and NumPy is not installed here") from None
    try:
        raw = binascii.a2b_base64(text)
        file = io.BytesIO(raw)
        if numpy.lib.format.read_magic(file) != (1, 0):
            raise BadArray("an array of another version of .npy")
        # An old NumPy, as 1.21, has no limit of its own.
        if int.from_bytes(raw[8:10], "little") > _MAX_HEADER_BYTES:
            raise BadArray("an array with a long description")
        shape, fortran, dtype = numpy.lib.format.read_array_header_1_0(file)
        data = file.read()
        if dtype.hasobject:
            raise BadArray("an array of Python objects")
        if len(shape) > _MAX_DIMENSIONS or min(shape, default=0) < 0:
            raise BadArray("an array of an odd shape")
        if math.prod(shape) * dtype.itemsize != len(data) or (scalar and shape):
            raise BadArray("an array whose data do not fit its shape")
        if data:
            flat = numpy.frombuffer(data, dtype).copy()
        else:
            flat = numpy.empty(0, dtype)
            if dtype.itemsize == 0 and math.prod(shape):
                raise BadArray("an array without data")
        if dtype.kind in "UV":
            flat.tolist()  # raises for texts that are not Unicode, which would fail where used
        array = flat.reshape(shape, order="F" if fortran else "C")
        return array[()] if scalar else array
    except BadArray:
        raise
    except Exception as error:  # whatever the reader of another's header raises
        raise BadArray(f"no array: {error}"[:300]) from None
