"""Who may come in: everybody, or those who show one of the tokens of a file.

A server without tokens is open: everybody is `ANYBODY`. With a tokens file every caller shows a token, and is the
`Identity` that the file gives to it. Tokens are kept as SHA-256 digests, so that neither the file nor the memory of the
server need hold one. A caller's digest is compared with all of them, each in constant time: how long a refusal takes
tells nothing. A plain hash is enough, for tokens are long and random, as passwords are not.
"""

import hashlib
import hmac
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

from jaxserve.errors import Unauthenticated
from jaxserve.protocols.bearer import token_in
from jaxserve.server.identity import ANYBODY, OPERATOR, Identity
from jaxserve.server.tokens import read_tokens

__all__ = ["ANYBODY", "OPERATOR", "Access", "Identity", "Memory", "read_tokens"]


class Access:
    """Tells callers apart by their tokens.

    Args:
        identities: one for each token, with its digest; none for an open server.
        everybody: who every caller of an open server is.
        path: the file that they come from, to be read again by `reload`.
    """

    def __init__(
        self, identities: Sequence[Identity] = (), *, everybody: Identity = ANYBODY, path: Path | None = None
    ) -> None:
        self._identities = tuple(identities)
        self._everybody = everybody
        self._path = path
        self._watchers: list[Callable[[], None]] = []
        self.version = 0
        """Grows by every `reload`: what was remembered before does not hold any more."""

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Self:
        """The callers that a tokens file names.

        Raises:
            ConfigError: it cannot be read, others may read it, or what it holds is wrong.
        """
        return cls(read_tokens(path), path=Path(path))

    @property
    def is_open(self) -> bool:
        """Whether nobody needs a token."""
        return not self._identities

    def identify(self, authorization: str | None) -> Identity:
        """The caller whose header `Authorization` this is.

        Raises:
            Unauthenticated: a token is needed, and there is none or one that is not known.
        """
        if not self._identities:
            return self._everybody
        return self.identify_token(token_in(authorization))

    def identify_token(self, token: str) -> Identity:
        """The caller that shows this token; empty for none.

        Raises:
            Unauthenticated: a token is needed, and there is none or one that is not known.
        """
        if not self._identities:
            return self._everybody
        if not token:
            raise Unauthenticated("this server wants a token; ask who runs it for one, and send it")
        found = self._with_digest(hashlib.sha256(token.encode(errors="surrogatepass")).digest())
        if found is None:
            raise Unauthenticated("this server does not know the token; ask who runs it for one")
        return found

    def current(self, identity: Identity) -> Identity | None:
        """What has become of a caller that came in before a `reload`; None where its token is not known any more."""
        return self._with_digest(identity.digest) if self._identities else self._everybody

    def _with_digest(self, digest: bytes) -> Identity | None:
        found = None
        for identity in self._identities:  # all of them, whichever it is
            if hmac.compare_digest(digest, identity.digest):
                found = identity
        return found

    def reload(self) -> None:
        """Reads the tokens file again; an open server stays open.

        Raises:
            ConfigError: as `from_file`; the tokens stay as they were.
        """
        if self._path is None:
            return
        self._identities = read_tokens(self._path)
        self.version += 1
        for watcher in tuple(self._watchers):
            watcher()

    def watch(self, watcher: Callable[[], None]) -> Callable[[], None]:
        """Has `watcher` called after every `reload`, until what this returns is called."""
        self._watchers.append(watcher)
        return lambda: self._watchers.remove(watcher)


class Memory:
    """`Access.identify` for the requests of one connection, which mostly show the same token again and again.

    Args:
        access: of the server.
    """

    __slots__ = ("_access", "_authorization", "_identity", "_version")

    def __init__(self, access: Access) -> None:
        self._access = access
        self._authorization = ""
        self._identity = ANYBODY
        self._version = -1

    def identify(self, authorization: str | None) -> Identity:
        """The caller whose header `Authorization` this is.

        Raises:
            Unauthenticated: a token is needed, and there is none or one that is not known.
        """
        if (
            self._version == self._access.version
            and authorization is not None
            and authorization.isascii()  # compare_digest takes no other text
            # In constant time, too: a proxy may carry the requests of many clients on one connection.
            and hmac.compare_digest(authorization, self._authorization)
        ):
            return self._identity
        identity = self._access.identify(authorization)
        if authorization is not None and authorization.isascii():
            self._authorization, self._identity, self._version = authorization, identity, self._access.version
        return identity
