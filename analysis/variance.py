"""Says how much of a score's variance over seeds is due to initialisation, data order or dropout.

Runs a crossed design: every seed of one part with every seed of another, in packs. A finished run is never trained
again, and the same command goes on after Ctrl-C.
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
if not __package__:  # run as a script: this folder is first on the path, the repository is not on it
    sys.path[:] = [str(ROOT), *(entry for entry in sys.path if entry != str(ROOT / "analysis"))]


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; nothing heavy is imported for it."""
    parser = argparse.ArgumentParser(
        prog="variance.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config", type=Path, default=ROOT / "configs" / "bytes.yaml", help="of the runs (default: configs/bytes.yaml)"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
        help="any knob of the runs, e.g. rank=4; with seed=100 the seeds count up from there",
    )  # fmt: skip
    parser.add_argument("--variant", metavar="NAME", help="which variant")
    parser.add_argument(
        "--vary", nargs=2, default=["init=8", "data=8"], metavar="PART=N",
        help="two parts of the seed, of init, data and dropout, and how many seeds of each (default: init=8 data=8)",
    )  # fmt: skip
    parser.add_argument("--test", action="store_true", help="read the test split too; every read goes into a ledger")
    parser.add_argument("--pack", type=_positive, default=8, metavar="K", help="runs that train together (default: 8)")
    parser.add_argument("--wandb", metavar="MODE", help="online, offline, disabled or auto (default: disabled)")
    parser.add_argument(
        "--runs-dir", type=Path, default=Path("runs"), help="where run directories go (default: ./runs)"
    )
    parser.add_argument(
        "--plan", action="store_true", help="show and check the first run and the design; train nothing"
    )
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text[:5]) <= 1024:
        raise argparse.ArgumentTypeError(f"a number from 1 to 1024, not {text[:40]!r}")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """0: the shares; 1: a run failed, for want of disk or memory too; 2: the request is wrong; 130: interrupted."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a pipe may not have the letter Δ
    asked = parse_arguments(arguments)
    from experiments.command_errors import report_error
    from experiments.terminal import Display

    try:
        _report_shares(asked, Display())
    except KeyboardInterrupt as interruption:
        print(str(interruption) or "interrupted; the same command goes on", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        return report_error(error)
    return 0


def _report_shares(asked: argparse.Namespace, display: "Display") -> None:
    from analysis.seed_design import crossed_configs, describe_design, read_levels, variance_table
    from experiments.config.loading import load
    from experiments.packed_runs import execute_in_packs
    from experiments.plan import show_plan

    wandb = [] if asked.wandb is None else [f"wandb.mode={asked.wandb}"]
    overrides = ["wandb.mode=disabled", *asked.overrides, *wandb]
    config = load(asked.config, variant=asked.variant, overrides=overrides)
    levels = read_levels(asked.vary, config)
    if asked.plan:
        show_plan(config, display, runs_dir=asked.runs_dir)
    display.say(describe_design(config, levels))
    if asked.plan:
        return
    results = execute_in_packs(
        crossed_configs(config, levels), pack=asked.pack, runs_dir=asked.runs_dir, test=asked.test, display=display
    )
    for split in ("validation", *(["test"] if asked.test else [])):
        display.say("\n".join(variance_table(results, levels, split=split)))


if __name__ == "__main__":
    from experiments.training.interruption import run_command

    run_command(main)
