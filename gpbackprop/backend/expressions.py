"""What a call computes at one point, as an expression over the values of its operands: with dtypes, without a language.

The dtypes are those of NumPy: operands are cast to the dtypes of the ufunc's loop, Python's numbers take the dtype that
they have beside arrays, and the result is cast to that of `out`. `cpp` and `native.expression` say it to a compiler.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

DTYPES = ("float32", "float64", "uint8", "bool", "int32", "uint32", "int64")  # those that compilers know

# Ufuncs of any dtype, and of floats.
ANY = {
    "add", "subtract", "multiply", "negative", "maximum", "minimum", "sign", "bitwise_xor", "bitwise_and", "bitwise_or",
    "right_shift", "left_shift", "equal", "not_equal", "less", "less_equal", "greater", "greater_equal",
}  # fmt: skip
FLOAT = {
    "divide", "abs", "power", "square", "sqrt", "exp", "exp2", "expm1", "log", "log2", "log1p", "tanh", "floor", "ceil",
    "rint", "sin", "cos",
}  # fmt: skip
SAME = {"true_divide": "divide", "absolute": "abs"}  # other names of them


@dataclass(frozen=True)
class Operand:
    """The value of read number `place` of a statement; of its join, in a tail."""

    place: int
    dtype: np.dtype


@dataclass(frozen=True)
class Number:
    value: Any
    dtype: np.dtype


@dataclass(frozen=True)
class Cast:
    of: "Expression"
    dtype: np.dtype


@dataclass(frozen=True)
class Apply:
    """The ufunc `name` of ANY or FLOAT, of operands of one dtype; `dtype` is that of the result."""

    name: str
    of: tuple["Expression", ...]
    dtype: np.dtype


Expression = Operand | Number | Cast | Apply


def cast(of: Expression, dtype: Any) -> Expression:
    """`of` as a value of `dtype`."""
    return of if of.dtype == dtype else Cast(of, np.dtype(dtype))
