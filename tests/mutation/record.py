"""What the default suite runs before a line is changed: of every line of the core the tests that run it."""

import json
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from copies import OPTIONS, Task, file_of, in_copy, on_copies, sha256
from mutants import PACKAGES, Mutant

CHUNKS = 12  # of the test files: one that is slow keeps no process waiting


class Recorder:
    """A pytest plugin: which test runs which lines, and in which time."""

    def __init__(self, coverage: Any) -> None:
        self.coverage = coverage
        self.seconds: dict[str, float] = {}
        self.failed: set[str] = set()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.coverage.switch_context(item.nodeid)
        started = time.perf_counter()
        result = yield
        self.seconds[item.nodeid] = time.perf_counter() - started
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.add(report.nodeid)


def record_lines(copy: Path, files: Mapping[str, str], out: Path) -> None:
    """Run these test files, and write the tests with their seconds, and of every line the tests that run it."""
    from coverage import Coverage

    in_copy(copy, out.with_suffix(".log"))
    coverage = Coverage(data_file=None, source=[str(copy / package) for package in PACKAGES], config_file=False)
    recorder = Recorder(coverage)
    coverage.start()
    pytest.main([*OPTIONS, *files], plugins=[recorder])
    coverage.stop()
    data = coverage.get_data()
    lines = {
        str(Path(file).relative_to(copy)): {
            line: sorted({*names} - {""}) for line, names in data.contexts_by_lineno(file).items()
        }
        for file in data.measured_files()
    }
    seconds = {test: seconds for test, seconds in recorder.seconds.items() if test not in recorder.failed}
    out.write_text(json.dumps({"files": files, "seconds": seconds, "lines": lines}), encoding="utf-8")
    os._exit(0)


class Record:
    """What the suite did before a line was changed, of the test files that are still the same."""

    def __init__(self, parts: Iterable[Mapping[str, Any]], files: Mapping[str, str]) -> None:
        self.seconds: dict[str, float] = {}
        self.lines: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
        for part in parts:
            same = {file for file, sha in part["files"].items() if files.get(file) == sha}
            self.seconds |= {name: cost for name, cost in part["seconds"].items() if file_of(name) in same}
            for file, lines in part["lines"].items():
                for line, names in lines.items():
                    self.lines[file][int(line)].update(name for name in names if file_of(name) in same)

    def tests_for(self, mutant: Mutant, limit: float) -> dict[str, float]:
        """Those that run its line, then the rest of their files, then its folder's, then all that run its file.

        Quick files first. A constant's line runs once, at the import, and studies train in processes of their own.
        """
        lines = self.lines[mutant.path]
        direct = {name for line in range(mutant.line, mutant.last_line + 1) for name in lines[line]}
        beside = {file_of(name) for name in direct}
        around = {file_of(name) for names in lines.values() for name in names}
        by_file: dict[tuple[int, str], list[str]] = defaultdict(list)
        for name in self.seconds:
            file = file_of(name)
            near = mutant.package.startswith("/".join(Path(file).parent.parts[1:]))
            level = 0 if name in direct else 1 if file in beside else 2 if near else 3 if file in around else None
            if level is not None:
                by_file[level, file].append(name)
        costs = {key: sum(self.seconds[name] for name in names) for key, names in by_file.items()}
        stem = Path(mutant.path).stem
        chosen: dict[str, float] = {}
        for level, file in sorted(by_file, key=lambda key: (key[0], stem not in Path(key[1]).stem, costs[key])):
            for name in sorted(by_file[level, file], key=self.seconds.__getitem__):
                if sum(chosen.values()) > limit:
                    return chosen
                chosen[name] = self.seconds[name]
        return chosen


def recorded(original: Path, copies: Sequence[Path], out: Path) -> Record:
    """Of a run of the suite; kept in `out`, so that only new and changed test files run again."""
    sources = [path for package in PACKAGES for path in sorted((original / package).rglob("*.py"))]
    folder = out / f"lines_{sha256(b''.join(path.read_bytes() for path in sources))}"
    folder.mkdir(exist_ok=True)
    paths = [
        path for path in sorted((original / "tests").rglob("test_*.py")) if path.parent != original / "tests"
    ]  # not layout
    files = {str(path.relative_to(original)): sha256(path.read_bytes()) for path in paths}
    known = {pair for part in folder.glob("*.json") for pair in json.loads(part.read_text())["files"].items()}
    stale = [pair for pair in files.items() if pair not in known]
    chunks = [dict(stale[number::CHUNKS]) for number in range(min(CHUNKS, len(stale)))]
    tasks = [Task(record_lines, (chunk, folder / f"{sha256(repr(chunk).encode())}.json")) for chunk in chunks]
    for number, _ in enumerate(on_copies(tasks, original, copies), 1):
        print(f"part {number} of {len(tasks)} of the tests recorded", flush=True)
    return Record((json.loads(part.read_text(encoding="utf-8")) for part in sorted(folder.glob("*.json"))), files)
