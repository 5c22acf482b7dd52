"""`jaxserve token`, and `jaxserve status` of a server that wants to see one."""

import hashlib
import json
from pathlib import Path

import pytest

from jaxserve.cli import token
from jaxserve.cli.main import run
from jaxserve.errors import ConfigError
from jaxserve.server.access import Access, Identity
from jaxserve.server.tls import Tls, TlsFiles
from tests.certificates import issue, write_authority
from tests.client.test_sync_client import served

TOKEN = "search-0123456789"


def test_a_token_is_shown_once_and_its_entry_lets_it_in(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"
    path.touch(mode=0o600)
    secrets: list[str] = []
    for arguments in (["search", "--infer", "minilm", "--infer", "gpt-*"], ["ops", "--admin", "*"]):
        token.command.main(arguments, standalone_mode=False)
        printed = capsys.readouterr()
        with path.open("a") as file:
            file.write(printed.out)
        secrets.append(printed.err.split()[-1])
        assert secrets[-1] not in printed.out
    search, ops = (Access.from_file(path).identify(f"Bearer {secret}") for secret in secrets)
    assert (search.name, search.infer, search.admin) == ("search", ("minilm", "gpt-*"), ())
    assert (ops.name, ops.infer, ops.admin) == ("ops", ("*",), ("*",))


@pytest.mark.parametrize("arguments", [[""], ["a\nb"], ["x" * 129], ["x", "--infer", ""], ["x", "--admin", "\x1b"]])
def test_names_that_no_file_takes(arguments: list[str]) -> None:
    with pytest.raises(ConfigError, match="cannot be a name; give printable text"):
        token.command.main(arguments, standalone_mode=False)


def test_status_shows_a_token(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    access = Access([Identity(name="search", infer=("*",), digest=hashlib.sha256(TOKEN.encode()).digest())])
    monkeypatch.delenv("JAXSERVE_TOKEN", raising=False)
    with served(access=access) as (address, _):
        assert run(["status", address, "--json"]) == 1
        assert "this server wants a token" in capsys.readouterr().err
        assert run(["status", address, "--json", "--token", TOKEN]) == 0
        monkeypatch.setenv("JAXSERVE_TOKEN", TOKEN)
        assert run(["status", address, "--json"]) == 0
        first, second = capsys.readouterr().out.splitlines()
        assert json.loads(first) == json.loads(second) == {"in_flight": 0, "submitted": 0}
        assert run(["status", address, "--token", "two words"]) == 2


def test_status_over_tls(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    ca = write_authority(tmp_path)
    certificate, key = issue(tmp_path, "server")
    with served(tls=Tls(TlsFiles(certificate=certificate, key=key)).context()) as (address, _):
        assert run(["status", address, "--json", "--tls-ca", str(ca)]) == 0
        assert json.loads(capsys.readouterr().out)["submitted"] == 0
        assert run(["status", address, "--tls"]) == 1
        assert "a certificate that is not to be trusted" in capsys.readouterr().err
        assert run(["status", address]) == 1
        assert "does that port speak TLS" in capsys.readouterr().err
        assert run(["status", address, "--tls-ca", str(tmp_path / "none.pem")]) == 2
        assert "none.pem cannot be read" in capsys.readouterr().err
