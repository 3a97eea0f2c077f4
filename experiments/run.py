"""One run: adapt a base model to a task with one variant, score it, and leave a run directory that reproduces it."""

import os
import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) == signal.default_int_handler:
    # Until there is anything to finish; a job in the background ignores Ctrl-C.
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))

import argparse
import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from experiments.config.schema import RunConfig
    from experiments.terminal import Display

ROOT = Path(__file__).resolve().parent.parent
if not __package__:  # run as a script: the project belongs on the path, this folder does not
    sys.path[:] = [str(ROOT), *(entry for entry in sys.path if entry != str(ROOT / "experiments"))]

from lora_variants.registry import VARIANTS


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; nothing heavy is imported for it."""
    variants = "\n".join(
        f"  {name:10} {v.summary}{f'  ({v.paper})' if v.paper else ''}" for name, v in VARIANTS.items()
    )
    parser = argparse.ArgumentParser(
        prog="run.py",
        description=__doc__,
        epilog=f"variants:\n{variants}\n\nA finished run is never trained again: the same command shows its results.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config", type=Path, default=ROOT / "configs" / "bytes.yaml", help="default: configs/bytes.yaml"
    )
    parser.add_argument(
        "--variant",
        metavar="NAME",
        help="which variant; of the file's, it takes over the knobs that all adapters share, such as rank",
    )
    parser.add_argument("--rank", type=_whole_number, metavar="R", help="rank of every adapted matrix")
    parser.add_argument(
        "--seed",
        type=_whole_number,
        metavar="S",
        help="seed of initialisation, data order and dropout (--set seed.init=... for one of them)",
    )
    parser.add_argument(
        "--start-from", type=Path, metavar="PATH",
        help="what the update starts from: a finished run, a PEFT adapter, or a loralib checkpoint (start.alpha=...)",
    )  # fmt: skip
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
        help="any knob, e.g. training.steps=100, or by its last name: learning_rate=3e-4, 'rank={\"*.query\": 8}'",
    )  # fmt: skip
    parser.add_argument("--test", action="store_true", help="read the test split too; every read goes into a ledger")
    parser.add_argument("--wandb", metavar="MODE", help="auto, online, offline or disabled (default: the file's, auto)")
    parser.add_argument(
        "--runs-dir", type=Path, default=Path("runs"), help="where run directories go (default: ./runs)"
    )
    parser.add_argument("--plan", action="store_true", help="show and check the run: costs, data, base; train nothing")
    return parser.parse_args(arguments)


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"a whole number, not {text[:40]!r}") from None


def main(arguments: list[str] | None = None) -> int:
    """0: a score; 1: the run failed, for want of disk or memory too; 2: the request is wrong; 130: interrupted."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a pipe may not have the letter Δ
    asked = parse_arguments(arguments)
    from experiments.command_errors import report_error
    from experiments.plan import show_plan
    from experiments.runner import execute
    from experiments.terminal import Display

    display = Display()
    try:
        config = _load(asked, display)
        if asked.plan:
            show_plan(config, display, runs_dir=asked.runs_dir)
            return 0
        finished = execute(config, runs_dir=asked.runs_dir, test=asked.test, display=display)
        if finished.found:
            display.say(
                "this run has already finished; showing its results (move its directory away to train it again)"
            )
        display.result(finished.result, str(finished.folder))
    except KeyboardInterrupt as interruption:
        print(
            str(interruption)
            or "interrupted; the same command goes on from the last checkpoint, or from the start without one",
            file=sys.stderr,
        )
        return 130
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        return report_error(error)
    return 0


def _load(asked: argparse.Namespace, display: "Display") -> "RunConfig":
    """The configuration that was asked for; what another variant took over is said, also where there is an error."""
    from experiments.config.loading import load

    flags = {"variant": asked.variant, "rank": asked.rank, "seed": asked.seed, "start_from": asked.start_from}
    overrides = [*asked.overrides, *([f"wandb.mode={asked.wandb}"] if asked.wandb else [])]
    notes: list[str] = []
    try:
        return load(asked.config, **flags, overrides=overrides, notes=notes)
    finally:
        for note in notes:
            display.say(note)


if __name__ == "__main__":
    from experiments.training.interruption import run_command

    run_command(main)
