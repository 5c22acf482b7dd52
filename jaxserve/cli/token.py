"""`jaxserve token`: makes a token."""

import hashlib
import json
import secrets
from collections.abc import Sequence

import click

from jaxserve.cli.show import say
from jaxserve.errors import ConfigError
from jaxserve.request import LONGEST_TENANT


@click.command("token")
@click.argument("name")
@click.option("--infer", multiple=True, metavar="MODEL", help="A model that it may use, or a pattern; by default all.")
@click.option("--admin", multiple=True, metavar="MODEL", help="A model that it may load and unload, or a pattern.")
@click.option("--observe/--no-observe", default=True, help="Whether it may see metrics and the live page.")
def command(name: str, infer: Sequence[str], admin: Sequence[str], *, observe: bool) -> None:
    """Make a token for NAME, and the entry of a tokens file that lets it in.

    The entry is printed on standard output, without the token itself: append it to the file that `jaxserve serve
    --tokens` reads. The token is printed on standard error, once: give it to NAME.
    """
    for text in (name, *infer, *admin):
        if not 0 < len(text) <= LONGEST_TENANT or not text.isprintable():
            raise ConfigError(f"{text!r:.80} cannot be a name; give printable text of 1 to {LONGEST_TENANT} characters")
    token, entry = make_token(name, infer=infer or ("*",), admin=admin, observe=observe)
    click.echo(entry, nl=False)
    say(f"the token of {name}, to be kept secret: {token}")


def make_token(name: str, *, infer: Sequence[str], admin: Sequence[str] = (), observe: bool = True) -> tuple[str, str]:
    """A fresh token, and the entry of a tokens file that lets it in; all texts must be printable."""
    token = secrets.token_urlsafe(32)
    entry = {
        "name": name,
        "sha256": hashlib.sha256(token.encode()).hexdigest(),
        "infer": list(infer),
        "admin": list(admin),
        "observe": observe,
    }
    # JSON's texts and arrays are TOML's, apart from escapes that a printable text does not need.
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in entry.items()]
    return token, "\n".join(["[[tokens]]", *lines, "", ""])
