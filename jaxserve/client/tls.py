"""TLS as a client speaks it."""

import ssl

from jaxserve.client.address import Address
from jaxserve.errors import ConfigError
from jaxserve.protocols.tls import client_context


def checked_context(tls: ssl.SSLContext | bool, address: Address) -> ssl.SSLContext | None:
    """What a caller has given as `tls`: its own context, one that trusts whom the system trusts, or none.

    Raises:
        ConfigError: it is something else, or the address is a Unix socket.
    """
    if tls is False or tls is None:
        return None
    if address.path:
        raise ConfigError(f"{address} is a Unix socket, where there is no TLS; leave `tls` out, or give host:port")
    if tls is True:
        return client_context()
    if not isinstance(tls, ssl.SSLContext):
        raise ConfigError(f"tls is a {type(tls).__name__}, but must be an ssl.SSLContext, True or False")
    return tls


def refused_by_tls(address: Address, error: ssl.SSLError) -> str:
    """What to say of a handshake that failed."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"{address} shows a certificate that is not to be trusted ({error.verify_message}); call it by a name in "
            f"its certificate, and trust its authority: tls=ssl.create_default_context(cafile=...)"
        )
    return f"cannot speak TLS with {address} ({error.reason or error}); does that port speak TLS?"
