"""Bearer tokens as they travel: in the header `Authorization: Bearer TOKEN` [RFC 6750], or alone in a hello."""

import re

from jaxserve.errors import ConfigError, Unauthenticated

SHORTEST_TOKEN, LONGEST_TOKEN = 16, 1024
"""Characters. A shorter one could be guessed, so that servers accept none; 1024 fit into any header and any hello."""

# RFC 6750, section 2.1: b64token
_TOKEN = re.compile(r"[A-Za-z0-9\-._~+/]+=*")


def check_token(token: object, *, shortest: int = 1) -> str:
    """A token that somebody has chosen, or was given.

    Raises:
        ConfigError: no header could carry it, or it is too short or too long. The message does not show it.
    """
    if not isinstance(token, str):
        raise ConfigError(f"the token is a {type(token).__name__}, but must be a text")
    if _TOKEN.fullmatch(token) is None:
        raise ConfigError(
            "the token has characters that no header may carry; take letters, digits and - . _ ~ + / only, with = at "
            "the end perhaps"
        )
    if not shortest <= len(token) <= LONGEST_TOKEN:
        raise ConfigError(
            f"the token has {len(token)} characters, but must have from {shortest} to {LONGEST_TOKEN}; "
            f"`openssl rand -base64 32` makes a good one"
        )
    return token


def token_in(authorization: str | None) -> str:
    """The token in a header `Authorization`.

    Raises:
        Unauthenticated: there is no header, or it shows something else than a token.
    """
    if authorization is None:
        raise Unauthenticated("this server wants a token; send it in the header `Authorization: Bearer TOKEN`")
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "bearer":  # RFC 9110, section 11.1: the scheme is case-insensitive
        raise Unauthenticated("the header `Authorization` must show a bearer token: `Authorization: Bearer TOKEN`")
    return token.strip(" ")
