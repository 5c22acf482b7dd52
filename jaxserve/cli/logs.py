"""Logs of a server: one line on standard error for every event, as text for people or as JSON for collectors.

    2026-01-31T12:00:00.123Z INFO jaxserve.server ending the connection request_id=7 peer="a b"
    {"timestamp": "2026-01-31T12:00:00.123Z", "level": "INFO", "logger": "jaxserve.server", "message": ..., ...}

What an event is about travels in fields of its own, given as `extra=`. Much of what stands in a line comes from
callers, so whatever would end a line or move a terminal's cursor is escaped: nobody can write a line that looks like
another one. An event that comes again and again is told 10 times, and then once a second with how often it was left
out.
"""

import dataclasses
import json
import logging
import math
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TextIO

from pythonjsonlogger.json import JsonFormatter

from jaxserve.cli.show import say

FORMATS = ("text", "json")
LEVELS = ("debug", "info", "warning", "error")

REQUESTS = "jaxserve.requests"
"""The logger with a line for each request, where that is asked for; they are never left out."""

_AT_ONCE, _PER_SECOND = 10.0, 1.0
_LONGEST_TEMPLATE = 200  # characters
_REMEMBERED = 1024  # templates; those of this package are a few dozen, others may make up any number

# What every record has; what else is there was given as `extra`.
_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


def set_up_logging(
    format: str = "text",
    level: str = "info",
    *,
    stream: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> logging.Handler:
    """Logs to standard error from here on, in this process.

    This package's events are told from `level` on, those of others from warnings on, Python's own warnings among them.
    A handler of an earlier call is taken away.

    Args:
        format: one of `FORMATS`.
        level: the least that is told, of `LEVELS`.
        stream: where to write, in place of standard error.
        clock: seconds that never go back, for counting repetitions.
    """
    handler = _Handler(stream)
    handler.setFormatter(_Text() if format == "text" else _Json())
    handler.addFilter(RateLimit(clock=clock))
    root = logging.getLogger()
    for other in [each for each in root.handlers if isinstance(each, _Handler)]:
        root.removeHandler(other)
    root.addHandler(handler)
    root.setLevel(max(logging.WARNING, _number(level)))
    logging.getLogger("jaxserve").setLevel(_number(level))
    logging.captureWarnings(True)
    return handler


def announcer(format: str) -> Callable[[str], None]:
    """How a server tells what it does at the beginning and the end: `say`, or a line of the log where that is JSON."""
    return say if format == "text" else logging.getLogger("jaxserve.serve").info


def _number(level: str) -> int:
    return logging.getLevelNamesMapping()[level.upper()]


class _Handler(logging.StreamHandler[TextIO]):
    """Writes to what standard error is at the moment: a bar or a spinner may stand in its place for a while."""

    def __init__(self, stream: TextIO | None) -> None:
        logging.Handler.__init__(self)
        self._stream = stream

    @property
    def stream(self) -> TextIO:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Where the next line goes."""
        return self._stream or sys.stderr


class _Text(logging.Formatter):
    """`time level logger message key=value ...` in one line."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {name: value for name, value in vars(record).items() if name not in _OWN}
        if record.exc_info and record.exc_info[1] is not None:
            fields["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            fields["stack"] = record.stack_info
        pairs = "".join(f" {escaped(name)}={_shown(value)}" for name, value in fields.items())
        when = datetime.fromtimestamp(record.created, UTC)
        return f"{_timestamp(when)} {record.levelname} {record.name} {escaped(record.getMessage())}{pairs}"


class _Json(JsonFormatter):
    """One JSON object in one line."""

    def __init__(self) -> None:
        super().__init__(
            "%(levelname)s %(name)s %(message)s",
            rename_fields={"levelname": "level", "name": "logger", "exc_info": "exception", "stack_info": "stack"},
            reserved_attrs=sorted(_OWN),
            timestamp=True,
        )

    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        """The object as it is written: the time first, and no number that JSON lacks."""
        when: datetime = log_data.pop("timestamp")
        return {"timestamp": _timestamp(when), **{name: _finite(value) for name, value in log_data.items()}}


def _timestamp(when: datetime) -> str:
    return when.isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def _finite(value: object) -> object:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def escaped(text: str) -> str:
    """The text with whatever does not print as a character of its own line, in the way of a Python literal."""
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


def _shown(value: object) -> str:
    """A value behind `key=`: bare where it is one plain word, else quoted."""
    text = f"{value:.6g}" if type(value) is float else str(value)
    if text and text.isprintable() and not set(' "=\\') & set(text):
        return text
    return escaped(json.dumps(text, ensure_ascii=False))


@dataclasses.dataclass(slots=True)
class _Bucket:
    """What may still be told of one event."""

    tokens: float
    filled_s: float
    left_out: int = 0


class RateLimit(logging.Filter):
    """Leaves out what repeats: of each event 10 are told at once, and then one a second.

    The next one that is told has `left_out`, how many were not. What makes an event is its logger, its level and the
    template of its message, without what is filled in. Critical events and the lines of `REQUESTS` are always told.

    Args:
        clock: seconds that never go back.
    """

    def __init__(self, *, clock: Callable[[], float]) -> None:
        super().__init__()
        self._clock = clock
        self._buckets: dict[tuple[str, int, str], _Bucket] = {}
        self._lock = threading.Lock()  # a handler's filters are not under the handler's lock

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether this one is told."""
        if record.levelno >= logging.CRITICAL or record.name == REQUESTS:
            return True
        now_s = self._clock()
        event = (record.name, record.levelno, str(record.msg)[:_LONGEST_TEMPLATE])
        with self._lock:
            bucket = self._buckets.get(event)
            if bucket is None:
                if len(self._buckets) >= _REMEMBERED:
                    self._buckets.clear()
                bucket = self._buckets[event] = _Bucket(_AT_ONCE, now_s)
            bucket.tokens = min(_AT_ONCE, bucket.tokens + _PER_SECOND * (now_s - bucket.filled_s))
            bucket.filled_s = now_s
            if bucket.tokens < 1.0:
                bucket.left_out += 1
                return False
            bucket.tokens -= 1.0
            left_out, bucket.left_out = bucket.left_out, 0
        if left_out:
            record.left_out = left_out
        return True
