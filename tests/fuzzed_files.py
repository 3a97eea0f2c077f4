"""What requests name lies on disk: data, base models and finished runs, with damage to one of their files."""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

from fuzzed_adapters import damaged
from fuzzed_text import ODD_BYTES, read
from fuzzed_trees import TINY, Files, Places, over
from fuzzed_values import any_value, mutated
from fuzzing import Case
from project_paths import CONFIGS

TWO_STEPS = {"steps": 2, "batch_size": 8, "threads": 1, "device": "cpu", "evaluate_every": 0, "learning_rate": 1e-2}


def file_cases(seed: int, count: int, places: Places) -> Iterator[Case]:
    """Of data, models and runs in turn."""
    makers: tuple[Callable[[random.Random, Places], tuple[list[str], Files]], ...] = (_data, _model, _run)
    for number in range(count):
        rng = random.Random(f"file {seed} {number}")
        arguments, files = makers[number % 3](rng, places)
        command = "spectra.py" if arguments[0].startswith("runs") else "run.py"
        yield Case(number, command, arguments, files)


def _data(rng: random.Random, places: Places) -> tuple[list[str], Files]:
    """Damaged tables of labelled sentences, or damaged lines."""
    lines = rng.random() < 0.4
    files = contents(places.lines if lines else places.labelled, "data")
    name = rng.choice(list(files))
    files[name] = _another_table(rng, files[name] or b"")
    if rng.random() < 0.15:
        files[name + rng.choice((".gz", ".csv", ".jsonl", ".parquet", ".txt"))] = files.pop(name)
    arguments, own = _text_run(rng, lines=lines, model=places.decoder if lines else places.encoder, data="data")
    return arguments, files | own


def _another_table(rng: random.Random, content: bytes) -> bytes | None:
    """A table after an accident."""
    rows = content.splitlines(keepends=True)
    i = rng.randrange(len(rows))
    odd = rng.choice(
        (b"", b"\t", b"x\n", b"x\ty\tz\n", b'"open\t1\n', b"\n", b"a\t2\n", b"a\tnan\n", b"||\n", b"a||\n", *ODD_BYTES)
    )
    return rng.choice(
        (
            None, b"", rows[0], b"".join(rows[1:]), b"".join([*rows[:i], odd, *rows[i:]]), b"".join([*rows[:i], odd,
            *rows[i + 1 :]]),
            content.replace(b"\t", b","), content.replace(b"\n", b"\r\n"), content.replace(b"label", b"sentence"),
            b"x" * 100_000,
            content.decode().encode("utf-16"), b"\xef\xbb\xbf" + content, damaged(rng, content),
            content.replace(b"\t1", b"\t0"),
            json.dumps({"sentence": "a cat", "label": any_value(rng)}).encode(), b"\n" * 50,
            b'"' + content, rows[0] * 5,
        )
    )  # fmt: skip


def _model(rng: random.Random, places: Places) -> tuple[list[str], Files]:
    """A damaged folder of a base model."""
    decodes = rng.random() < 0.4
    files = _damaged(rng, contents(places.decoder if decodes else places.encoder, "model"))
    data = places.lines if decodes else places.labelled
    arguments, own = _text_run(rng, lines=decodes, model="model", data=data)
    return arguments, files | own


def _run(rng: random.Random, places: Places) -> tuple[list[str], Files]:
    """A damaged run directory: found again by the same command, read by spectra.py, or started from."""
    where = f"runs/single/{Path(places.run).name}"
    files = _damaged(rng, contents(places.run, where))
    if rng.random() < 0.3:
        return [where, "--out", "figures"], files
    tree = TINY | {"training": TINY["training"] | {"steps": 2}}
    started = [
        ["--start-from", where, "--runs-dir", "others"],
        ["--runs-dir", "runs", *["--test"] * (rng.random() < 0.5)],
    ]
    flags = ["--config", "case.yaml", "--wandb", "disabled", *rng.choice(started)]
    return flags, files | {"case.yaml": json.dumps(tree).encode()}


def _damaged(rng: random.Random, files: Files) -> Files:
    """The files with one of them changed, which comes first, or taken away."""
    name = rng.choice(list(files))
    kept = {other: content for other, content in files.items() if other != name}
    content = files[name] or b""
    if name.endswith(".json") and rng.random() < 0.6:
        return {name: json.dumps(mutated(rng, json.loads(content))).encode(), **kept}
    return kept if rng.random() < 0.2 else {name: damaged(rng, content), **kept}


def _text_run(rng: random.Random, *, lines: bool, model: str, data: str) -> tuple[list[str], Files]:
    """A text task over these folders; half of the runs train two steps."""
    tree = over(read(CONFIGS / ("stories.yaml" if lines else "cola.yaml")), model, data) | {"training": TWO_STEPS}
    flags = ["--config", "case.yaml", "--wandb", "disabled", *["--plan"] * (rng.random() < 0.5)]
    return flags, {"case.yaml": json.dumps(tree).encode()}


def contents(folder: str, name: str) -> Files:
    """The files of a folder, under another name for it."""
    return {f"{name}/{path.name}": path.read_bytes() for path in sorted(Path(folder).iterdir()) if path.is_file()}
