"""What runs, PEFT and loralib left on disk, read as updates ΔW: the one place where adapters are read."""

import stat
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from experiments.record.adapter_formats import CONFIG, DELTA, HEAD, PICKLED_WEIGHTS, WEIGHTS, Adapter, RunStoreError
from experiments.record.adapter_keys import parts_by_matrix, refuse_twice
from experiments.record.adapter_updates import loralib_adapter, peft_adapter
from experiments.record.finished_runs import check_adapter
from experiments.record.peft_config import read_peft_config
from experiments.record.tensor_files import CHECKPOINT_SUFFIXES, has_file, kind_of, read_tensors
from lora_variants.interface.warm_start import Update, shape_of


def read_adapter(path: Path) -> Adapter:
    """The adapter at `path`: a finished run's folder, a PEFT adapter's (LoRA or AdaLoRA), or a loralib checkpoint.

    Raises: RunStoreError, whose text is for the user.
    """
    folder = adapter_folder(path)
    if folder is None:
        return _read_loralib(path)
    run = run_of(folder)
    if run is not None and not has_file(run / "result.json"):
        raise RunStoreError(
            f"a run is read once it is finished; {run} has a config.yaml but no result.json: "
            "run it again to finish it (error.txt, if there, says what stopped it)"
        )
    if any(has_file(folder / name) for name in (DELTA, WEIGHTS, PICKLED_WEIGHTS, HEAD, "result.json")):
        return read_folder(folder)
    raise RunStoreError(
        f"a folder is read if it holds {WEIGHTS}, {PICKLED_WEIGHTS} or {DELTA}; {folder} holds neither: "
        "give the folder of one run or of one PEFT adapter"
    )


def adapter_folder(path: Path) -> Path | None:
    """The folder of a run or of a PEFT adapter, also where one of its files was given; None for any other file.

    Raises: RunStoreError where nothing is.
    """
    kind = kind_of(path)
    if kind is None:
        raise RunStoreError(f"a run is a folder or a checkpoint file; {path} does not exist: check the path")
    if kind == stat.S_IFDIR:
        return path
    of_peft = path.name in (WEIGHTS, PICKLED_WEIGHTS) and has_file(path.parent / CONFIG)
    return path.parent if of_peft or path.name == DELTA else None


def run_of(folder: Path) -> Path | None:
    """The run directory that a folder is, or that it is a layout of, as `adalora/` is; None without one."""
    if has_file(folder / "config.yaml"):
        return folder
    above = folder.resolve().parent
    is_layout = all(has_file(file) for file in (folder / CONFIG, above / "config.yaml", above / "environment.json"))
    return above if is_layout else None


def read_folder(folder: Path) -> Adapter:
    """What is in a folder, finished or not; nothing where a run adapted nothing.

    Where there is a `delta.safetensors`, that is ΔW, whatever factors lie beside it.
    """
    check_adapter(folder)
    heads = read_tensors(folder / HEAD) if has_file(folder / HEAD) else {}
    weights = next((folder / name for name in (WEIGHTS, PICKLED_WEIGHTS) if has_file(folder / name)), None)
    if has_file(folder / DELTA):
        beside = {} if weights is None else _heads_beside_factors(read_tensors(weights), folder)
        return Adapter(dict(_read_delta(folder / DELTA)), _together(heads, beside, folder))
    if weights is None:
        return Adapter({}, heads)
    config = read_peft_config(folder / CONFIG)
    adapter = peft_adapter(read_tensors(weights), config).under(config.body)
    return replace(adapter, others=_together(heads, adapter.others, folder))


def _together(heads: Mapping[str, Tensor], beside: Mapping[str, Tensor], folder: Path) -> dict[str, Tensor]:
    if both := sorted(heads.keys() & beside.keys()):
        raise RunStoreError(f"{both[0]} stands twice in {folder}, in {HEAD} too: leave it out of one file")
    return {**heads, **beside}


def _read_delta(path: Path) -> dict[str, Update]:
    updates: dict[str, Update] = dict(read_tensors(path))
    refuse_twice(updates, path)
    if empty := [name for name, update in updates.items() if 0 in shape_of(update)]:
        raise RunStoreError(f"a ΔW has at least one entry; {empty[0]} in {path} has none: leave it out")
    return updates


def _heads_beside_factors(tensors: Mapping[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """The tensors of an adapter that are not of an update, whatever the parts of its updates are."""
    return parts_by_matrix({key: t for key, t in tensors.items() if ".lora_" not in key}, folder).others


def _read_loralib(path: Path) -> Adapter:
    if path.suffix == ".safetensors":
        raise RunStoreError(
            f"of safetensors files those of a folder are read: {WEIGHTS} with its {CONFIG} (PEFT), or {DELTA}; this is "
            f"{path}: give it that name and the file beside it, then give the folder"
        )
    if path.suffix not in CHECKPOINT_SUFFIXES:
        raise RunStoreError(
            f"a checkpoint file ends in {', '.join(CHECKPOINT_SUFFIXES)}; this is {path}: "
            "for a safetensors adapter give its folder"
        )
    has_file(path)
    return loralib_adapter(read_tensors(path), path)
