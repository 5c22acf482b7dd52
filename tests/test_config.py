"""Configuration: TOML files, settings checked against a dataclass, and what the environment says."""

import contextlib
import dataclasses
import math
import os
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxserve import config
from jaxserve.config import ServiceManager, checked, read_toml
from jaxserve.errors import ConfigError

# Files


def test_a_file_is_read(tmp_path):
    path = tmp_path / "serve.toml"
    path.write_text('port = 1\n[shares]\n"ü" = 2.5\n', "utf-8")
    assert read_toml(path) == {"port": 1, "shares": {"ü": 2.5}}
    assert read_toml(str(path)) == read_toml(path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"port = 1\nport = 2\n", "line 2: "),
        (b"\n\nport =\n", "line 3: Invalid value; write TOML, such as key = 1"),
        (b"port", "line 1: "),
        (b'a = 1\nb = "x', "line 2: "),
        (b"[[[x", "line 1: "),
        (b"a = 1\nb = '\xff'\n", "line 2: is not UTF-8; save it as UTF-8 text"),
        (b"\xff\xfea\x00", "line 1: is not UTF-8"),
        (b"a = " + b"9" * 5000, "line 1: .*digits"),
        (b"a = " + b"[" * 100_000, "is nested too deeply"),
        (b"\0", "line 1: "),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path, content, says):
    path = tmp_path / "serve.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=says) as raised:
        read_toml(path)
    assert str(raised.value).startswith(f"{path}")
    assert "\n" not in str(raised.value)


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_whatever_is_in_a_file_is_read_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_bytes(content)
    with contextlib.suppress(ConfigError):
        assert isinstance(read_toml(path), dict)


@pytest.mark.parametrize("name", ["none.toml", ".", "a\0b"])
def test_a_file_that_cannot_be_read(tmp_path, name):
    with pytest.raises(ConfigError, match=r"cannot be read \(.*\); give the path of a TOML file"):
        read_toml(tmp_path / name)


# Settings


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    whole: int = field(default=1, metadata={"at_least": 1, "at_most": 65535})
    number: float = field(default=1.0, metadata={"above": 0})
    forever: float = field(default=1.0, metadata={"at_least": 0, "infinite": True})
    any_number: float = 0.0
    any_whole: int = 0
    flag: bool = False
    text: str | None = field(default=None, metadata={"secret": True})
    level: str = field(default="info", metadata={"choices": ("info", "debug")})
    path: Path | None = None
    names: tuple[str, ...] = ()
    twice: int = field(default=0, metadata={"read": lambda value: 2 * value})


def test_values_become_what_their_fields_want():
    given = {"number": 2, "path": "a/b", "names": ["x", "y"], "twice": 3, "text": "t", "flag": True, "whole": 65535}
    values = checked(Settings, given)
    assert values == given | {"number": 2.0, "path": Path("a/b"), "names": ("x", "y"), "twice": 6}
    assert type(values["number"]) is float
    assert checked(Settings, {"forever": math.inf, "any_number": -1e300, "any_whole": -(10**400)})


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"whoel": 1}, "file: unknown key 'whoel'; did you mean 'whole'\\?"),
        ({"any-number": 1}, "unknown key 'any-number'; did you mean 'any_number'"),
        ({"Flag": True}, "unknown key 'Flag'; did you mean 'flag'"),
        ({"zzz": 1}, "unknown key 'zzz'; there are whole, number, "),
        ({"whole": "1"}, "file: whole is '1', but must be a whole number$"),
        ({"whole": 1.0}, "whole is 1.0, but must be a whole number"),
        ({"whole": True}, "whole is True, but must be a whole number"),
        ({"whole": 0}, "whole is 0, but must be a whole number of at least 1 and of at most 65535"),
        ({"whole": 10**400}, "whole is 1000.*, but must be a whole number of at least 1"),
        ({"number": 0}, "number is 0, but must be a finite number greater than 0"),
        ({"number": math.nan}, "number is nan, but must be a finite number greater than 0"),
        ({"number": math.inf}, "number is inf, but must be"),
        ({"number": 10**400}, "but must be a finite number greater than 0"),
        ({"number": False}, "number is False, but must be a number"),
        ({"forever": -math.inf}, "forever is -inf, but must be a number of at least 0"),
        ({"forever": math.nan}, "forever is nan, but must be a number of at least 0"),
        ({"any_number": math.inf}, "any_number is inf, but must be a finite number"),
        ({"flag": 1}, "flag is 1, but must be true or false"),
        ({"flag": "yes"}, "flag is 'yes', but must be true or false"),
        ({"text": 12345678}, "text is a int, but must be a text"),
        ({"level": "loud"}, "level is 'loud', but must be one of info, debug"),
        ({"level": 3}, "level is 3, but must be one of info, debug"),
        ({"level": ["info"]}, "level is .'info'., but must be one of info, debug"),
        ({"path": ""}, "path is '', but must be the path of a file"),
        ({"path": "a\0"}, "but must be the path of a file"),
        ({"path": 3}, "path is 3, but must be the path of a file"),
        ({"names": "x"}, "names is 'x', but must be an array, each element a text"),
        ({"names": ["x", 1]}, "but must be a text"),
        ({"names": {"x": 1}}, "but must be an array"),
    ],
)
def test_what_does_not_fit_is_named(given, says):
    with pytest.raises(ConfigError, match=says) as raised:
        checked(Settings, given, source="file")
    assert "12345678" not in str(raised.value)
    assert len(str(raised.value)) < 300


def test_a_field_may_be_called_otherwise():
    with pytest.raises(ConfigError, match=r"^--whole is 0, but must be"):
        checked(Settings, {"whole": 0}, named=lambda name: f"--{name}")


values = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.lists(st.text(), max_size=2)


@given(st.dictionaries(st.sampled_from([each.name for each in dataclasses.fields(Settings)]), values))
def test_whatever_is_given_is_taken_or_refused(given: Mapping[str, Any]) -> None:
    given.pop("twice", None)
    try:
        made = Settings(**checked(Settings, given))
    except ConfigError:
        return
    assert made.whole >= 1
    assert 0 < made.number < math.inf
    assert type(made.flag) is bool


# The environment


@pytest.mark.parametrize(
    ("environment", "manager"),
    [
        ({}, None),
        ({"NOTIFY_SOCKET": ""}, None),
        ({"NOTIFY_SOCKET": "vsock:2:1234"}, None),
        ({"NOTIFY_SOCKET": "/run/x"}, ServiceManager(socket="/run/x")),
        ({"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "3000000"}, ServiceManager(socket="@x", watchdog_s=3.0)),
        ({"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "0"}, ServiceManager(socket="@x")),
        ({"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "soon"}, ServiceManager(socket="@x")),
        ({"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}, ServiceManager(socket="@x")),
        (
            {"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": str(os.getpid())},
            ServiceManager(socket="@x", watchdog_s=1.0),
        ),
    ],
)
def test_the_service_manager(monkeypatch, environment, manager):
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert config.service_manager() == manager


def test_the_token_of_commands(monkeypatch):
    monkeypatch.delenv("JAXSERVE_TOKEN", raising=False)
    assert config.client_token() is None
    monkeypatch.setenv("JAXSERVE_TOKEN", "")
    assert config.client_token() is None
    monkeypatch.setenv("JAXSERVE_TOKEN", "x")
    assert config.client_token() == "x"
