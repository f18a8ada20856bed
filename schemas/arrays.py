"""NumPy's arrays and scalars as `.npy` in base64: data only, never an object.

NumPy is imported only where a value is one of its own, or says that it is.
"""

from __future__ import annotations

import binascii
import importlib
import io
import math
import sys
from typing import Any, Final

#: Of the text that describes an array; NumPy's own limit for what it does not trust.
_MAX_HEADER_BYTES: Final = 10_000
_MAX_DIMENSIONS: Final = 32


class BadArray(ValueError):
    """It cannot be written, or what is read is no array; the text says why."""


class NoNumpy(BadArray):
    """NumPy is not installed here."""


def kind(value: object) -> str:
    """`ndarray` or `numpy` (a scalar) for what is exactly NumPy's, otherwise empty."""
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
    """About how many bytes its text has."""
    return int(value.nbytes) * 4 // 3 + 200


def write(value: Any) -> str:
    """An array or a scalar. Raises `BadArray`."""
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
    """What `write` wrote. Nothing is allocated that is larger than the text. Raises `BadArray`."""
    if not isinstance(text, str):
        raise BadArray("an array is a text in base64")
    try:
        numpy: Any = importlib.import_module("numpy")
    except ImportError:
        raise NoNumpy("it holds an array, and NumPy is not installed here") from None
    try:
        file = io.BytesIO(binascii.a2b_base64(text))
        if numpy.lib.format.read_magic(file) != (1, 0):
            raise BadArray("an array of another version of .npy")
        shape, fortran, dtype = numpy.lib.format.read_array_header_1_0(
            file, max_header_size=_MAX_HEADER_BYTES
        )
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
        array = flat.reshape(shape, order="F" if fortran else "C")
        return array[()] if scalar else array
    except BadArray:
        raise
    except Exception as error:  # whatever the reader of another's header raises
        raise BadArray(f"no array: {error}"[:300]) from None
