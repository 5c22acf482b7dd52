"""Frozen values that pass between offline and online work, and their files."""

from jaxserve.plans.fields import is_text, write_bytes, write_json, write_text
from jaxserve.plans.fleet import Fleet, FleetModel
from jaxserve.plans.outlook import Outlook
from jaxserve.plans.placement import Group, Placement, Segment
from jaxserve.plans.profile import ParallelConfig, Profile, Profiles

__all__ = [
    "Fleet",
    "FleetModel",
    "Group",
    "Outlook",
    "ParallelConfig",
    "Placement",
    "Profile",
    "Profiles",
    "Segment",
    "is_text",
    "write_bytes",
    "write_json",
    "write_text",
]
