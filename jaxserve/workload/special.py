"""The special functions that Gamma processes need, with types: scipy brings none."""

import scipy.special as untyped  # pyright: ignore[reportMissingTypeStubs]

from jaxserve.workload.workload import Floats


def digamma(x: Floats) -> Floats:
    """psi(x), the derivative of log Gamma(x), for x > 0."""
    return untyped.digamma(x)  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]


def trigamma(x: Floats) -> Floats:
    """psi'(x) for x > 0: the Hurwitz zeta function at 2, which scipy has the faster of the two."""
    return untyped.zeta(2.0, x)  # pyright: ignore[reportUnknownMemberType]


def log_gamma(x: Floats) -> Floats:
    """Log Gamma(x) for x > 0."""
    return untyped.gammaln(x)  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]


def gamma_survival(shape: Floats, x: Floats) -> Floats:
    """Probability that a Gamma variable of this shape and scale 1 is greater than x."""
    return untyped.gammaincc(shape, x)  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
