"""`jaxserve status`: what a running server does."""

import click

from jaxserve.cli.show import print_json, print_table, status_tables
from jaxserve.client import Client


@click.command("status")
@click.argument("address", default="127.0.0.1:8500")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(address: str, as_json: bool) -> None:
    """Show what the server at ADDRESS (host:port or unix:/path) does."""
    with Client(address) as client:
        status = client.status()
    if as_json:
        print_json(status)
    else:
        print_table(status_tables(status))
