"""The command line: ``circuitbase COMMAND …``.

Results go to standard output, everything else (progress, warnings, errors) to standard error.
Exit status: 0 done, 1 a known error (one line, ``error: what. remedy.``), 2 wrong usage, 130 when
interrupted, 143 when terminated. Nothing heavy is imported before a command runs, so that
``--help`` answers at once.
"""

from __future__ import annotations

import difflib
import errno
import inspect
import logging
import sys
import warnings
from typing import Any, TextIO

import click

from circuitbase import (
    __version__,
    commands_ask,
    commands_circuits,
    commands_compare,
    commands_demo,
    commands_files,
    commands_label,
    commands_sets,
    commands_store,
    commands_trace,
    commands_train,
    commands_weights,
)
from circuitbase._session import shared_options

__all__ = ["cli", "main"]


def main() -> None:
    """Run the command line and end the process with its exit status."""
    # What our libraries log is for the user; the driver's own log repeats what errors say.
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    logging.addLevelName(logging.WARNING, "warning")
    for name in ("tracer", "graphstore", "queries"):
        logging.getLogger(name).addHandler(handler)
    logging.getLogger("neo4j").addHandler(logging.NullHandler())
    cli(prog_name="circuitbase")


class Commands(click.Group):
    """A group whose commands end in one line for every known error."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; turn known errors into a line on standard error and status 1."""
        with warnings.catch_warnings():
            _show_our_warnings()
            try:
                return super().invoke(ctx)
            except (click.ClickException, click.exceptions.Exit):
                raise
            except (KeyboardInterrupt, click.Abort):
                click.echo("interrupted", err=True)
                ctx.exit(130)
            except Exception as error:
                from tracer.errors import CircuitError

                if isinstance(error, CircuitError):
                    text = str(error)
                elif isinstance(error, OSError) and error.errno not in (None, errno.EPIPE):
                    named = f"{error.filename}: " if error.filename else ""
                    text = f"{named}{error.strerror}. Free or choose what it names, and try again."
                else:
                    raise  # a broken pipe is click's to end; anything else is a defect
                click.echo(f"error: {' '.join(text.split())}", err=True)
                ctx.exit(1)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a command by name, and suggest one where there is none."""
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            found = difflib.get_close_matches(name, self.list_commands(ctx), n=1, cutoff=0.5)
            hint = f"Did you mean {found[0]!r}?" if found else "See circuitbase --help."
            ctx.fail(f"There is no command {name!r}. {hint}")
        return super().resolve_command(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the commands, in the order in which people meet them."""
        return list(self.commands)


def _show_our_warnings() -> None:
    """Print our warnings as a line; those of other packages are for developers."""

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        # By name: importing the class would import pandas, too slow for --help.
        if any(kind.__name__ == "CircuitWarning" for kind in category.__mro__):
            sys.stderr.write(f"warning: {' '.join(str(message).split())}\n")

    warnings.showwarning = show
    if not sys.warnoptions:
        warnings.simplefilter("always")


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 96},
    epilog="Every command has examples: circuitbase COMMAND --help",
)
@shared_options
@click.version_option(__version__, message="%(prog)s %(version)s")
def cli(**_: object) -> None:
    """Keep attribution graphs of language models in a graph database, and ask it questions.

    The store is the folder ./circuits.db (or $CIRCUITBASE_STORE, or --store), opened by an engine
    that runs inside the command; --uri or $NEO4J_URI names a Neo4j server instead. These options
    may stand before the command or after it.

    First steps:
      circuitbase import graphs/*.json --set first
      circuitbase graphs
      circuitbase show NAME --out picture.svg
      circuitbase scores
      circuitbase query recurring_features prompt_set=first
    """


for _command in (
    commands_demo.demo,
    commands_files.import_,
    commands_trace.trace,
    commands_train.train,
    commands_train.evaluate,
    commands_weights.weights,
    commands_weights.merge,
    commands_store.graphs,
    commands_store.global_weights,
    commands_sets.sets,
    commands_circuits.circuits,
    commands_store.show,
    commands_ask.scores,
    commands_ask.queries,
    commands_ask.query,
    commands_ask.cypher,
    commands_compare.compare,
    commands_compare.set_report,
    commands_store.group,
    commands_label.label,
    commands_files.export,
    commands_store.delete,
    commands_store.verify,
):
    cli.add_command(_command)
for _command in (cli, *cli.commands.values()):
    # Examples keep their lines: click knows that by the sign for a backspace.
    _help = inspect.cleandoc(_command.help or "")
    for _title in ("For example:", "First steps:"):
        _help = _help.replace(f"\n\n{_title}", f"\n\n\b\n{_title}")
    _command.help = _help
