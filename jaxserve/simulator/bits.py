"""What processors count in the bits of a word in one instruction, for compiled code: numba has no names for it."""
# pyright: basic

from collections.abc import Callable
from typing import Any

import numba.extending
from llvmlite import ir
from numba.core import types


def intrinsic(function: Callable[..., Any]) -> Callable[..., Any]:
    """`numba.extending.intrinsic`: the caller does not give the typing context."""
    return numba.extending.intrinsic(function)


@intrinsic
def trailing_zeros(typing_context, word):
    """Number of zero bits below the lowest set bit of a word that is not 0."""

    def generate(context, builder, signature, arguments):
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.uint64(types.uint64), generate


@intrinsic
def leading_zeros(typing_context, word):
    """Number of zero bits above the highest set bit of a word; 64 where it is 0."""

    def generate(context, builder, signature, arguments):
        return builder.ctlz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return types.uint64(types.uint64), generate


@intrinsic
def ones(typing_context, word):
    """Number of set bits."""

    def generate(context, builder, signature, arguments):
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), generate
