"""Sequences of requests: values, files and arrival processes."""

from jaxserve.workload.arrivals import gamma, merge
from jaxserve.workload.workload import Workload

__all__ = ["Workload", "gamma", "merge"]
