"""What one training step costs, in time and memory: ours, PEFT, loralib, and the frozen model without adapters."""

import os
import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) == signal.default_int_handler:
    # Until there is anything to finish; a job in the background ignores Ctrl-C.
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))

import argparse
import io
import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    import torch

ROOT = Path(__file__).resolve().parent.parent
if not __package__:  # run as a script: the project belongs on the path, this folder does not
    sys.path[:] = [str(ROOT), *(entry for entry in sys.path if entry != str(ROOT / "experiments"))]

from experiments.benchmarking.cases import (
    MODELS,
    PRECISIONS,
    TARGETS,
    Case,
    PackCase,
    packs_of,
    standard_cases,
    standard_pack_cases,
)

PACKS = [1, 2, 4, 8, 16, 32]
ONE_RANK, MIXED_RANKS = (8,), (2, 4, 8, 16)
SHAPE = ("model", "width", "layers", "heads", "batch_size", "length", "rank", "targets")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; nothing heavy is imported for it."""
    usual = Case()
    parser = _Parser(
        prog="benchmark.py",
        description=f"{__doc__} Every implementation has the same base model, batch, A, B and AdamW. On CPU time is "
        "processor time at one thread; what counts is the ratio to PEFT within each round.",
        epilog="Without an option of the shape the standard cases are measured, with memory in the largest; with one, "
        "that case alone. An interrupted benchmark goes on when the same command names its folder as --output.",
        allow_abbrev=False,
    )
    shape = parser.add_argument_group("the shape of one case")
    shape.add_argument("--model", choices=MODELS, help=f"default: {usual.model}; nothing is downloaded")
    for knob, text in (
        ("width", "width of the model, d"), ("layers", "transformer blocks"), ("heads", "attention heads"),
        ("batch_size", "sequences in the batch"), ("length", "tokens in a sequence"), ("rank", "rank of every ΔW"),
    ):  # fmt: skip
        shape.add_argument(
            f"--{knob.replace('_', '-')}", type=int, metavar="N", help=f"{text} (default: {getattr(usual, knob)})"
        )
    shape.add_argument("--targets", choices=TARGETS, help="all linear layers of the blocks, or queries and values")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32", help="bfloat16: under autocast")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--rounds",
        type=int,
        default=15,
        metavar="N",
        help="timings of every implementation; with --study, 0: no packs (default: 15)",
    )
    parser.add_argument(
        "--processes", type=int, default=3, metavar="N",
        help="fresh processes in which the memory of every implementation is measured; 0: not at all (default: 3)",
    )  # fmt: skip
    study = parser.add_argument_group("packs of trials and whole studies, instead of single steps")
    study.add_argument(
        "--study", action="store_true", help="the cost of a trial-step in packs of trials, then studies against PEFT"
    )
    study.add_argument(
        "--packs", type=int, nargs="+", default=PACKS, metavar="K",
        help=f"trials that train together (default: {' '.join(map(str, PACKS))})",
    )  # fmt: skip
    study.add_argument(
        "--trials", type=int, default=32, metavar="N", help="trials of a study; 0: no studies (default: 32)"
    )
    study.add_argument(
        "--steps", type=int, nargs="+", default=[100, 400], metavar="N", help="steps of its trials (default: 100 400)"
    )
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="default: a new folder in ./benchmarks")
    return parser.parse_args(arguments)


def asked_cases(asked: argparse.Namespace) -> list[Case]:
    """The case of the shape that was given, or the standard ones. Raises: ValueError for what cannot be measured."""
    for knob, least in (("rounds", 0 if asked.study else 1), ("processes", 0), ("trials", 0)):
        if getattr(asked, knob) < least:
            raise ValueError(f"{knob} is at least {least}; got {getattr(asked, knob)}")
    own = _own_case(asked)
    cases = standard_cases(asked.precision) if own is None else [own]
    return [replace(case, memory=case.memory and asked.processes > 0) for case in cases]


def asked_pack_cases(asked: argparse.Namespace) -> list[PackCase]:
    """The same for packs. Raises: ValueError for what cannot be measured."""
    for size in asked.packs:
        if size < 1:
            raise ValueError(f"packs have 1 trial or more; got {size}")
    own = _own_case(asked)
    cases = standard_pack_cases(asked.precision, asked.device) if own is None else [packs_of(own)]
    return [case for case in cases if asked.rounds and case.sizes(asked.packs)]


def _own_case(asked: argparse.Namespace) -> Case | None:
    """The case of the shape that was given, None where none was."""
    shape = {knob: value for knob in SHAPE if (value := getattr(asked, knob)) is not None}
    return Case(**shape, precision=asked.precision, memory=True) if shape else None


def benchmark(cases: list[Case], *, device_name: str, rounds: int, processes: int, folder: Path) -> None:
    """Measure, print the table, write benchmark.json and the figure; what is there is shown when interrupted too.

    Raises: ValueError for what cannot be measured here, RuntimeError where a measurement failed.
    """
    from analysis.figures.benchmark import save_benchmark_figure
    from experiments.benchmarking.measurement import measure_all
    from experiments.benchmarking.results import FILE, Benchmark, conditions
    from experiments.benchmarking.terminal import progress_bars, ratio_table, show_results
    from experiments.terminal import Display

    display, device = Display(), _device(device_name)
    measured = Benchmark(folder, conditions(device, rounds=rounds, processes=processes), cases)
    measured.go_on()
    try:
        with progress_bars(display) as report:
            measure_all(measured, device, rounds=rounds, processes=processes, report=report)
    finally:
        if measured.results:
            show_results(display, measured.results)
            for path in (folder / FILE, *save_benchmark_figure(ratio_table(measured.results), folder, "benchmark")):
                display.say(f"wrote {path}")


def benchmark_studies(asked: argparse.Namespace, folder: Path) -> None:
    """Measure packs of trials, then whole studies; tables, benchmark.json and the figure, when interrupted too.

    Raises: ValueError for what cannot be measured here, RuntimeError where a measurement failed.
    """
    from analysis.figures.benchmark import save_pack_figure
    from experiments.benchmarking.pack_timing import measure_packs
    from experiments.benchmarking.results import FILE, conditions
    from experiments.benchmarking.study_results import StudyBenchmark
    from experiments.benchmarking.terminal import pack_ratio_table, progress_bars, show_packs, show_studies
    from experiments.benchmarking.whole_study import StudyCase, measure_study
    from experiments.terminal import Display

    display, device = Display(), _device(asked.device)
    ranks = (ONE_RANK, MIXED_RANKS) if asked.trials else ()
    studies = [StudyCase(of, asked.trials, steps, asked.device) for of in ranks for steps in asked.steps]
    facts = conditions(device, rounds=asked.rounds, processes=asked.processes) | {"packs": asked.packs}
    measured = StudyBenchmark(folder, facts, asked_pack_cases(asked), studies)
    if not measured.pack_cases and not measured.study_cases:
        raise ValueError("nothing is left to measure: --trials 0 leaves out studies, --rounds 0 packs")
    measured.go_on()
    try:
        with progress_bars(display) as report:
            for case in measured.packs_left:
                times = {"rounds": asked.rounds, "processes": asked.processes}
                measured.packs.append(measure_packs(case, device, asked.packs, **times, report=report))
                measured.save()
            for study in measured.studies_left:
                measured.studies.append(measure_study(study, report))
                measured.save()
    finally:
        if measured.packs:
            show_packs(display, measured.packs)
        if measured.studies:
            show_studies(display, measured.studies)
        if measured.packs or measured.studies:
            figures = save_pack_figure(pack_ratio_table(measured.packs), folder, "packs") if measured.packs else []
            for path in (folder / FILE, *figures):
                display.say(f"wrote {path}")


def _device(name: str) -> "torch.device":
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device 'cuda' is not available to this installation of torch; use cpu")
    return torch.device(name)


def main(arguments: list[str] | None = None) -> int:
    """0: measured; 1: a measurement failed; 2: the request is wrong; 130: interrupted."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a pipe may not have the letter Δ
    asked = parse_arguments(arguments)
    folder = asked.output or Path("benchmarks") / datetime.now().strftime("%Y-%m-%d-%H%M%S")
    try:
        cases = asked_cases(asked)
        if asked.study:
            benchmark_studies(asked, folder)
            return 0
        benchmark(cases, device_name=asked.device, rounds=asked.rounds, processes=asked.processes, folder=folder)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"interrupted; the same command with --output {folder} goes on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    from experiments.training.interruption import run_command

    run_command(main)
