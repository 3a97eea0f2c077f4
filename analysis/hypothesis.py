"""Tests the low-rank hypothesis on studies whose file says what is tested, and gives its verdict.

Evaluates what is left of the updates of full fine-tuning at low rank, on the test split, once; reads go into the
ledger. Prints a block a study, writes hypothesis.json and the figures.
"""

import os
import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) == signal.default_int_handler:
    # Until there is anything to finish; a job in the background ignores Ctrl-C.
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from experiments.terminal import Display

ROOT = Path(__file__).resolve().parent.parent
DRAWN = ("retention", "retention_by_energy")
FILES = ("hypothesis.json", *(f"{name}.{kind}" for name in DRAWN for kind in ("csv", "png", "pdf")))
if not __package__:  # run as a script: this folder is first on the path, the repository is not on it
    sys.path[:] = [str(ROOT), *(entry for entry in sys.path if entry != str(ROOT / "analysis"))]


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; nothing heavy is imported for it."""
    parser = argparse.ArgumentParser(
        prog="hypothesis.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "studies", nargs="+", type=Path, metavar="STUDY",
        help="folder of a finished study whose file has a section `hypothesis`: runs/low_rank; all of a family at once",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="where to write (default: hypothesis/ in the first study's folder)"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """0: a verdict, whichever; 1: for want of disk or memory; 2: the request is wrong; 130: interrupted."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a pipe may not have the letter Δ
    asked = parse_arguments(arguments)
    from experiments.command_errors import report_error
    from experiments.terminal import Display

    try:
        _test(asked, Display())
    except KeyboardInterrupt:
        print("interrupted; the same command goes on, scores that are there are kept", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        return report_error(error)
    return 0


def _test(asked: argparse.Namespace, display: "Display") -> None:
    from analysis.low_rank.family import assess_family, write_family
    from experiments.record.output_folder import refuse_unwritable

    out = asked.out or asked.studies[0] / "hypothesis"
    if asked.out or asked.studies[0].is_dir():
        refuse_unwritable(out, FILES, way_out="name another folder with --out")
    family = assess_family(asked.studies, display)
    for line in family.lines():
        display.say(line)
    for path in write_family(family, out):
        display.say(f"wrote {path}")


if __name__ == "__main__":
    from experiments.training.interruption import run_command

    run_command(main)
