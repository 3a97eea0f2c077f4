"""A study: the configurations of a file compared by a protocol, trial by trial, on as many workers as there are."""

import os
import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) == signal.default_int_handler:
    # Until there is anything to finish; a job in the background ignores Ctrl-C.
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))

import argparse
import io
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import subprocess

    from analysis.study_results.conclusion import Conclusion
    from experiments.studies.protocol.progress import StudyState
    from experiments.studies.spec.study import Study

ROOT = Path(__file__).resolve().parent.parent
MOST_PROCESSES = 1000  # and most trials of a pack
if not __package__:  # run as a script: the project belongs on the path, this folder does not
    sys.path[:] = [str(ROOT), *(entry for entry in sys.path if entry != str(ROOT / "experiments"))]


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; nothing heavy is imported for it."""
    there = sorted((ROOT / "configs" / "studies").glob("*.yaml"))
    width = max((len(path.name) for path in there), default=0)
    studies = "\n".join(f"  {path.name:{width}}  {_question(path)}" for path in there)
    parser = argparse.ArgumentParser(
        prog="study.py",
        description=__doc__,
        epilog=f"studies in configs/studies:\n{studies}\n\nThe same command goes on where it was "
        "interrupted or killed, and repeats nothing that is done.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_arguments(parser)
    asked = parser.parse_args(arguments)
    if asked.file is None or not _is_file(asked.file):
        told = "give the file of a study" if asked.file is None else f"{str(asked.file)[:200]!r} is no file"
        parser.error(f"{told}; in {ROOT / 'configs' / 'studies'} are {', '.join(path.name for path in there)}")
    if asked.sd is not None and not asked.plan:
        parser.error("--sd is for --plan, which says how many trials to expect; nothing else depends on it")
    return asked


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of what is trained, and where; of what else may be asked for."""
    parser.add_argument("file", type=Path, nargs="?", metavar="FILE", help="the study, e.g. configs/studies/rank.yaml")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
        help="protocol.* of the study, or any knob of its runs, e.g. training.steps=100",
    )  # fmt: skip
    parser.add_argument("--workers", type=_count, default=1, metavar="N", help="processes on this machine (default: 1)")
    parser.add_argument(
        "--runs-dir", type=Path, default=Path("runs"), help="where run directories go (default: ./runs)"
    )
    parser.add_argument(
        "--storage", metavar="ADDRESS",
        help="the queue: a file, or postgresql+psycopg://user@host/database for several machines "
        "(default: LORA_STUDIES_STORAGE, else <runs-dir>/<study>/journal.log)",
    )  # fmt: skip
    parser.add_argument(
        "--storage-patience", type=_seconds, default=120.0, metavar="SECONDS",
        help="how long to try again when PostgreSQL does not answer (default: 120)",
    )  # fmt: skip
    _add_requests(parser)


def _add_requests(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--plan", action="store_true", help="show arms, trials, packs and the time it takes; train nothing"
    )
    parser.add_argument(
        "--sd", type=_positive, metavar="S",
        help="with --plan: the sd of the difference of two arms over seeds, to say how many trials to expect",
    )  # fmt: skip
    parser.add_argument("--status", action="store_true", help="show the status of the study; start nothing")
    parser.add_argument(
        "--pack", type=_count, metavar="K", help="most trials to train together; 1: each alone (default: measured)"
    )
    parser.add_argument("--retry-failed", action="store_true", help="train trials again that have failed")
    parser.add_argument(
        "--separate-runs", action="store_true", help="this machine's runs folder is not that of the others"
    )
    parser.add_argument(
        "--collect", type=Path, nargs="+", default=[], metavar="FOLDER",
        help="take the study's run directories from the runs folders of other machines; train nothing",
    )  # fmt: skip
    parser.add_argument(
        "--wandb", metavar="MODE", help="auto (offline), online, offline or disabled (default: the file's)"
    )
    parser.add_argument("--wandb-trials", action="store_true", help="a W&B run for every trial, however many there are")


def _count(text: str) -> int:
    if not text.isdecimal() or len(text) > 4 or not 1 <= int(text) <= MOST_PROCESSES:
        raise argparse.ArgumentTypeError(f"a whole number from 1 to {MOST_PROCESSES}, not {text[:40]!r}")
    return int(text)


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"a positive number, not {text[:40]!r}")
    return number


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"a number of seconds from 0 on, not {text!r}")
    return seconds


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long
        return False


def _question(path: Path) -> str:
    """What a study asks: the first sentence of its first line."""
    with path.open(encoding="utf-8", errors="replace") as file:
        first = file.readline().lstrip("# ").strip()
    return first.partition("?")[0] + "?" if "?" in first else first


def main(arguments: list[str] | None = None) -> int:
    """0: done; 1: a trial failed, or not all is done; 2: the request is wrong; 130: interrupted."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a pipe may not have the letter Δ
    asked = parse_arguments(arguments)
    from experiments.studies.workers.prestarted import prestarted

    with prestarted(0 if asked.plan or asked.status or asked.collect else asked.workers) as ready:
        return _carry_out(asked, ready)


def _carry_out(asked: argparse.Namespace, ready: "list[subprocess.Popen[bytes]]") -> int:
    from experiments.config.errors import ConfigError
    from experiments.data.reading import DataError
    from experiments.studies.launch import LaunchOptions, launch
    from experiments.studies.queue.storage import QueueError
    from experiments.studies.workers.pool import WorkerError
    from experiments.terminal import print_errors

    try:
        return launch(LaunchOptions(**vars(asked)), conclude=_conclude, prestarted=ready)
    except (ConfigError, DataError) as error:
        print_errors(error.errors)
        return 2
    except (ValueError, OSError, QueueError, WorkerError) as error:
        print_errors([str(error)])
        return 2
    except KeyboardInterrupt as interruption:
        print(str(interruption) or "interrupted; the same command goes on from the last checkpoints", file=sys.stderr)
        return 130


def _conclude(study: "Study", study_state: "StudyState", runs_dir: Path) -> "Conclusion":
    """Table, verdicts, summary and figures; imported where there is something to conclude, with pandas and seaborn."""
    from analysis.study_results.conclusion import conclude

    return conclude(study, study_state, runs_dir)


def work() -> int:
    """What the processes that a study starts do."""
    from experiments.studies.workers.worker_process import main as work_by_spec

    return work_by_spec()


if __name__ == "__main__":
    from experiments.training.interruption import run_command

    if sys.argv[1:] == ["--worker"]:
        run_command(work, said=b"")
    run_command(main)
