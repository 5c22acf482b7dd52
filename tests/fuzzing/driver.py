"""Sends inputs in batches, many at a time, and looks at the server between them.

After each batch a plain request on a new connection must be answered. Now and then, and at the end, the server must
come to rest: no request inside, and no connection, task or descriptor more than at the start; and what it has logged of
itself is a finding.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from tests.fuzzing.reports import Report
from tests.fuzzing.subject import Hung, Subject

BATCH = 256
AT_ONCE = 48
REST_EVERY = 20
"""Batches between two looks at whether the server comes to rest."""


async def drive(
    subject: Subject,
    report: Report,
    attempt: Callable[[int], Awaitable[None]],
    indices: Sequence[int],
    *,
    between: Callable[[], Awaitable[None]] | None = None,
    most_growth_bytes: int = 32 * 2**20,
) -> Report:
    """Has every input of `indices` attempted; what was found is added to the report.

    Args:
        subject: the server.
        report: of the fuzzer.
        attempt: sends the input of a number, and adds to the report what is wrong with what comes back.
        indices: the numbers.
        between: is done after every batch as well, and raises `Hung` where others would not be served now.
        most_growth_bytes: by which the resident set may grow over the second half, beside 100 bytes for each input.
    """
    slots = asyncio.Semaphore(AT_ONCE)

    async def limited(index: int) -> None:
        async with slots:
            await attempt(index)

    await _rest(subject, report)
    noted = max(1, len(indices) // BATCH // 10)
    for number, start in enumerate(range(0, len(indices), BATCH)):
        batch = indices[start : start + BATCH]
        try:
            async with asyncio.TaskGroup() as tasks:
                for index in batch:
                    tasks.create_task(limited(index))
            report.inputs += len(batch)
            report.took(await subject.canary(), batch[-1])
            if between is not None:
                await between()
            if number % REST_EVERY == REST_EVERY - 1 or number % noted == 0:
                await _rest(subject, report, note=number % noted == 0)
        except (Hung, ExceptionGroup) as error:
            report.add("the server hangs", repr(error), index=batch[0], input=b"")
            if not isinstance(error, Hung) and error.split(OSError)[1] is not None:
                raise  # that is a fault of the fuzzer
            return report.end()
    await _rest(subject, report)
    report.check_memory(most_bytes=most_growth_bytes, most_bytes_per_input=100)
    return report.end()


async def _rest(subject: Subject, report: Report, *, note: bool = True) -> None:
    state = await subject.settle()
    if note:
        report.memory.append((report.inputs, state["resident_bytes"], state["blocks"]))
    for text in state["complaints"]:
        first, _, trace = text.partition("\n")
        last = trace.strip().splitlines()[-1] if trace.strip() else ""
        report.add(f"the server logged: {first[:120]} {last[:200]}", text, index=-1, input=b"")
