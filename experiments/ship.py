"""Builds the files that come with the package anew: the bases of `bytes` and `digits`, and the texts of `bytes`.

For developers, and for the Python that the files were built with: a base comes from that Python's standard library.
"""

import os
import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) == signal.default_int_handler:
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # nothing is written before all is built

import argparse
import hashlib
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from experiments.models.weights import Report

ROOT = Path(__file__).resolve().parent.parent
if not __package__:  # run as a script: the project belongs on the path, this folder does not
    sys.path[:] = [str(ROOT), *(entry for entry in sys.path if entry != str(ROOT / "experiments"))]

BUILT_WITH = "3.11.7"
# Of its standard library, which holds the settings that Python was built with.
SOURCE_SHA256 = "72bf4d52312c98b7a54d25bd1f7b8705efaab01558ffee9e252149e5cbe83114"
HELD_OUT = {"validation": 3, "test": 7}  # of every eight topics in alphabetical order


class OtherSourceError(ValueError):
    """The standard library of this Python is not the text that the shipped base was pretrained on."""


def build_files(report: "Report") -> dict[str, bytes]:
    """Every shipped file by its name; takes two minutes of one core. Raises: OtherSourceError."""
    import torch
    from safetensors.torch import save

    from experiments.models.byte_pretraining import Recipe, pretrain, stdlib_source
    from experiments.models.digit_transformer import DigitRecipe, DigitTransformer, pretrain_digits
    from experiments.models.transformer import ByteTransformer
    from experiments.tasks.digits import Digits, DigitsConfig

    torch.set_num_threads(1)  # as runs have it
    text = stdlib_source()
    if (found := hashlib.sha256(text).hexdigest()) != SOURCE_SHA256:
        raise OtherSourceError(
            f"the standard library of this Python {platform.python_version()} is not the text that the shipped base of "
            f"bytes was pretrained on, that of {BUILT_WITH} where it was built; to ship another base, set BUILT_WITH "
            f"and SOURCE_SHA256 in {Path(__file__).name} to this version and {found}"
        )
    of_bytes, of_digits = ByteTransformer(), DigitTransformer()
    pretrain(of_bytes, text, Recipe(), report)
    known_digits = Digits(DigitsConfig()).known_digits  # type: ignore[call-arg]
    pretrain_digits(of_digits, *known_digits, DigitRecipe(), report)
    bases = {"bytes": of_bytes, "digits": of_digits}
    topics = {f"bytes_{split}.txt": joined for split, joined in topics_by_split().items()}
    return {f"{name}.safetensors": save(base.state_dict()) for name, base in bases.items()} | topics


def topics_by_split() -> dict[str, bytes]:
    """The topics of this Python's `help()`, joined for each split; a topic is in one split only."""
    from pydoc_data.topics import topics

    kept: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for place, name in enumerate(sorted(topics)):
        split = next((split for split, rest in HELD_OUT.items() if place % 8 == rest), "train")
        kept[split].append(topics[name])
    return {split: "\n".join(parts).encode() for split, parts in kept.items()}


def relative_distance(weights: bytes, others: bytes) -> float:
    """||W - W'|| / ||W'|| over all tensors of two safetensors files (Frobenius norm)."""
    from safetensors.torch import load

    ours, theirs = load(weights), load(others)
    gap = sum(float((ours[name].double() - tensor.double()).square().sum()) for name, tensor in theirs.items())
    return (gap / sum(float(tensor.double().square().sum()) for tensor in theirs.values())) ** 0.5


def parser() -> argparse.ArgumentParser:
    """The command line of this script."""
    return argparse.ArgumentParser(prog="ship.py", description=__doc__, allow_abbrev=False)


def main(arguments: list[str] | None = None) -> int:
    """Write the files and print what `SHA256` in shipped_files.py must say; 2 where this Python cannot build them."""
    parser().parse_args(arguments)
    from experiments.shipped_files import FOLDER
    from experiments.terminal import Display, print_errors

    display = Display()
    try:
        with display.live():
            files = build_files(display.report)
    except (OtherSourceError, OSError) as error:
        print_errors([str(error)])
        return 2
    FOLDER.mkdir(exist_ok=True)
    for name, content in files.items():
        path = FOLDER / name
        if path.suffix == ".safetensors" and path.exists():
            display.say(f"{name}: {relative_distance(content, path.read_bytes()):.2g} from the one that was here")
        path.write_bytes(content)
        display.say(f'    "{name}": "{hashlib.sha256(content).hexdigest()}",')
    return 0


if __name__ == "__main__":
    from experiments.training.interruption import run_command

    run_command(main)
