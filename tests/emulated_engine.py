"""An engine on emulated groups, each with a stage of a second and one of half a second, and somebody who calls it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np

from jaxserve.cluster import EmulatedCluster
from jaxserve.engine import Engine
from jaxserve.metrics import Timeline
from jaxserve.model import Model, TensorSpec
from jaxserve.plans import Group, Placement, Profile, Profiles
from jaxserve.simulator import StageTime, as_profiled

BATCH_SIZES, LENGTHS = (1, 2, 4), (2, 4)
STAGES_S = (1.0, 0.5)


def model(name: str = "m", **options: Any) -> Model:
    """Takes rows of one to four numbers."""
    return Model.from_function(
        name,
        lambda x: x,
        inputs={"x": TensorSpec(("batch", "length"), "float32")},
        batch_sizes=BATCH_SIZES,
        buckets={"length": LENGTHS},
        **options,
    )


@asynccontextmanager
async def serving(
    *models: Model,
    groups: int = 1,
    stage_time: StageTime = as_profiled,
    clock: Any = None,
    make: type[Engine] = Engine,
    **options: Any,
) -> AsyncIterator[tuple[Engine, EmulatedCluster]]:
    """Its groups all hold all models but those on the host; by default its clock is the loop's."""
    nothing = (0.0,) * len(STAGES_S)
    rows = tuple(
        Profile(
            intra_op=1,
            inter_op=len(STAGES_S),
            batch_size=batch_size,
            length=length,
            stage_latency_s=STAGES_S,
            stage_weight_bytes=nothing,
            stage_activation_bytes=nothing,
        )
        for batch_size in BATCH_SIZES
        for length in LENGTHS
    )
    names = tuple(each.name for each in models)
    placed = tuple(
        Group(inter_op=2, devices=(2 * index, 2 * index + 1), models=tuple(m.name for m in models if not m.on_host))
        for index in range(groups)
    )
    profiles = Profiles(device_kind="test", memory_bytes=0.0, models=dict.fromkeys(names, rows))
    cluster = EmulatedCluster(placed, profiles, stage_time=stage_time)
    clock = clock or asyncio.get_running_loop().time
    async with make(models, placement=Placement(groups=placed), cluster=cluster, clock=clock, **options) as engine:
        yield engine, cluster


class Caller:
    """Submits requests and keeps what became of them."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.results: list[Any] = []
        self.timelines: list[Timeline] = []

    def call(self, rows: int = 1, length: int = 2, *, name: str = "m", **options: Any) -> int:
        """Submits a request; returns its ticket."""
        index = len(self.results)
        self.results.append(None)
        self.timelines.append(Timeline())

        def settle(result: Any) -> None:
            assert self.results[index] is None, "settled twice"
            self.results[index] = result

        inputs = {"x": np.zeros((rows, length), np.float32)}
        options = {"deadline_s": None} | options
        return self._engine.submit(name, inputs, on_settled=settle, timeline=self.timelines[index], **options)
