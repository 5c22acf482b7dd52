"""Models on devices: compiled stages, weights, pipelines, and the measure of them."""

from jaxserve.runtime.api import estimate, parallelize, profile
from jaxserve.runtime.cache import CompilationCache, enable_compilation_cache
from jaxserve.runtime.calibration import calibrate
from jaxserve.runtime.loading import Progress, load
from jaxserve.runtime.pipeline import Pipeline

__all__ = [
    "CompilationCache",
    "Pipeline",
    "Progress",
    "calibrate",
    "enable_compilation_cache",
    "estimate",
    "load",
    "parallelize",
    "profile",
]
