"""Where a server may listen: anybody may come in only from the machine itself, unless somebody has said otherwise."""

import ipaddress
import socket
from collections.abc import Iterable

from jaxserve.errors import ConfigError
from jaxserve.server.access import Access


def check_binding(
    hosts: Iterable[str], access: Access, *, tls: bool = False, mutual_tls: bool = False, insecure: bool = False
) -> tuple[str, ...]:
    """Checks that who can reach the server must show who it is.

    Args:
        hosts: addresses and names to listen on; `unix:/path` and what begins with a slash are Unix sockets.
        access: of the server.
        tls: whether what is sent is encrypted.
        mutual_tls: whether clients must show a certificate.
        insecure: whether somebody has said that anybody may come in.

    Returns:
        Warnings, each in one line.

    Raises:
        ConfigError: other machines can reach it, and anybody may come in; or a name that cannot be resolved.
    """
    reachable = [host for host in dict.fromkeys(hosts) if not _is_local(host)]
    if not reachable:
        return ()
    where = " and ".join(host or "every address" for host in reachable)
    if access.is_open and not mutual_tls:
        if not insecure:
            raise ConfigError(
                f"other machines can reach {where}, and anybody there could use every model; give --tokens FILE, or "
                f"--tls-client-ca FILE with a certificate, listen on 127.0.0.1, or say --insecure"
            )
        return (f"anybody who can reach {where} may use every model: there are no tokens, and --insecure was given",)
    if not access.is_open and not tls:
        return (f"tokens travel to {where} in the clear, for everybody on the way to read; give --tls-certificate",)
    return ()


def _is_local(host: str) -> bool:
    if host.startswith(("unix:", "/")):
        return True
    try:
        found = socket.getaddrinfo(host or None, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        raise ConfigError(
            f"there is no host {host!r} to listen on ({error}); choose another --host, such as 127.0.0.1"
        ) from error
    return all(_is_loopback(str(address[0])) for *_, address in found)


def _is_loopback(address: str) -> bool:
    ip = ipaddress.ip_address(address)
    mapped = getattr(ip, "ipv4_mapped", None)
    return (mapped or ip).is_loopback
