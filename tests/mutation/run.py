"""Where would a wrong line pass? Plant a random sample of wrong lines in the core, and run the tests that run them.

    python tests/mutation/run.py                      # 80 mutants in each of five packages
    python tests/mutation/run.py --survivors          # those that survived, again, by the tests of today

First the default suite runs once, to note which tests run which line. Then each mutant is written into a copy of the
project, and the tests that run its line judge it, quick ones first, up to `--seconds` of their own time. A mutant is
killed by a test that fails, or that takes ten times as long as before and half a minute more. Interrupted, the same
command goes on: what is known of a mutant is kept in `--out`, until the line moves or reads otherwise.
"""

import argparse
import importlib
import json
import os
import signal
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from copies import OPTIONS, ROOT, Task, a_copy, file_of, in_copy, on_copies
from mutants import PACKAGES, Mutant, mutated, sampled
from record import Record, recorded

PRELOADED = ("torch", "scipy.stats", "pandas", "pyarrow.parquet", "optuna", "sklearn.linear_model", "hypothesis",
             "transformers", "peft", "matplotlib.pyplot", "seaborn", "rich.console", "pydantic")  # fmt: skip
PROCESSES = 2


class Judges:
    """A pytest plugin: these tests in this order, each within its time; the first that fails is written down."""

    def __init__(self, seconds: Mapping[str, float], verdict: Path) -> None:
        self.seconds, self.verdict = seconds, verdict

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        found = {item.nodeid: item for item in items}
        items[:] = [found[name] for name in self.seconds if name in found]

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        signal.alarm(30 + int(10 * self.seconds[nodeid]))  # not caught: the process ends
        self.verdict.write_text(nodeid, encoding="utf-8")


def judge(copy: Path, mutant: Mutant, tests: Mapping[str, float], verdict: Path) -> None:
    """Exit with 0 if no test noticed."""
    in_copy(copy, verdict.with_suffix(".log"))
    files = list(dict.fromkeys(map(file_of, tests)))
    changed = copy / mutant.path
    changed.write_text(mutated(changed.read_text(encoding="utf-8"), mutant.number), encoding="utf-8")
    os._exit(pytest.main([*OPTIONS, "-x", *files], plugins=[Judges(tests, verdict)]) if files else 0)


def judged(
    mutants: Sequence[Mutant], record: Record, original: Path, copies: Sequence[Path], limit: float
) -> Iterator[dict[str, Any]]:
    """What became of each, as each becomes known."""
    verdicts = original.parent / "verdicts"
    verdicts.mkdir()
    tasks = [
        Task(judge, (mutant, record.tests_for(mutant, limit), verdicts / mutant.key), (mutant.path,))
        for mutant in mutants
    ]
    for task, code, seconds in on_copies(tasks, original, copies):
        mutant, _, verdict = task.arguments
        by = verdict.read_text(encoding="utf-8") if code and verdict.exists() else ""
        yield {**vars(mutant), "key": mutant.key, "killed": code != 0, "by": by, "seconds": round(seconds, 1)}


def print_scores(known: Iterable[Mapping[str, Any]]) -> None:
    known = list(known)
    for result in known:
        if not result["killed"]:
            print(f"survived  {result['path']}:{result['line']}  {result['was']}  ->  {result['now']}")
    for package in PACKAGES:
        killed = [result["killed"] for result in known if result["package"] == package]
        if killed:
            print(f"{package:30} {sum(killed):3} of {len(killed):3} killed: {sum(killed) / len(killed):.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=80, help="mutants of each package; default 80")
    parser.add_argument("--seed", type=int, default=0, help="of the draw; default 0")
    parser.add_argument("--seconds", type=float, default=60, help="of tests for a mutant at most; default 60")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "mutants", help="folder; default build/mutants")
    parser.add_argument("--survivors", action="store_true", help="judge again those that survived")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    results = given.out / f"seed{given.seed}.jsonl"
    known = {}
    if results.exists():
        known = {found["key"]: found for found in map(json.loads, results.read_text(encoding="utf-8").splitlines())}
    for name in PRELOADED:
        importlib.import_module(name)
    with tempfile.TemporaryDirectory() as folder, results.open("a", encoding="utf-8") as stream:
        original, *copies = (a_copy(Path(folder) / name) for name in ("original", *map(str, range(PROCESSES))))
        mutants = sampled(original, PACKAGES, given.size, given.seed)
        again = [m for m in mutants if m.key not in known or (given.survivors and not known[m.key]["killed"])]
        record = recorded(original, copies, given.out)
        for number, result in enumerate(judged(again, record, original, copies, given.seconds), 1):
            known[result["key"]] = result
            print(json.dumps(result), file=stream, flush=True)
            how = "killed" if result["killed"] else "SURVIVED"
            print(f"{number}/{len(again)} {how} {result['path']}:{result['line']} {result['now']} "
                  f"({result['seconds']:.0f} s)", flush=True)  # fmt: skip
    print_scores(known[mutant.key] for mutant in mutants)


if __name__ == "__main__":
    main()
