"""`jaxserve status`: what a running server does."""

import ssl
from pathlib import Path

import click

from jaxserve.cli.show import print_json, print_table, status_tables
from jaxserve.client import Client
from jaxserve.config import client_token
from jaxserve.protocols.tls import client_context


@click.command("status")
@click.argument("address", default="127.0.0.1:8500")
@click.option("--token", metavar="TOKEN", help="Who asks, where the server wants to know; by default JAXSERVE_TOKEN.")
@click.option("--tls", is_flag=True, help="Speak TLS with a server whose certificate this system trusts.")
@click.option("--tls-ca", type=Path, metavar="FILE", help="Speak TLS, and trust the authority in this PEM file.")
@click.option("--tls-certificate", type=Path, metavar="FILE", help="Show this certificate (PEM) to the server.")
@click.option("--tls-key", type=Path, metavar="FILE", help="Its key (PEM).")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    address: str,
    token: str | None,
    tls: bool,
    tls_ca: Path | None,
    tls_certificate: Path | None,
    tls_key: Path | None,
    as_json: bool,
) -> None:
    """Show what the server at ADDRESS (host:port or unix:/path) does."""
    context: bool | ssl.SSLContext = tls
    if tls_ca is not None or tls_certificate is not None or tls_key is not None:
        context = client_context(ca=tls_ca, certificate=tls_certificate, key=tls_key)
    with Client(address, token=token or client_token(), tls=context) as client:
        status = client.status()
    if as_json:
        print_json(status)
    else:
        print_table(status_tables(status))
