"""What the engine counts, its state at one moment, and where the time of one request went."""

from jaxserve.metrics.attainment import WINDOWS
from jaxserve.metrics.counters import GroupMetrics, ModelMetrics
from jaxserve.metrics.histogram import Histogram
from jaxserve.metrics.observation import GroupObservation, ModelObservation, Observation
from jaxserve.metrics.timeline import Timeline

__all__ = [
    "WINDOWS",
    "GroupMetrics",
    "GroupObservation",
    "Histogram",
    "ModelMetrics",
    "ModelObservation",
    "Observation",
    "Timeline",
]
