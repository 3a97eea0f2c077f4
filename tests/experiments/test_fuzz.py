"""Thousands of requests, most of them wrong: each ends with an exit code and words of ours, never with a traceback."""

import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from fuzzed_commands import adapter_cases, run_cases, study_cases
from fuzzed_files import file_cases
from fuzzed_trees import Places
from fuzzing import Case, Ended, carry_out, refuse_faults

from analysis import spectra
from experiments import run, study
from experiments.studies import plan
from experiments.studies.workers import packing

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="memory is bounded by Linux's means"),
]
MAINS = {"run.py": run.main, "study.py": study.main, "spectra.py": spectra.main}
SEED = 0


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its driver takes more memory than a case may have."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.user_cache.user_cache_path", lambda name: tmp_path / "cache" / name)


@pytest.fixture
def places(own_cache: None, tmp_path: Path) -> Places:
    return Places.made(tmp_path)


def carried_out(cases: Iterable[Case], folder: Path) -> list[Ended]:
    found = []
    for case in cases:
        found.append(carry_out(case, MAINS[case.command], folder / "cases" / str(case.number)))
        torch.set_num_threads(1)  # a case may have asked for others
    return found


def test_any_run_configuration_and_command_line_ends_with_an_exit_code_and_words(
    tmp_path: Path, places: Places
) -> None:
    found = carried_out(run_cases(SEED, 2000, places, trained=0.05), tmp_path)
    refuse_faults(found, least_good=0.3, least_kinds=150)


def test_any_study_file_ends_with_an_exit_code_and_words(
    tmp_path: Path, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "PATIENCE_SECONDS", 0.0)  # the speeds of packs are of no interest here
    monkeypatch.setattr(packing, "PROBE_SECONDS", 0.0)
    monkeypatch.setattr(packing, "LARGEST_PACK", 2)
    found = carried_out(study_cases(SEED, 500, places), tmp_path)
    refuse_faults(found, least_good=0.25, least_kinds=80)


def test_any_adapter_ends_with_an_exit_code_and_words(tmp_path: Path) -> None:
    found = carried_out(adapter_cases(SEED, 100), tmp_path)
    refuse_faults(found, least_good=0.25, least_kinds=20)


def test_any_data_base_model_and_run_directory_ends_with_an_exit_code_and_words(tmp_path: Path, places: Places) -> None:
    found = carried_out(file_cases(SEED, 300, places), tmp_path)
    refuse_faults(found, least_good=0.2, least_kinds=40)
