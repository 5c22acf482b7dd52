"""What strangers may cost."""

import dataclasses

from jaxserve.errors import ConfigError


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of the servers of standard protocols.

    Attributes:
        max_body_bytes: the largest body or message that is read, compressed or not.
        max_buffered_bytes: what all bodies that are being read or answered may take together.
        max_header_bytes: the longest line of a request and the longest header.
        max_tensors: tensors in a request.
        max_json_depth: how deeply JSON may be nested.
        max_json_elements: elements of all arrays and objects of a JSON document together.
        max_connections: that are open at a time.
        max_connections_per_client: of one address.
        max_in_flight_per_client: unanswered requests of one token or, without tokens, of one address.
        head_timeout_s: seconds in which the head of a request must have arrived, and a TLS handshake be done.
        body_timeout_s: seconds in which a body must have arrived, plus one for every 64 KiB.
        write_timeout_s: seconds for which a client may take nothing of its answer.
        keepalive_timeout_s: seconds for which a connection may be idle between requests.

    Raises:
        ConfigError: one is not greater than 0.
    """

    max_body_bytes: int = 64 * 2**20
    max_buffered_bytes: int = 2**30
    max_header_bytes: int = 16 * 2**10
    max_tensors: int = 256
    max_json_depth: int = 64
    max_json_elements: int = 2**20
    max_connections: int = 4096
    max_connections_per_client: int = 4096
    max_in_flight_per_client: int = 1024
    head_timeout_s: float = 10.0
    body_timeout_s: float = 30.0
    write_timeout_s: float = 30.0
    keepalive_timeout_s: float = 75.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise ConfigError(f"{field.name} is {value}, but must be greater than 0")


SLOWEST_BYTES_PER_S = 64 * 2**10
"""A body may take a second longer for each so many bytes that have arrived."""
