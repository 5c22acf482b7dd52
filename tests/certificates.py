"""Certificates for tests, of an authority of their own."""

import datetime
import functools
from pathlib import Path
from typing import Any

import trustme


@functools.cache
def authority() -> trustme.CA:
    """The one that tests trust."""
    return trustme.CA()


def write_authority(directory: Path) -> Path:
    """Its certificate, as a file."""
    path = directory / "authority.pem"
    authority().cert_pem.write_to_path(path)
    return path


def issue(directory: Path, name: str, *names: str, days: tuple[float, float] = (-1, 30), **options: Any) -> list[Path]:
    """A certificate, valid from and until so many days from now, and its key, as files `name.pem` and `name.key`."""
    now = datetime.datetime.now(datetime.UTC)
    before, after = (now + datetime.timedelta(days=each) for each in days)
    issued = authority().issue_cert(
        *(names or ("localhost", "127.0.0.1", "::1")), not_before=before, not_after=after, **options
    )
    certificate, key = directory / f"{name}.pem", directory / f"{name}.key"
    certificate.write_bytes(b"".join(each.bytes() for each in issued.cert_chain_pems))
    key.touch(mode=0o600)
    key.write_bytes(issued.private_key_pem.bytes())
    return [certificate, key]
