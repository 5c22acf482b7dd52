"""Where a server is: `host:port`, `[ipv6]:port` or `unix:/path`."""

import dataclasses
import re

from jaxserve.errors import ConfigError

_TCP = re.compile(r"(?:\[(?P<ipv6>[^\[\]]+)\]|(?P<host>[^\s:/\[\]]+)):(?P<port>\d{1,5})")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """A TCP address or, where `path` is set, a Unix socket."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """The address that `text` names.

    Raises:
        ConfigError: it names none.
    """
    if text.startswith("unix:") and len(text) > len("unix:"):
        return Address(path=text.removeprefix("unix:"))
    match = _TCP.fullmatch(text)
    if match is None or not 0 < int(match["port"]) < 2**16:
        raise ConfigError(
            f"{text!r} is not the address of a native server; write host:port, [ipv6]:port or unix:/path, "
            f"for example 127.0.0.1:8500"
        )
    return Address(host=match["ipv6"] or match["host"], port=int(match["port"]))
