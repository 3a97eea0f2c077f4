"""One case of a fuzz test: files and a command line, carried out in this process within bounds of time and memory."""

import faulthandler
import io
import re
import resource
import shlex
import signal
import sys
import time
import traceback
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CODES = (0, 1, 2, 130)
CPU_SECONDS = 5.0  # of a case, at most
PATIENCE_SECONDS = 30.0  # until a case is stopped
LAST_RESORT_SECONDS = 180.0  # until the process is, where a case does not stop
MEMORY_BYTES = 3 * 2**30  # that a case may take, on top of what the process has
SHOWN_FILES = 3
SHOWN_CHARACTERS = 1500  # of a file, where a case fails
SHOWN_FAULTS = 20
RAW_WORDS = (  # of errors of Python and torch, which say nothing where nothing else is named
    "invalid literal for", "object has no attribute", "not supported between", "index out of range",
    "not subscriptable",
    "maximum recursion depth", "unhashable type", "Exceeds the limit", "must be in ", "must be a timedelta",
    "is out of range",
    "not enough values",
    "too many values", "cannot convert", "object cannot be", "embedded null", "surrogates not allowed",
    "codec can't encode",
    "argument must be", "takes no arguments", "unsupported operand", "Overflow", "too large to convert", "enforce fail",
)  # fmt: skip

NAMED = re.compile(
    r"\.(yaml|json|safetensors|bin|pt|pth|ckpt|txt|tsv)\b|error: (argument )?[\w.-]+: "
)  # a file or a key

Main = Callable[[list[str]], int]


class StoppedError(BaseException):
    """A case took too long; no `except Exception` catches this."""


@dataclass(frozen=True)
class Case:
    """A command line in a folder with these files, by path; None is a folder."""

    number: int
    command: str
    arguments: Sequence[str]
    files: Mapping[str, bytes | None] = field(default_factory=dict)

    def __str__(self) -> str:
        """What reproduces it, shortened."""
        lines = [f"case {self.number}: {self.command} {shlex.join(map(_shortened, self.arguments))}"]
        names = list(self.files)
        lines += [f"--- {name}\n{_shown(self.files[name])}" for name in names[:SHOWN_FILES]]
        lines += [f"--- and {', '.join(names[SHOWN_FILES:])}"] if names[SHOWN_FILES:] else []
        return "\n".join(lines)


@dataclass(frozen=True)
class Ended:
    """What became of a case; `fault` says in a line what may not be so, and is empty for most."""

    case: Case
    code: int | None
    output: str
    seconds: float
    fault: str = ""
    trace: str = ""


def carry_out(case: Case, main: Main, folder: Path) -> Ended:
    """Write the case's files into a new folder and run the command there; `case.txt` beside it says what runs."""
    folder.mkdir(parents=True)
    (folder.parent / "case.txt").write_text(str(case), errors="backslashreplace")
    for name, content in case.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir() if content is None else path.write_bytes(content)
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", errors=how) for how in ("strict", "backslashreplace"))
    code, fault, trace = None, "", ""
    since = time.process_time()
    try:
        with chdir(folder), redirect_stdout(out), redirect_stderr(err), _bounded(), warnings.catch_warnings():
            code = main(list(case.arguments))
    except SystemExit as leaving:  # argparse's
        code = leaving.code if isinstance(leaving.code, int) else 1
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever it is, it is what is looked for
        fault, trace = _kind(error), traceback.format_exc(limit=-6)
    seconds, output = time.process_time() - since, _text(out) + _text(err)
    return Ended(case, code, output, seconds, fault or _fault(code, output, seconds), trace)


def refuse_faults(found: Sequence[Ended], *, least_good: float, least_kinds: int) -> None:
    """Print what the cases came to; raise AssertionError with a case of every kind of fault.

    So that the generators stay what they are: `least_good` is the share of cases that must have ended with 0, and
    `least_kinds` how many different errors must have been told.
    """
    codes, told = Counter(ended.code for ended in found), kinds_of_errors(found)
    seconds = sorted((ended.seconds, ended.case.number) for ended in found)
    print(
        f"{len(found)} cases in {sum(s for s, _ in seconds):.0f} CPU seconds; exit codes: {dict(codes)}; the slowest:"
    )
    print(*(f"{s:.1f} s (case {number})" for s, number in seconds[:-6:-1]), sep=", ")
    print(f"{len(told)} kinds of errors:", *(f"{count:5} {words}" for words, count in told.most_common()), sep="\n")
    faults: dict[str, list[Ended]] = defaultdict(list)
    for ended in found:
        if ended.fault:
            faults[re.sub(r"\d+", "N", ended.fault)].append(ended)
    assert not faults, _described(faults)
    assert codes[0] >= least_good * len(found)
    assert len(told) >= least_kinds


def kinds_of_errors(found: Iterable[Ended]) -> Counter[str]:
    """The messages by their words, without names and numbers."""
    lines = (
        line for ended in found for line in ended.output.splitlines() if re.match(r"(\w+\.py: )?(error|failed):", line)
    )
    return Counter(
        re.sub(r"'[^']*'|\"[^\"]*\"|[\[{(].*?[\]})]|[-+]?\d[\d.,e]*|\S*/\S+", "_", line)[:120] for line in lines
    )


def _described(faults: Mapping[str, Sequence[Ended]]) -> str:
    most_first = sorted(faults.items(), key=lambda item: -len(item[1]))
    parts = [f"{len(faults)} kinds of faults, {sum(map(len, faults.values()))} in all"]
    for kind, ones in most_first[:SHOWN_FAULTS]:
        smallest = min(ones, key=lambda ended: len(str(ended.case)))
        parts.append(f"=== {len(ones)} x {kind}\n{smallest.case}\n{smallest.trace or smallest.output[-1000:]}")
    return "\n\n".join([*parts, *(f"=== {len(ones)} x {kind}" for kind, ones in most_first[SHOWN_FAULTS:])])


def _fault(code: int | None, output: str, seconds: float) -> str:
    if code not in CODES:
        return f"exit code {code!r}"
    if "Traceback (most recent call last)" in output:
        return f"a traceback: {output.strip().splitlines()[-1][:100]}"
    if code and not output.strip():
        return f"exit code {code} without a word"
    raw = [line for line in output.splitlines() if any(words in line for words in RAW_WORDS) and not NAMED.search(line)]
    if code and raw:
        return f"raw words: {raw[0][:120]}"
    return f"more than {CPU_SECONDS:g} seconds" if seconds > CPU_SECONDS else ""


def _kind(error: BaseException) -> str:
    """The error, its first words and the last place of ours that it came through."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if re.search(r"/(lora_variants|experiments|analysis)/[^:]*$", frame.filename)]
    last = (ours or frames)[-1]
    place = "/".join(Path(last.filename).parts[-2:])
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')[:100]} [{place} {last.name}]"


@contextmanager
def _bounded() -> Iterator[None]:
    """Stop after a while, and have no more memory than that."""

    def stop(*_: object) -> None:
        raise StoppedError(f"stopped after {PATIENCE_SECONDS:g} seconds")

    before, limits = signal.signal(signal.SIGALRM, stop), resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most if limits[1] < 0 else min(most, limits[1]), limits[1]))
    faulthandler.dump_traceback_later(LAST_RESORT_SECONDS, exit=True, file=sys.__stderr__)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.signal(signal.SIGALRM, before)


def _text(stream: io.TextIOWrapper) -> str:
    stream.flush()
    buffer: Any = stream.buffer
    return bytes(buffer.getvalue()).decode("utf-8", errors="replace")


def _shortened(text: str, most: int = 300) -> str:
    return text if len(text) <= most else f"{text[:most]}... ({len(text)} characters)"


def _shown(content: bytes | None) -> str:
    if content is None:
        return "a folder"
    try:
        return _shortened(content.decode(), SHOWN_CHARACTERS)
    except UnicodeDecodeError:
        return _shortened(repr(content), SHOWN_CHARACTERS)
