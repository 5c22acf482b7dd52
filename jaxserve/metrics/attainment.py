"""SLO attainment over the last minutes: what was served in time, over all that ended but for what was cancelled."""

from collections.abc import Mapping
from types import MappingProxyType

_SLOT_S = 10.0
WINDOWS: Mapping[str, float] = MappingProxyType({"1m": 60.0, "5m": 300.0, "1h": 3600.0})
"""Seconds by name. A window ends now, and begins within ten seconds of where it should."""
_SLOTS = int(max(WINDOWS.values()) / _SLOT_S) + 1


class Attainment:
    """Counts of the last hour in slots of ten seconds."""

    __slots__ = ("_ended", "_in_time", "_slot")

    def __init__(self) -> None:
        self._slot = 0
        self._in_time = [0] * _SLOTS
        self._ended = [0] * _SLOTS

    def note(self, now_s: float, *, in_time: bool) -> None:
        """Counts a request that ended at `now_s`, which may be a little before what was counted last."""
        slot = int(now_s / _SLOT_S)
        if slot > self._slot:
            self._forget(slot)
        elif slot <= self._slot - _SLOTS:
            return  # in no window any more
        self._ended[slot % _SLOTS] += 1
        self._in_time[slot % _SLOTS] += in_time

    def over(self, window_s: float, now_s: float) -> float | None:
        """The share of the last `window_s` seconds; None where nothing ended."""
        last = int(now_s / _SLOT_S)
        if last > self._slot:
            self._forget(last)
        first = last - round(window_s / _SLOT_S)
        ended = _sum(self._ended, first, last)
        return _sum(self._in_time, first, last) / ended if ended else None

    def _forget(self, slot: int) -> None:
        """Empties the slots from the last one that was counted in to `slot`."""
        for passed in range(self._slot + 1, min(slot, self._slot + _SLOTS) + 1):
            self._in_time[passed % _SLOTS] = self._ended[passed % _SLOTS] = 0
        self._slot = slot


def _sum(counts: list[int], first: int, last: int) -> int:
    """Of the slots from `first` to `last`, which may lie round the end of the list."""
    first, last = first % _SLOTS, last % _SLOTS
    if first <= last:
        return sum(counts[first : last + 1])
    return sum(counts[first:]) + sum(counts[: last + 1])
