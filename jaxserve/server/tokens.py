"""The tokens file: who may come in, by which token, and what for.

[[tokens]]
name = "search"                  # whose it is: the tenant of its requests
sha256 = "9f86d081884c7d65..."   # of the token; or `token`, the token itself
infer = ["minilm", "gpt-*"]      # models that it may use
admin = ["gpt-*"]                # models that it may load and unload; none unless given
observe = false                  # whether it may see metrics and the status; true unless given
"""

import dataclasses
import hashlib
import os
from typing import Any

from jaxserve.config import checked, read_toml
from jaxserve.errors import ConfigError
from jaxserve.protocols.bearer import SHORTEST_TOKEN, check_token
from jaxserve.request import LONGEST_TENANT
from jaxserve.server.identity import Identity


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """One `[[tokens]]` of the file; either `token` or `sha256` is there."""

    name: str
    infer: tuple[str, ...]
    token: str | None = dataclasses.field(default=None, metadata={"secret": True})
    sha256: str | None = None
    admin: tuple[str, ...] = ()
    observe: bool = True


def read_tokens(path: str | os.PathLike[str]) -> tuple[Identity, ...]:
    """The callers that a tokens file names.

    Raises:
        ConfigError: it cannot be read, others may read it, or what it holds is wrong.
    """
    content = read_toml(path, private=True)
    tables = content.get("tokens", [])
    if (
        content.keys() - {"tokens"}
        or not isinstance(tables, list)
        or not all(isinstance(each, dict) for each in tables)
    ):
        raise ConfigError(f"{path}: must hold nothing but tables [[tokens]]; begin each token with that line")
    if not tables:
        raise ConfigError(f"{path}: holds no token, so nobody could come in; add a table [[tokens]]")
    identities: dict[str, Identity] = {}
    by_digest: dict[bytes, Identity] = {}
    for number, table in enumerate(tables, start=1):
        identity = _identity(table, f"{path}: token {number}")
        if identity.name in identities:
            raise ConfigError(f"{path}: there are two tokens {identity.name!r}; give each a name of its own")
        if (other := by_digest.get(identity.digest)) is not None:
            raise ConfigError(
                f"{path}: {other.name!r} and {identity.name!r} have the same token; make a new one for either"
            )
        identities[identity.name] = by_digest[identity.digest] = identity
    return tuple(identities.values())


def _identity(table: dict[str, Any], where: str) -> Identity:
    values = checked(_Entry, table, source=where)
    for name, example in (("name", '"search"'), ("infer", '["minilm", "gpt-*"]')):
        if name not in values:
            raise ConfigError(f"{where}: has no {name!r}; add one, such as {name} = {example}")
    entry = _Entry(**values)
    if not 0 < len(entry.name) <= LONGEST_TENANT or not entry.name.isprintable():
        raise ConfigError(f"{where}: its name must be printable text of 1 to {LONGEST_TENANT} characters")
    where = f"{where} ({entry.name})"
    for right, patterns in (("infer", entry.infer), ("admin", entry.admin)):
        if "" in patterns:
            raise ConfigError(f'{where}: an element of {right!r} is empty; name a model, or write "*" for all')
    return Identity(
        name=entry.name, infer=entry.infer, admin=entry.admin, observe=entry.observe, digest=_digest(entry, where)
    )


def _digest(entry: _Entry, where: str) -> bytes:
    if (entry.token is None) == (entry.sha256 is None):
        given = "neither" if entry.token is None else "both"
        raise ConfigError(
            f"{where}: has {given} of 'token' and 'sha256'; give one, the token or the SHA-256 of it in hex"
        )
    if entry.token is not None:
        try:
            return hashlib.sha256(check_token(entry.token, shortest=SHORTEST_TOKEN).encode()).digest()
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
    assert entry.sha256 is not None
    try:
        digest = bytes.fromhex(entry.sha256)
    except ValueError:
        digest = b""
    if len(digest) != hashlib.sha256().digest_size:
        raise ConfigError(
            f"{where}: 'sha256' must be 64 hexadecimal digits, as `printf %s TOKEN | sha256sum` prints them"
        )
    return digest
