"""Remembers a run and follows what a change of the placement does to it, where that pays.

Whether it pays is foretold by counts, never by time, so that a search does the same on every machine. A look at a
request costs two or three times what a request costs in a full run (bench/simulator.py), so more looks than
`AFFORDABLE_LOOKS` of the requests are not worth it. The looks that a change needs are expected to be in proportion to
the requests of the models whose replicas it changes, as with the changes before. Where they are expected to be too
many, the expectation falls a little, so that it is put to the test again.
"""

import numpy as np
import numpy.typing as npt

from jaxserve.simulator import trajectory
from jaxserve.simulator.tables import FleetTables, Traffic

Ints = npt.NDArray[np.int64]
Config = npt.NDArray[np.int32]
Held = npt.NDArray[np.uint8]

AFFORDABLE_LOOKS = 0.45
NEWEST_WEIGHT = 0.2
FORGETTING = 0.95


class Follower:
    """The record of one placement's run; its arrays are described in trajectory.py.

    Args:
        traffic: the workload.
        tables: of the fleet, without batches.
        overhead_s: added to every finish.
        groups: of every placement.
    """

    def __init__(self, traffic: Traffic, tables: FleetTables, *, overhead_s: float, groups: int) -> None:
        requests, inner = len(traffic.model), tables.most_stages - 1
        words = (requests + 63) // 64
        of_requests = np.zeros(requests, trajectory.REQUEST)
        of_requests["arrival_s"], of_requests["slo_s"] = traffic.arrival_s, traffic.slo_s
        of_requests["model"] = traffic.model
        self._tables = tables.without_batches
        self._overhead_s = overhead_s
        self._recorded = (
            of_requests,
            np.zeros(requests + 1 + groups),
            np.zeros((requests + 1 + groups, inner)),
            np.zeros((words, groups), np.uint64),
            np.zeros((words, groups), np.uint32),
            np.zeros((groups, words), np.uint64),
            trajectory.model_bitmaps(traffic.model, len(traffic.per_model)),
        )
        self._most_looks = int(AFFORDABLE_LOOKS * requests)
        room = self._most_looks + 64
        self._edits = (np.zeros(room, trajectory.EDIT), np.zeros((room, inner)))
        self._spread = 1.0  # looks for each request of a model whose replicas changed
        self._placed = self._followed = (np.zeros(0, np.int32), np.zeros((0, 0), np.uint8))

    def record(self, config: Config, held: Held) -> tuple[Ints, Ints, float]:
        """Runs the whole workload; who was served [M], who was chosen [G], and the sum of latencies."""
        self._placed = (config.copy(), held.copy())
        served, chosen = np.zeros(held.shape[1], np.int64), np.zeros(len(config), np.int64)
        latency_s = trajectory.record(self._tables, self._placed, self._overhead_s, self._recorded, served, chosen)
        return served, chosen, latency_s

    def follow(self, config: Config, held: Held, served: Ints, chosen: Ints) -> tuple[Ints, Ints, float, int] | None:
        """What another placement would do; None where a full run is expected to be faster, or turned out to be.

        Args:
            config: of each group.
            held: which models each group holds.
            served: of the record.
            chosen: of the record.

        Returns:
            Who is served and who is chosen, how the sum of latencies changes, and what `commit` is to be told.
        """
        self._followed = (config.copy(), held.copy())
        served, chosen = served.copy(), chosen.copy()
        edits, moved_s, looks, watched, reached = trajectory.change(
            self._tables, self._placed, self._followed, self._overhead_s, self._recorded, served, chosen,
            *self._edits, self._most_looks, self._spread,
        )  # fmt: skip
        if not looks:
            self._spread *= FORGETTING if edits == trajectory.GAVE_UP else 1.0
        elif watched:
            seen = looks / watched * len(self._recorded[0]) / reached
            self._spread += NEWEST_WEIGHT * (seen - self._spread)
        return None if edits == trajectory.GAVE_UP else (served, chosen, moved_s, edits)

    def commit(self, edits: int) -> None:
        """Makes the placement that was followed last the recorded one."""
        trajectory.commit(edits, *self._edits, self._recorded, self._placed, self._followed)
        self._placed = self._followed
