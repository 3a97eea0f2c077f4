"""Run directories of a study that lie in the runs folders of several machines, brought together in one."""

import shutil
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.config.errors import ConfigError
from experiments.config.loading import resolve
from experiments.config.schema import RunConfig
from experiments.record.earlier_run import has_earlier_keys
from experiments.record.errors import RecordError
from experiments.record.ledger import LEDGER, append_lines, lines_of_study
from experiments.record.predictions import PREDICTIONS, read_predictions
from experiments.record.run_description import hash_run
from experiments.record.run_dir import RunDirectory
from experiments.record.starting_point import read_start
from experiments.studies.spec.study import Study
from experiments.studies.spec.tuning_config import combinations
from experiments.training.context import TrainingContext

COMPARED = ("score", "validation", "learning_rate", "seed")


@dataclass(frozen=True)
class Collected:
    """How many run directories came, were here before, and belong to nothing that the study wants.

    `earlier`: how many of the last were written with keys that have other names now. `unchecked`: how many of the
    others do not say what their files hold.
    """

    new: int
    known: int
    foreign: int
    earlier: int
    unchecked: int

    def __str__(self) -> str:
        text = (
            f"collected {self.new} run directories; {self.known} were here already, {self.foreign} belong to no trial "
            "of this study and stay where they are"
        )
        text += f" ({self.earlier} of them were written with earlier key names)" if self.earlier else ""
        without = f"; {self.unchecked} runs of an earlier version have no files_sha256, so their files are not checked"
        return text + (without if self.unchecked else "")


class Collection:
    """What belongs to a study: by its arms, its seeds, and the content of W0 and data."""

    def __init__(self, study: Study, context: TrainingContext, base_sha256: str, runs_dir: Path) -> None:
        self.study, self.context, self.base_sha256, self.runs_dir = study, context, base_sha256, runs_dir
        self.tuned = _tuned_knobs(study)
        self.arms = [(_apart(arm.config, self.tuned), arm.seed_offset) for arm in study.arms]
        self.seeds = study.config.seeds

    def take(self, folders: Sequence[Path]) -> Collected:
        """Every finished run of the study below `<folder>/<study>` is in this runs folder, with its ledger's lines.

        Raises: RecordError for a folder without this study, for a run directory that is not what its run wrote, and for
        two of one name that differ.
        """
        new = known = foreign = earlier = unchecked = 0
        for folder in folders:
            if not (folder / self.study.name).is_dir():
                raise RecordError(f"{folder} has no folder {self.study.name!r}; give the runs folder of a machine")
            for path in sorted((folder / self.study.name).iterdir()):
                if path.name.startswith(".") or not (path / "result.json").exists():
                    continue
                if not self.wants(path):
                    foreign += 1
                    earlier += has_earlier_keys(RunDirectory(path))
                    continue
                unchecked += not RunDirectory(path).has_sha256
                if self._take(path):
                    new += 1
                else:
                    known += 1
            _join_ledgers(folder, self.runs_dir, self.study.name)
        return Collected(new, known, foreign, earlier, unchecked)

    def wants(self, path: Path) -> bool:
        """Whether a finished run is one that a trial of the study would leave."""
        try:
            config = resolve(RunDirectory(path).config_tree())
        except ConfigError:
            return False
        own, seed = _apart(config, self.tuned), config.seed
        if not isinstance(seed, int) or not any(
            own == arm and seed - offset in self.seeds for arm, offset in self.arms
        ):
            return False
        start, data_sha256 = read_start(config.start), self.context.data_sha256
        config_hash = hash_run(config, base_sha256=self.base_sha256, data_sha256=data_sha256, start=start)
        return path.name.endswith(f"-{config_hash}")

    def _take(self, path: Path) -> bool:
        """False where the run directory is here already. Raises: RecordError for one that is not what the run wrote."""
        RunDirectory(path).check_files()
        run_dir = RunDirectory(self.runs_dir / self.study.name / path.name)
        if run_dir.finished:
            run_dir.check_files()
            tests = [RunDirectory(each).result().get("test") for each in (path, run_dir.path)]
            if _content(path) != _content(run_dir.path) or (None not in tests and tests[0] != tests[1]):
                raise RecordError(
                    f"{path} and {run_dir.path} are of one run and differ in what they learned or scored; "
                    "machines may round differently: keep one of them, and move the other away"
                )
            if tests[0] is not None and tests[1] is None:  # read there, of the same run
                run_dir.add_test(tests[0], read_predictions(path / PREDICTIONS).get("test", {}))
            return False
        partial = run_dir.path.with_name(f".{path.name}.collected")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(path, partial)
        with run_dir.locked():
            shutil.rmtree(run_dir.path, ignore_errors=True)
            partial.replace(run_dir.path)
        return True


def _tuned_knobs(study: Study) -> set[str]:
    """The variants' knobs that trials of one arm differ in."""
    if study.config.search is not None:
        return {"rank", "alpha", "alpha_per_rank", "learning_rate_ratio"}
    points = combinations(study.protocol.tuning.points.knobs)
    return {knob for arm in study.arms for point in points for knob in arm.at(point)}


def _apart(config: RunConfig, tuned: Set[str]) -> dict[str, Any]:
    """All but learning rate, seed and what else is tuned, which are a trial's own."""
    hashed_config = config.hashed_config()
    del hashed_config["seed"], hashed_config["training"]["learning_rate"]
    hashed_config["variant"] = {knob: of for knob, of in hashed_config["variant"].items() if knob not in tuned}
    return hashed_config


def _content(path: Path) -> Mapping[str, Any]:
    """What may not differ between two directories of one run."""
    result = RunDirectory(path).result()
    files = {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*.safetensors"))}
    return files | {name: result.get(name) for name in COMPARED}


def _join_ledgers(theirs: Path, ours: Path, study: str) -> None:
    """Their reads of the test split in this study stand in our ledger, each once."""
    if not (theirs / LEDGER).exists() or ((ours / LEDGER).exists() and (theirs / LEDGER).samefile(ours / LEDGER)):
        return
    there = lines_of_study(ours, study)
    append_lines(ours, [line for line in lines_of_study(theirs, study) if line not in there])
