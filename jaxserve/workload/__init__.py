"""Sequences of requests: values, files, arrival processes, recorded traces."""

from jaxserve.workload.arrivals import deterministic, gamma, merge, poisson, shifting
from jaxserve.workload.azure_2019 import FunctionCounts, read_azure_2019
from jaxserve.workload.azure_2021 import FunctionArrivals, read_azure_2021
from jaxserve.workload.azure_llm import LlmTrace, read_azure_llm
from jaxserve.workload.fit import fit
from jaxserve.workload.fitted import Fitted
from jaxserve.workload.popularity import split_power_law, split_uniform
from jaxserve.workload.rows import Skipped
from jaxserve.workload.synthetic import slo_from_latency, synthetic
from jaxserve.workload.transform import (
    aligned,
    between,
    combine,
    only,
    rename,
    scale_cv,
    scale_rate,
    scale_slo,
    windows,
    with_priority,
    with_slo,
    with_tenant,
)
from jaxserve.workload.workload import Workload

__all__ = [
    "Fitted",
    "FunctionArrivals",
    "FunctionCounts",
    "LlmTrace",
    "Skipped",
    "Workload",
    "aligned",
    "between",
    "combine",
    "deterministic",
    "fit",
    "gamma",
    "merge",
    "only",
    "poisson",
    "read_azure_2019",
    "read_azure_2021",
    "read_azure_llm",
    "rename",
    "scale_cv",
    "scale_rate",
    "scale_slo",
    "shifting",
    "slo_from_latency",
    "split_power_law",
    "split_uniform",
    "synthetic",
    "windows",
    "with_priority",
    "with_slo",
    "with_tenant",
]
