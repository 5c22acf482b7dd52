"""Addresses: what is one, and what is said of what is not."""

import pytest

from jaxserve.client.address import parse_address
from jaxserve.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "host", "port", "path"),
    [
        ("127.0.0.1:8500", "127.0.0.1", 8500, ""),
        ("localhost:1", "localhost", 1, ""),
        ("gpu-7.example.org:65535", "gpu-7.example.org", 65535, ""),
        ("[::1]:8500", "::1", 8500, ""),
        ("unix:/run/jaxserve.sock", "", 0, "/run/jaxserve.sock"),
        ("unix:relative", "", 0, "relative"),
    ],
)
def test_addresses(text, host, port, path):
    address = parse_address(text)
    assert (address.host, address.port, address.path) == (host, port, path)
    assert str(address) == text


@pytest.mark.parametrize(
    "text", ["", "localhost", "localhost:", ":8500", "localhost:http", "localhost:0", "h:65536", "unix:", "::1:8500"]
)
def test_what_is_no_address(text):
    with pytest.raises(ConfigError, match=r"is not the address of a native server; write host:port"):
        parse_address(text)


@pytest.mark.parametrize("text", ["http://localhost:8500", "grpc://h:1", "host/path:80"])
def test_urls_are_no_addresses(text):
    with pytest.raises(ConfigError, match=r"for example 127\.0\.0\.1:8500"):
        parse_address(text)
