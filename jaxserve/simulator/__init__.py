"""Drives the scheduler without devices: the reference simulator."""

from jaxserve.simulator.reference import Answer, Reference, StageTime, as_profiled
from jaxserve.simulator.simulate import SimulationResult, simulate

__all__ = ["Answer", "Reference", "SimulationResult", "StageTime", "as_profiled", "simulate"]
