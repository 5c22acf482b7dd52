"""The settings of `jaxserve serve`: flags, the file, what holds of them, and what is wrong with them."""

import dataclasses
import inspect
import math
import re
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from jaxserve.cli.options import flag_of, serve_options, settle
from jaxserve.cli.settings import ServeSettings
from jaxserve.engine import Engine
from jaxserve.errors import ConfigError
from jaxserve.server.limits import Limits

SAMPLE = Path(__file__).parents[2] / "docs" / "serve.toml"
FIELDS = {field.name: field for field in dataclasses.fields(ServeSettings)}
MODELS = {"models": "m:x"}


def settings_of(*arguments: str) -> tuple[ServeSettings, bool]:
    """What a command gets that is called so."""
    got: list[tuple[ServeSettings, bool]] = []

    @click.command("serve")
    @serve_options
    def command(settings: ServeSettings, check: bool) -> None:
        got.append((settings, check))

    command.main(list(arguments), standalone_mode=False)
    return got[0]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "serve.toml"


# What holds


def test_defaults_are_those_of_the_engine_and_the_servers():
    settings, check = settings_of("m:x")
    assert settings == ServeSettings(models="m:x") == settle(None, MODELS)
    assert check is False
    assert settings.limits() == Limits()
    parameters = inspect.signature(Engine).parameters
    assert settings.engine_options() == {name: parameters[name].default for name in settings.engine_options()}
    assert (settings.port, settings.http_port, settings.grpc_port) == (8500, 8501, 8502)


def test_a_flag_goes_before_the_file_and_the_file_before_the_default(path):
    path.write_text('models = "file:models"\nhttp_port = 1\ngrace_s = 5\nmax_tensors = 7\ninsecure = true\n')
    settings, _ = settings_of("--config", str(path), "--grace-s", "30.0", "--max-tensors=9", "--no-insecure")
    assert settings == ServeSettings(models="file:models", http_port=1, grace_s=30.0, max_tensors=9)
    assert settings_of("flag:models", "--config", str(path))[0].models == "flag:models"
    assert settings_of("--config", str(path), "--check")[1] is True
    assert settle(path, {}).insecure is True


@pytest.mark.parametrize(
    ("file", "arguments", "ports"),
    [
        ("", ["--port", "0"], (0, 0, 0)),
        ("port = 0", [], (0, 0, 0)),
        ("port = 0", ["--port", "8500"], (8500, 8501, 8502)),
        ("port = 0\nhttp_port = 7", [], (0, 7, 0)),
        ("http_port = 7", ["--port=0"], (0, 7, 0)),
        ("", ["--port=0", "--grpc-port=off"], (0, 0, None)),
        ("grpc_port = 'off'\nport = false", [], (None, 8501, None)),
        ("http_port = '9'", ["--grpc-port=10"], (8500, 9, 10)),
        ("port = 9000", [], (9000, 8501, 8502)),
    ],
)
def test_ports(path, file, arguments, ports):
    path.write_text(file)
    settings, _ = settings_of("m:x", "--config", str(path), *arguments)
    assert (settings.port, settings.http_port, settings.grpc_port) == ports


def test_paths_in_the_file_are_relative_to_it(path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    path.write_text('tokens = "tokens.toml"\nunix = "/run/x"\nplacement = "~/p.json"\n')
    settings = settle(path, MODELS | {"admin_unix": Path("here")})
    assert settings.tokens == path.parent / "tokens.toml"
    assert (settings.unix, settings.placement) == (Path("/run/x"), Path("/home/somebody/p.json"))
    assert settings.admin_unix == Path("here")


@pytest.mark.parametrize(
    ("given", "shares"),
    [
        ("shares = 'equal'", {}),
        ("shares = 'a=3,b=1'", {"a": 3.0, "b": 1.0}),
        ("[shares]\na = 3\n'ü b' = 0.5", {"a": 3.0, "ü b": 0.5}),
    ],
)
def test_shares(path, given, shares):
    path.write_text(given)
    assert settle(path, MODELS).shares == shares
    assert settings_of("m:x", "--config", str(path), "--shares", "c=2")[0].shares == {"c": 2.0}


def test_what_may_be_infinite():
    assert settings_of("m:x", "--stuck-after-s", "inf")[0].stuck_after_s == math.inf


# What is wrong


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("htp_port = 1", r"serve\.toml: unknown key 'htp_port'; did you mean 'http_port'\?$"),
        ("http-port = 1", "unknown key 'http-port'; did you mean 'http_port'"),
        ("[limits]\nmax_tensors = 1", "unknown key 'limits'; did you mean|unknown key 'limits'; there are models"),
        (
            "http_port = 'x'",
            r"serve\.toml: http_port is 'x', but must be a port from 1 to 65535, 0 for any that is free, ",
        ),
        ("http_port = 65536", "http_port is 65536, but must be a port"),
        ("http_port = -1", "http_port is -1, but must be a port"),
        ("http_port = true", "http_port is True, but must be a port"),
        ("http_port = 1.0", "http_port is 1.0, but must be a port"),
        ("http_port = 8500", "port and http_port are both 8500; give each protocol a port of its own"),
        ("grpc_port = 8501", "http_port and grpc_port are both 8501"),
        ("port = 'off'\nhttp_port = 'off'\ngrpc_port = 'off'", "are all off, so nobody could call; give one a number"),
        ("grace_s = '1'", "grace_s is '1', but must be a number"),
        ("grace_s = -1", "grace_s is -1, but must be a finite number of at least 0"),
        ("ready_within_s = 0", "ready_within_s is 0, but must be a finite number greater than 0"),
        ("max_queue = 0", "max_queue is 0, but must be a whole number of at least 1"),
        ("max_tensors = 1.5", "max_tensors is 1.5, but must be a whole number"),
        ("body_timeout_s = 0", "body_timeout_s is 0, but must be a finite number greater than 0"),
        ("dispatch = 'best'", "dispatch is 'best', but must be one of alpaserve, earliest-finish"),
        ("log_format = 'xml'", "log_format is 'xml', but must be one of text, json"),
        ("log_level = 'loud'", "log_level is 'loud', but must be one of debug, info, warning, error"),
        ("log_requests = 1", "log_requests is 1, but must be true or false"),
        ("shares = 'a'", r"serve\.toml: shares is 'a', but must be `equal`, or a weight for each tenant"),
        ("shares = { a = 'x' }", "but must be `equal`, or a weight"),
        ("shares = { a = true }", "but must be `equal`, or a weight"),
        ("shares = 3", "shares is 3, but must be `equal`, or a weight"),
        (f"shares = {{ a = 1{'0' * 400} }}", "but must be `equal`, or a weight"),
        ("placement = 'a'\nplan = 'b'", "placement and plan are both given"),
        ("tls_certificate = 'a'", "tls_certificate is given, but tls_key is not; TLS needs both"),
        ("tls_key = 'a'", "tls_key is given, but tls_certificate is not"),
        ("tls_client_ca = 'a'", "tls_client_ca is given, but clients show certificates over TLS only"),
        ("unix = '/x'\nadmin_unix = '/x'", "unix and admin_unix are both /x"),
        ("models = ''", "there is nothing to serve; give MODULE:ATTRIBUTE, or models = "),
        ("models = ['a:b']", r"models is \['a:b'\], but must be a text"),
        ("port =", r"serve\.toml, line 1: "),
    ],
)
def test_what_the_file_may_not_say(path, file, says):
    path.write_text(file if "models" in file else f"models = 'm:x'\n{file}" if "line 1" not in says else file)
    with pytest.raises(ConfigError, match=says) as raised:
        settle(path, {})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "there is nothing to serve"),
        (["m:x", "--http-port", "x"], "^--http-port is 'x', but must be a port from 1 to 65535"),
        (["m:x", "--port", "99999999"], "^--port is '99999999', but must be a port"),
        (["m:x", "--grace-s", "-1"], "^--grace-s is -1.0, but must be a finite number of at least 0"),
        (["m:x", "--grace-s", "nan"], "^--grace-s is nan, but must be a finite number"),
        (["m:x", "--max-queue=0"], "^--max-queue is 0, but must be a whole number of at least 1"),
        (["m:x", "--shares", "a=1,a=2"], "^--shares is 'a=1,a=2', but must be `equal`, or a weight for each tenant"),
        (["m:x", "--log-level", "loud"], "^--log-level is 'loud', but must be one of debug, "),
        (["m:x", "--config", "/no/such.toml"], r"^/no/such\.toml: cannot be read"),
    ],
)
def test_what_flags_may_not_say(arguments, says):
    with pytest.raises(ConfigError, match=says):
        settings_of(*arguments)


# Flags


def test_every_setting_is_a_flag_with_help():
    @click.command("serve", context_settings={"max_content_width": 1000})
    @serve_options
    def command(settings: ServeSettings, check: bool) -> None: ...

    shown = CliRunner().invoke(command, ["--help"]).output
    text = re.sub(r"\s+", " ", shown)
    for name, field in FIELDS.items():
        assert flag_of(name) in shown, name
        if name != "models":
            assert field.metadata["help"] in text, name
    assert "--insecure / --no-insecure" in text
    assert "[default: 8501]" in text


def test_every_limit_is_a_setting():
    assert {field.name for field in dataclasses.fields(Limits)} <= FIELDS.keys()
    settings = ServeSettings(models="m:x", max_tensors=3, head_timeout_s=0.5)
    assert settings.limits() == Limits(max_tensors=3, head_timeout_s=0.5)


# The sample


def test_the_sample_has_every_key_with_its_default(tmp_path):
    commented = SAMPLE.read_text("utf-8")
    assert tomllib.loads(commented) == {}
    keys = re.findall(r"^# (\w+) = ", commented, re.MULTILINE)
    assert sorted(keys) == sorted(FIELDS)
    path = tmp_path / "serve.toml"
    for left_out in ("plan", "placement"):  # one of these at a time
        lines = [line[2:] for line in commented.splitlines() if re.match(r"# \w+ = ", line)]
        path.write_text("\n".join(line for line in lines if not line.startswith(f"{left_out} = ")), "utf-8")
        settings = settle(path, {})
        given: dict[str, Any] = tomllib.loads(path.read_text("utf-8"))
        for name, value in given.items():
            default = FIELDS[name].default
            if default not in (None, ""):
                assert getattr(settings, name) == default == value, name
            else:
                assert getattr(settings, name) is not None
