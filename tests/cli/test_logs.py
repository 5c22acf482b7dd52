"""The log: one line for every event, whatever is in it, and not the same one again and again."""

import io
import json
import logging
import re
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxserve.cli.logs import FORMATS, REQUESTS, announcer, set_up_logging
from jaxserve.cli.show import say

LOG = logging.getLogger("jaxserve.test")


class Clock:
    """One that a test moves."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Log:
    """What is logged while it is entered."""

    def __init__(self, format: str, level: str = "debug") -> None:
        self.stream = io.StringIO()
        self.clock = Clock()
        self.format = format
        self.handler = set_up_logging(format, level, stream=self.stream, clock=self.clock)

    @property
    def lines(self) -> list[str]:
        text = self.stream.getvalue()
        assert not text or text.endswith("\n")
        return text.split("\n")[:-1]

    def objects(self) -> list[dict[str, Any]]:
        def none_such(name: str) -> None:
            raise AssertionError(f"{name} is not JSON")

        return [json.loads(line, parse_constant=none_such) for line in self.lines]


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("jaxserve")
    before = root.level, ours.level, list(root.handlers)
    yield
    logging.captureWarnings(False)
    root.setLevel(before[0])
    ours.setLevel(before[1])
    for handler in set(root.handlers) - set(before[2]):
        root.removeHandler(handler)


def test_a_line_of_text():
    log = Log("text")
    LOG.info(
        "ending %s", "it", extra={"request_id": 7, "peer": "a b", "empty": "", "seconds": 0.12345678, "why": 'x="'}
    )
    [line] = log.lines
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO jaxserve\.test ending it "
        r'request_id=7 peer="a b" empty="" seconds=0\.123457 why="x=\\""',
        line,
    )


def test_a_line_of_json():
    log = Log("json")
    LOG.warning("ending %s", "it\n", extra={"request_id": 7, "peer": "a b", "ratio": float("inf"), "odd": {1}})
    [found] = log.objects()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", found.pop("timestamp"))
    assert found == {
        "level": "WARNING",
        "logger": "jaxserve.test",
        "message": "ending it\n",
        "request_id": 7,
        "peer": "a b",
        "ratio": "inf",
        "odd": "{1}",
    }


@pytest.mark.parametrize("format", FORMATS)
def test_an_exception_is_one_line(format):
    log = Log(format)
    try:
        raise ValueError("bad\nvalue")
    except ValueError:
        LOG.exception("it failed", stack_info=True)
    [line] = log.lines
    assert "Traceback (most recent call last):\\n" in line
    assert "ValueError: bad\\nvalue" in line
    if format == "json":
        [found] = log.objects()
        assert found["message"] == "it failed"
        assert found["exception"].endswith("ValueError: bad\nvalue")
        assert found["stack"].startswith("Stack (most recent call last):")
    else:
        assert ' exception="Traceback' in line
        assert ' stack="Stack' in line


@settings(deadline=None)
@pytest.mark.parametrize("format", FORMATS)
@given(text=st.text(max_size=30), value=st.text(max_size=30))
def test_nobody_forges_a_line(format, text, value):
    log = Log(format)
    LOG.info("%s", text, extra={"model": value})
    LOG.info(f"{text}%%", extra={"model": value})
    lines = log.stream.getvalue().splitlines()  # at every character that ends a line somewhere
    assert len(lines) == 2
    assert all(line.isprintable() for line in lines)
    if format == "json":
        first, _ = log.objects()
        assert (first["message"], first["model"]) == (text, value)


def test_what_is_not_ours_is_told_from_warnings_on():
    log = Log("json", "info")
    for name in ("jaxserve.server", "jaxserve", "aiohttp.access", "grpc"):
        for level in (logging.DEBUG, logging.INFO, logging.WARNING):
            logging.getLogger(name).log(level, "x")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old\nthing", DeprecationWarning, stacklevel=1)
    assert [(each["logger"], each["level"]) for each in log.objects()] == [
        ("jaxserve.server", "INFO"),
        ("jaxserve.server", "WARNING"),
        ("jaxserve", "INFO"),
        ("jaxserve", "WARNING"),
        ("aiohttp.access", "WARNING"),
        ("grpc", "WARNING"),
        ("py.warnings", "WARNING"),
    ]
    log = Log("text", "error")
    logging.getLogger("jaxserve").warning("x")
    logging.getLogger("grpc").warning("x")
    logging.getLogger("grpc").error("y")
    assert [line.split(" ", 1)[1] for line in log.lines] == ["ERROR grpc y"]


@pytest.mark.parametrize("format", FORMATS)
def test_what_repeats_is_left_out_and_counted(format):
    log = Log(format)
    for number in range(100):
        LOG.info("refused %d", number)
        LOG.info("another")
    assert len(log.lines) == 20
    log.clock.now_s = 0.9
    LOG.info("refused %d", 100)
    assert len(log.lines) == 20
    log.clock.now_s = 2.0
    for number in range(101, 110):
        LOG.info("refused %d", number)
    told = log.lines[20:]
    assert len(told) == 2
    assert ("left_out=91" if format == "text" else '"left_out": 91') in told[0]
    assert "left_out" not in told[1]
    log.clock.now_s = 1000.0
    for _ in range(100):
        LOG.info("refused %d", 0)
    told = log.lines[22:]
    assert len(told) == 10
    assert ("left_out=7" if format == "text" else '"left_out": 7') in told[0]


def test_levels_loggers_and_templates_are_counted_apart():
    log = Log("text")
    for _ in range(20):
        LOG.info("x")
        LOG.warning("x")
        logging.getLogger("jaxserve.other").info("x")
        LOG.critical("x")
        logging.getLogger(REQUESTS).info("served", extra={"model": "m"})
    assert len(log.lines) == 3 * 10 + 2 * 20


def test_the_templates_that_are_remembered_are_bounded():
    log = Log("text")
    for number in range(5000):
        LOG.info(f"number {number}")
    [limit] = log.handler.filters
    assert len(limit._buckets) <= 1024  # pyright: ignore[reportAttributeAccessIssue]
    assert len(log.lines) == 5000
    LOG.info("x" * 10_000)
    assert max(len(template) for *_, template in limit._buckets) <= 200  # pyright: ignore[reportAttributeAccessIssue]


def test_setting_up_again_replaces_what_was(capsys):
    before = len(logging.getLogger().handlers)
    Log("text")
    set_up_logging("text")
    LOG.info("once")
    assert len(logging.getLogger().handlers) == before + 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.endswith("INFO jaxserve.test once")


def test_what_is_said_stays_as_it_is(capsys):
    set_up_logging("json")
    say("loaded in 1.0 s")
    announcer("text")("on 127.0.0.1:8500")
    announcer("json")("serving minilm")
    LOG.info("x")
    first, second, third, fourth = capsys.readouterr().err.splitlines()
    assert (first, second) == ("loaded in 1.0 s", "on 127.0.0.1:8500")
    assert json.loads(third)["message"] == "serving minilm"
    assert json.loads(fourth)["message"] == "x"


def test_a_stream_that_takes_the_place_of_standard_error_gets_the_lines(monkeypatch):
    set_up_logging("text")
    other = io.StringIO()
    monkeypatch.setattr(sys, "stderr", other)
    LOG.info("x")
    assert other.getvalue().endswith("INFO jaxserve.test x\n")
