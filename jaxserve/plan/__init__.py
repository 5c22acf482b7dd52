"""Frozen values that pass between offline and online work, and their files."""

from jaxserve.plan.fields import write_bytes, write_json, write_text
from jaxserve.plan.fleet import Fleet, FleetModel
from jaxserve.plan.placement import Group, Placement, Segment
from jaxserve.plan.profile import ParallelConfig, Profile, Profiles

__all__ = [
    "Fleet",
    "FleetModel",
    "Group",
    "ParallelConfig",
    "Placement",
    "Profile",
    "Profiles",
    "Segment",
    "write_bytes",
    "write_json",
    "write_text",
]
