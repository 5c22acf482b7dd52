"""Arguments in, exit code out: 0 done; 1 it ran and failed; 2 the arguments or the files are wrong."""

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from jaxserve.errors import ConfigError, FileFormatError, JaxserveError, MissingExtra, ModelError, PlacementError

_COMMANDS = {
    "demo": "Serve four models on fake CPU devices under bursty traffic.",
    "explain": "Show the stages and the sharding that a model gets.",
    "plan": "Find which groups there should be and which models each should hold.",
    "profile": "Measure or estimate models and write a profiles file.",
    "serve": "Serve models over the network.",
    "simulate": "Say what would become of a workload under a placement.",
    "status": "Show what a running server does.",
    "token": "Make a token for a client.",
    "workload": "Make, convert and show workload files.",
}
_SLOW_TO_IMPORT = {"demo", "explain", "profile", "serve"}
"""These import jax, which takes seconds."""
_MISUSE = (ConfigError, FileFormatError, MissingExtra, ModelError, PlacementError)


class _Commands(click.Group):
    """Imports a command's module when it is called, so that `jaxserve status` does not wait for jax."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        return importlib.import_module(f"jaxserve.cli.{cmd_name}").command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        # What `serve` writes where nobody looks is a log, perhaps in JSON.
        is_log = args[:1] == ["serve"] and not sys.stderr.isatty()
        if args and args[0] in _SLOW_TO_IMPORT and not is_log and not {"-h", "--help"} & set(args):
            print("starting ...", file=sys.stderr, flush=True)  # noqa: T201
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:  # click would print an empty line for it
            raise click.Abort from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(sorted(_COMMANDS.items()))


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]}, no_args_is_help=False)
@click.version_option(package_name="jaxserve")
def commands() -> None:
    """Serve many Flax models on few accelerators within latency deadlines."""


def run(arguments: Sequence[str]) -> int:
    """Runs one command; returns its exit code."""
    try:
        return commands.main(list(arguments), prog_name="jaxserve", standalone_mode=False) or 0
    except click.ClickException as error:
        _say(f"{error.format_message()} (see {_help_of(error)})")
        return 2
    except _MISUSE as error:
        _say(str(error))
        return 2
    except JaxserveError as error:
        _say(str(error))
        return 1
    except (KeyboardInterrupt, click.Abort):
        _say("interrupted")
        return 1


def main() -> None:
    """The console script."""
    # gRPC writes lines of its own to standard error, as many as strangers want; what matters is logged by us.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    _divert_native_output()
    sys.exit(run(sys.argv[1:]))


def _divert_native_output() -> None:
    """Sends to standard error what native libraries write to standard output by themselves, as HiGHS does at times.

    Otherwise it would stand before the one JSON object that a command prints.
    """
    sys.stdout.flush()
    ours = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = open(ours, "w", encoding=sys.stdout.encoding, buffering=1 if os.isatty(ours) else -1)  # noqa: SIM115


def _help_of(error: click.ClickException) -> str:
    context = error.ctx if isinstance(error, click.UsageError) else None
    return f"`{context.command_path if context is not None else 'jaxserve'} --help`"


def _say(problem: str) -> None:
    """One line on standard error, whatever the message holds."""
    print("jaxserve: " + " ".join(problem.split()), file=sys.stderr)  # noqa: T201
