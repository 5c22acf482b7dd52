"""Drives the scheduler without devices: the reference simulator, and a compiled one that decides the same."""

from jaxserve.simulator.reference import Answer, Reference, StageTime, as_profiled
from jaxserve.simulator.scorer import Current, Score, Scorer, Shape
from jaxserve.simulator.simulate import ENGINES, SimulationResult, simulate
from jaxserve.simulator.tables import FleetTables, Traffic, fleet_index

__all__ = [
    "ENGINES",
    "Answer",
    "Current",
    "FleetTables",
    "Reference",
    "Score",
    "Scorer",
    "Shape",
    "SimulationResult",
    "StageTime",
    "Traffic",
    "as_profiled",
    "fleet_index",
    "simulate",
]
