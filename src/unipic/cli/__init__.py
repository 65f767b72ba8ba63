"""The command line. Nothing heavy is imported before a command runs.

Results go to stdout, progress to stderr. Errors are at most three lines: what, where, how to mend. Exit codes: 0,
1 failed, 2 bad usage or input, 75 try again later, 130 and 143 ended by a signal. `--debug`, anywhere, shows the whole
story of a failure.
"""

from __future__ import annotations

import io
import logging
import signal
import sys
import warnings
from collections.abc import Callable
from typing import Any

import typer
from typer.exceptions import TyperException

from unipic.cli import evals, pictures, rewards, train, world
from unipic.errors import CheckpointSkipped, PromptCut, UnipicError, one_line

SETTINGS: dict[str, Any] = {
    "rich_markup_mode": None,
    "add_completion": False,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}
app = typer.Typer(
    help="Generate, edit and describe pictures with Skywork UniPic 2.0, or with its tiny embedded twin. "
    "--debug, anywhere, shows the traceback of a failure.",
    **SETTINGS,
)
app.command()(pictures.generate)
app.command()(pictures.edit)
app.command()(pictures.describe)
app.command()(pictures.info)
app.command()(train.train)
app.command()(rewards.serve_reward)
of_world = typer.Typer(help="The embedded world: its scenes, pictures and texts, and an exact judge.", **SETTINGS)
of_world.command()(world.show)
of_world.command()(world.export)
of_world.command()(world.judge)
app.add_typer(of_world, name="world")
of_evals = typer.Typer(help="Benchmarks.", **SETTINGS)
of_evals.command()(evals.world)
app.add_typer(of_evals, name="eval")
of_data = typer.Typer(help="Training data.", **SETTINGS)
of_data.command()(train.check)
app.add_typer(of_data, name="data")


def main(arguments: list[str] | None = None) -> None:
    """Entry point: run a command, turn its failure into three lines and an exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    debug = "--debug" in options
    if debug:
        arguments.remove("--debug")
    else:  # stderr is for progress and for our own three lines; libraries warn of what a user cannot mend
        logging.disable(logging.WARNING)
        warnings.simplefilter("ignore")
        for told in (PromptCut, CheckpointSkipped):
            warnings.simplefilter("default", told)
        warnings.showwarning = lambda message, *_: typer.echo(f"warning: {message}", err=True)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # file names may be any bytes
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(_exit_code(lambda: app(arguments, standalone_mode=False, prog_name="unipic"), debug))


def _exit_code(command: Callable[[], Any], debug: bool) -> int:
    try:
        code = command()
        return code if isinstance(code, int) else 0
    except UnipicError as error:
        if debug:
            raise
        return _fail(str(error), error.exit_code)
    except TyperException as error:  # usage
        return _fail(f"{one_line(error.format_message())}\nsee unipic --help", 2)
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except BrokenPipeError:  # the reader of stdout has gone
        sys.stderr.close()
        return 1
    except Exception as error:
        if debug:
            raise
        return _fail(_unexpected(error), 1)


def _unexpected(error: Exception) -> str:
    """A failure that nobody foresaw still says what, where and what to do."""
    if type(error).__name__ == "OutOfMemoryError":
        return "the device has not enough memory\ntry --offload model, --quantize fp8, or a smaller picture"
    return f"{type(error).__name__}: {one_line(error)}\nrun again with --debug for the whole story"


def _fail(message: str, code: int) -> int:
    print(message, file=sys.stderr)  # noqa: T201
    return code
