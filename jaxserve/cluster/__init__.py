"""Where groups live: on the devices of this process, or emulated."""

from jaxserve.cluster.emulated import EmulatedCluster, emulated_outputs
from jaxserve.cluster.local import LocalCluster
from jaxserve.cluster.seam import Cluster, DeviceMemory, Job, Listener, Loaded, Work

__all__ = [
    "Cluster",
    "DeviceMemory",
    "EmulatedCluster",
    "Job",
    "Listener",
    "Loaded",
    "LocalCluster",
    "Work",
    "emulated_outputs",
]
