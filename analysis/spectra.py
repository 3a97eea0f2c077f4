"""Prints and draws the spectra of updates ΔW: of runs, adapters and checkpoints, or between two models."""

import os
import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) == signal.default_int_handler:
    # Until there is anything to finish; a job in the background ignores Ctrl-C.
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))

import argparse
import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from analysis.spectra_tables import SpectrumTables

FILES = ("spectra.csv", "spectra_values.csv", "spectra.png", "spectra.pdf")

if not __package__:  # run as a script: this folder is first on the path, the repository is not on it
    here = Path(__file__).resolve().parent
    sys.path[:] = [str(here.parent), *(entry for entry in sys.path if entry != str(here))]


def parser() -> argparse.ArgumentParser:
    """The command line of this script."""
    described = argparse.ArgumentParser(
        prog="spectra.py",
        description="Singular values and effective ranks of the updates ΔW of runs.",
        allow_abbrev=False,
    )
    described.add_argument(
        "runs",
        nargs="*",
        type=Path,
        metavar="RUN",
        help="folder of a run, folder of a PEFT adapter (LoRA, AdaLoRA), loralib checkpoint (.bin, .pt, .pth, .ckpt)",
    )
    model = "folder with model.safetensors or its parts and their index, or a .safetensors file"
    described.add_argument(
        "--before", type=Path, metavar="MODEL", help=f"instead of runs: the base of a fine-tuning; {model}"
    )
    described.add_argument("--after", type=Path, metavar="MODEL", help="what became of the base; all 2-D weights count")
    described.add_argument(
        "--targets", nargs="+", default=(), metavar="PATTERN", help="with --after: these weights alone, as '*.query'"
    )
    described.add_argument(
        "--out", type=Path, default=Path("figures"), metavar="FOLDER", help="where to write (default: figures)"
    )
    return described


def report_spectra(runs: Sequence[Path], out: Path) -> list[Path]:
    """Prints a table a run; writes spectra.csv, spectra_values.csv, spectra.png and .pdf; returns their paths.

    Runs that adapted no matrix are named; where no run did, nothing is written. Raises RunStoreError for
    what cannot be read, RecordError for a run whose files are not what it wrote, OSError for a folder that cannot be
    written, FileExistsError for one with other spectra.
    """
    from analysis.spectra_tables import print_tables, spectrum_tables
    from experiments.record.finished_runs import note_unchecked

    tables = spectrum_tables(runs)
    console = terminal()
    for note in filter(None, map(note_unchecked, dict.fromkeys(runs))):
        console.print(note)
    print_tables(tables, console)
    return [] if tables.summary.empty else write_spectra(tables, out, console)


def report_difference(before: Path, after: Path, targets: Sequence[str], out: Path) -> list[Path]:
    """Does for the difference of two models what `report_spectra` does for runs, and raises what it raises."""
    from analysis.model_differences import difference_notes, difference_tables
    from analysis.spectra_tables import print_tables
    from experiments.record.stored_models import pair_models

    pair = pair_models(before, after, targets)
    tables = difference_tables(pair, after)
    console = terminal()
    print_tables(tables, console)
    for note in difference_notes(pair, tables.summary):
        console.print(note)
    return write_spectra(tables, out, console)


def terminal() -> "Console":
    """Where the tables are printed, as they are."""
    from rich.console import Console

    return Console(highlight=False, markup=False)


def write_spectra(tables: "SpectrumTables", out: Path, console: "Console") -> list[Path]:
    """Writes both tables and the figure, and prints where; returns their paths."""
    from analysis.figures.spectra import spectra_figure
    from analysis.figures.style import save_figure
    from experiments.record.atomic_files import write_atomically

    summary, values, *drawn = (out / name for name in FILES)
    texts = {summary: tables.summary.to_csv(index=False), values: tables.values.to_csv(index=False)}
    refuse_to_replace(texts, drawn)
    out.mkdir(parents=True, exist_ok=True)
    for path, text in texts.items():
        write_atomically(path, text)
    written = [*texts, *save_figure(spectra_figure(tables.summary, tables.values), out, "spectra")]
    for path in written:
        console.print(f"wrote {path}", soft_wrap=True)
    return written


def refuse_to_replace(texts: Mapping[Path, str], drawn: Sequence[Path]) -> None:
    """Raise FileExistsError where tables or figures of other spectra are; the same ones may be written again."""
    there = [path for path in texts if path.exists()]
    others = [path for path in there if path.read_bytes() != texts[path].encode()]
    others += [path for path in drawn if path.exists() and not there]
    if others:
        raise FileExistsError(
            f"{others[0]} is there and of other runs or other values: name another folder with --out, "
            "or move what is there away; nothing was written"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0, or 2 with a message on stderr where the input or the output folder is wrong."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a pipe may not have the letter σ
    described = parser()
    given = described.parse_args(arguments)
    differs = given.before is not None or given.after is not None
    if differs == bool(given.runs):
        described.error("give runs, or two models with --before and --after; not both, and not neither")
    if (differs and None in (given.before, given.after)) or (given.targets and not differs):
        described.error("--before and --after go together, and --targets with them: give both models")
    from experiments.record.adapter_formats import RunStoreError
    from experiments.record.errors import RecordError
    from experiments.record.output_folder import refuse_unwritable

    try:
        refuse_unwritable(given.out, FILES, way_out="name another folder with --out")
        if differs:
            report_difference(given.before, given.after, given.targets, given.out)
        else:
            report_spectra(given.runs, given.out)
    except (RunStoreError, RecordError, OSError) as error:
        print(f"spectra.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    from experiments.training.interruption import run_command

    run_command(main)
