"""The benchmark: implementations do the same mathematics over one frozen model, and every number shown is kept."""

import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from project_paths import ROOT
from torch import Tensor, nn

from analysis.figures.benchmark import benchmark_figure
from experiments import benchmark
from experiments.benchmarking import footprint, measurement, timing
from experiments.benchmarking import implementations as implementations_module
from experiments.benchmarking.cases import Case, standard_cases
from experiments.benchmarking.implementations import (
    BUILDERS,
    FROZEN,
    PEFT,
    FrozenLinear,
    Implementation,
    gradients,
    largest_differences,
)
from experiments.benchmarking.results import Result
from experiments.benchmarking.terminal import progress_bars
from experiments.benchmarking.timing import time_rounds
from experiments.benchmarking.workload import Workload, build_workload, in_place
from experiments.terminal import Display

CPU = torch.device("cpu")
TINY = Case(width=16, layers=2, heads=2, batch_size=2, length=8, rank=3)
KINDS = [
    replace(TINY, model=model, targets=targets) for model in ("bert", "byte_transformer") for targets in ("all", "qv")
]
SHAPE = ["--width", "16", "--layers", "1", "--heads", "2", "--batch-size", "2", "--length", "8", "--rank", "2"]
QUICK = [*SHAPE, "--processes", "0", "--rounds", "2"]

of_every_kind = pytest.mark.parametrize("case", KINDS, ids=lambda case: f"{case.model}-{case.targets}")


def built(case: Case) -> tuple[Workload, dict[str, Implementation]]:
    workload = build_workload(case, CPU)
    return workload, {name: build(workload) for name, build in BUILDERS.items()}


@pytest.fixture
def one_step_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "ROUND_SECONDS", 0.0)
    monkeypatch.setattr(timing, "WARM_UP_STEPS", 1)


def written(folder: Path) -> dict:
    return json.loads((folder / "benchmark.json").read_text(encoding="utf-8"))


# --- the same mathematics


@of_every_kind
def test_every_implementation_is_computed_by_the_same_base_over_the_same_frozen_weights(case: Case) -> None:
    workload = build_workload(case, CPU)
    own = dict(workload.base.named_modules())
    weights = {p.data_ptr() for p in workload.base.parameters()}
    implementations = {name: build(workload) for name, build in BUILDERS.items()}
    calls: list[nn.Module] = []
    workload.base.register_forward_pre_hook(lambda module, _: calls.append(module))
    for name, implementation in implementations.items():
        assert tuple(implementation.modules) == workload.paths
        with in_place(workload.base, implementation.modules):
            assert all(workload.base.get_submodule(path) is module for path, module in implementation.modules.items())
            frozen = {p.data_ptr() for p in workload.base.parameters() if not p.requires_grad}
            implementation.loss()
        assert frozen == weights, name
        assert calls.pop() is workload.base, name
        assert not calls
    now = dict(workload.base.named_modules())
    assert now.keys() == own.keys()
    assert all(now[path] is module for path, module in own.items())


@of_every_kind
def test_ours_peft_and_loralib_train_as_many_parameters(case: Case) -> None:
    workload, implementations = built(case)
    linears = [workload.linear(path) for path in workload.paths]
    assert len(linears) == case.layers * (6 if case.targets == "all" else 2)
    expected = sum(case.rank * (linear.in_features + linear.out_features) for linear in linears)
    counts = {name: implementation.trainable_parameters for name, implementation in implementations.items()}
    assert counts == dict.fromkeys(BUILDERS, expected) | {FROZEN: 0}


@of_every_kind
def test_ours_peft_and_loralib_have_the_same_loss_and_gradients(case: Case) -> None:
    workload, implementations = built(case)
    differences = largest_differences(workload, implementations)
    assert differences["loss"] <= 1e-5
    assert differences["gradient"] <= 1e-5
    for implementation in implementations.values():
        with in_place(workload.base, implementation.modules):
            implementation.loss().backward()
        if implementation.factors:
            found = gradients(implementation, case.rank)
            assert len(found) == 2 * len(workload.paths)
            assert all(gradient.norm() > 0 for gradient in found)


def test_an_implementation_with_another_scale_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def scaled(workload: Workload) -> Implementation:
        implementation = implementations_module.build_loralib(workload)
        for module in implementation.modules.values():
            module.scaling *= 1.01
        return implementation

    monkeypatch.setitem(BUILDERS, "loralib", scaled)
    with pytest.raises(RuntimeError, match="do not compute the same: gradient differs by"):
        measurement.measure(TINY, CPU, {}, rounds=1, processes=0, report=lambda *_: None)


@of_every_kind
def test_a_step_moves_a_and_b_alone_and_alike(case: Case) -> None:
    workload, implementations = built(case)
    before = {name: p.clone() for name, p in workload.base.named_parameters()}
    moved: dict[str, list[Tensor]] = {}
    for name, implementation in implementations.items():
        parameters = [p for pair in implementation.factors.values() for p in pair]
        start = [p.detach().clone() for p in parameters]
        with in_place(workload.base, implementation.modules):
            implementation.step()
        assert all(p.grad is None or not p.grad.any() for p in parameters), f"{name}: zeroed behind the step"
        moved[name] = [float((p.detach() - s).norm()) for p, s in zip(parameters, start, strict=True)]
    assert min(moved[PEFT]) > 0
    for name in BUILDERS.keys() - {FROZEN}:
        assert np.allclose(moved[name], moved[PEFT], rtol=0.02, atol=0), name
    assert all(torch.equal(p, before[name]) for name, p in workload.base.named_parameters())


@of_every_kind
def test_the_frozen_model_s_backward_ends_at_the_outputs_of_the_first_adapted_layers(case: Case) -> None:
    workload, implementations = built(case)
    frozen = implementations[FROZEN]
    outputs: dict[str, Tensor] = {}
    for path, module in frozen.modules.items():
        assert isinstance(module, FrozenLinear)
        module.register_forward_hook(lambda _, __, y, path=path: outputs.update({path: y}))
    with in_place(workload.base, frozen.modules):
        frozen.step()
    first = [path for path in workload.paths if path.rpartition(".")[2] in ("query", "key", "value") and ".0." in path]
    assert [path for path in workload.paths if outputs[path].is_leaf] == first
    assert all(outputs[path].grad is not None for path in first)
    assert all(outputs[path].requires_grad for path in workload.paths)
    assert all(p.grad is None for p in workload.base.parameters())


def test_in_bfloat16_the_implementations_agree_as_far_as_its_rounding_goes() -> None:
    measured = measurement.measure(
        replace(TINY, precision="bfloat16"), CPU, {}, rounds=1, processes=0, report=lambda *_: None
    )
    assert 1e-4 < measured.differences["gradient"] < measurement.ALLOWED_DIFFERENCE["bfloat16"]


# --- how it is measured


def test_the_order_of_the_implementations_rotates(one_step_a_round: None) -> None:
    order: list[str] = []
    workload = build_workload(TINY, CPU)
    parts = {
        name: Implementation({}, {}, 0, lambda: torch.zeros((), requires_grad=True), lambda: None) for name in "abc"
    }
    noted = {
        name: replace(part, update=lambda name=name: order.append(name))  # type: ignore[misc]
        for name, part in parts.items()
    }
    done: list[int] = []
    seconds = time_rounds(workload, noted, rounds=4, on_round=lambda: done.append(1))
    assert "".join(order[-12:]) == "abcbcacababc"
    assert {name: len(numbers) for name, numbers in seconds.items()} == dict.fromkeys("abc", 4)
    assert len(done) == 12


def test_timing_puts_threads_and_modules_back(one_step_a_round: None) -> None:
    workload, implementations = built(TINY)
    own = [workload.linear(path) for path in workload.paths]
    torch.set_num_threads(2)
    try:
        time_rounds(workload, implementations, rounds=1, on_round=lambda: None)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert [workload.linear(path) for path in workload.paths] == own


def test_no_thread_draws_while_steps_are_timed() -> None:
    before = threading.active_count()
    with progress_bars(Display()) as report:
        report("a case", 1, 2)
        assert threading.active_count() == before


def test_time_is_compared_within_a_round_and_memory_with_the_median() -> None:
    result = Result(
        case=TINY, trainable_parameters={}, differences={}, missing={},
        seconds={PEFT: [1.0, 10.0, 4.0], "ours": [0.5, 8.0, 1.0]},
        bytes={PEFT: [100, 200, 400], "ours": [100, 50, 100]},
    )  # fmt: skip
    assert result.ratios("seconds") == {PEFT: [1.0, 1.0, 1.0], "ours": [0.5, 0.8, 0.25]}
    assert result.ratios("bytes") == {PEFT: [0.5, 1.0, 2.0], "ours": [0.5, 0.25, 0.5]}
    rows = {(row["implementation"], row["quantity"]): row for row in result.summary()}
    assert rows["ours", "seconds"]["ratio"] == 0.5
    assert rows["ours", "seconds"]["ratio_lower_quartile"] == pytest.approx(0.375)
    assert rows["ours", "seconds"]["ratio_upper_quartile"] == pytest.approx(0.65)
    assert rows["ours", "seconds"]["median"] == 1.0
    assert rows["ours", "bytes"]["median"] == 100


def test_the_memory_of_a_step_holds_at_least_what_backward_needs() -> None:
    case = Case(model="byte_transformer", width=64, layers=2, heads=2, batch_size=64, length=64, rank=2)
    inputs_of_gelu = case.batch_size * case.length * 4 * case.width * 4 * case.layers
    found = footprint.footprint_in_new_process(case, "ours", "cpu")
    assert inputs_of_gelu < found < 100 * inputs_of_gelu


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the system cannot reset the peak")
def test_what_was_used_before_the_first_step_is_no_part_of_the_peak() -> None:
    large = torch.ones(2**24)  # 64 MiB
    with_it = footprint.level_with_peak_reset(CPU)
    del large
    assert footprint.level_with_peak_reset(CPU) < with_it - 2**25


def test_a_measurement_that_fails_says_why() -> None:
    with pytest.raises(RuntimeError, match="memory of 'nobody' could not be measured: KeyError: 'nobody'"):
        footprint.footprint_in_new_process(replace(TINY, model="byte_transformer"), "nobody", "cpu")


# --- the command


@of_every_kind
def test_the_command_leaves_every_round_s_number_and_a_figure(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str], one_step_a_round: None
) -> None:
    asked = ["--model", case.model, "--targets", case.targets, *QUICK, "--output", str(tmp_path / "new" / "folder")]
    assert benchmark.main(asked) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in BUILDERS)
    tree = written(tmp_path / "new" / "folder")
    assert tree["finished"]
    assert tree["conditions"]["threads"] == 1
    assert tree["conditions"]["packages"].keys() >= {"torch", "peft", "loralib", "transformers"}
    (result,) = tree["results"]
    assert result["case"]["model"] == case.model
    assert result["case"]["targets"] == case.targets
    assert result["seconds"].keys() == BUILDERS.keys()
    assert all(len(numbers) == 2 and min(numbers) > 0 for numbers in result["seconds"].values())
    assert result["bytes"] == {}
    assert len(result["summary"]) == len(BUILDERS)
    assert (tmp_path / "new" / "folder" / "benchmark.png").stat().st_size > 1000
    assert (tmp_path / "new" / "folder" / "benchmark.pdf").stat().st_size > 1000


def test_memory_is_measured_in_turn_and_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, one_step_a_round: None
) -> None:
    asked: list[str] = []

    def fake(case: Case, implementation: str, device: str) -> int:
        asked.append(implementation)
        return 2**20 * (50 if implementation == PEFT else 25)

    monkeypatch.setattr(measurement, "footprint_in_new_process", fake)
    assert benchmark.main([*SHAPE, "--rounds", "1", "--processes", "3", "--output", str(tmp_path)]) == 0
    assert asked == list(BUILDERS) * 3
    assert written(tmp_path)["results"][0]["bytes"]["ours"] == [25 * 2**20] * 3
    assert "0.50 [0.50, 0.50]" in capsys.readouterr().out


def test_without_a_shape_the_standard_cases_are_measured_and_with_one_that_case() -> None:
    assert benchmark.asked_cases(benchmark.parse_arguments([])) == standard_cases("float32")
    (one,) = benchmark.asked_cases(benchmark.parse_arguments(["--rank", "4", "--precision", "bfloat16"]))
    assert one == Case(rank=4, precision="bfloat16", memory=True)
    assert not any(c.memory for c in benchmark.asked_cases(benchmark.parse_arguments(["--processes", "0"])))
    labels = [case.label for case in standard_cases("float32")]
    assert len(set(labels)) == len(labels)


def test_an_interrupted_benchmark_keeps_its_cases_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, one_step_a_round: None
) -> None:
    monkeypatch.setattr(benchmark, "standard_cases", lambda precision: KINDS[2:])
    measure, measured = measurement.measure, []

    def interrupted(case: Case, *rest: object, **more: object) -> Result:
        if measured:
            raise KeyboardInterrupt
        measured.append(case)
        return measure(case, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(measurement, "measure", interrupted)
    asked = ["--rounds", "1", "--output", str(tmp_path)]
    assert benchmark.main(asked) == 130
    assert f"--output {tmp_path} goes on" in capsys.readouterr().err
    first = written(tmp_path)
    assert not first["finished"]
    assert len(first["results"]) == 1
    assert (tmp_path / "benchmark.png").exists()

    assert benchmark.main([*asked, "--rounds", "2"]) == 2
    assert "with other rounds;" in capsys.readouterr().err

    monkeypatch.setattr(measurement, "measure", measure)
    assert benchmark.main(asked) == 0
    assert written(tmp_path)["finished"]
    assert written(tmp_path)["results"][0] == first["results"][0]
    assert [result["case"]["targets"] for result in written(tmp_path)["results"]] == ["all", "qv"]

    assert benchmark.main(asked) == 2
    assert "holds a finished benchmark" in capsys.readouterr().err


def test_a_library_that_is_not_there_is_a_row_and_peft_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, one_step_a_round: None
) -> None:
    monkeypatch.setattr(implementations_module, "find_spec", lambda name: None if name == "loralib" else object())
    assert benchmark.main([*QUICK, "--output", str(tmp_path)]) == 0
    assert "not installed (pip install loralib)" in capsys.readouterr().out
    (result,) = written(tmp_path)["results"]
    assert result["missing"] == {"loralib": "not installed (pip install loralib)"}
    assert "loralib" not in result["seconds"]
    monkeypatch.setattr(implementations_module, "find_spec", lambda name: None if name == "peft" else object())
    assert benchmark.main([*QUICK, "--output", str(tmp_path / "none")]) == 2
    assert "pip install peft" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_a_failed_measurement_ends_with_1_and_says_what_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, one_step_a_round: None
) -> None:
    def failing(case: Case, implementation: str, device: str) -> int:
        raise RuntimeError("no memory to be had")

    monkeypatch.setattr(measurement, "footprint_in_new_process", failing)
    assert benchmark.main([*SHAPE, "--rounds", "1", "--output", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "failed: no memory to be had\n"
    assert not written(tmp_path)["finished"]


@pytest.mark.gpu
def test_the_command_measures_a_cuda_device(tmp_path: Path, one_step_a_round: None) -> None:
    asked = [*SHAPE, "--rounds", "2", "--processes", "1", "--device", "cuda", "--output", str(tmp_path)]
    assert benchmark.main(asked) == 0
    (result,) = written(tmp_path)["results"]
    assert min(min(numbers) for numbers in result["seconds"].values()) > 0
    assert result["bytes"]["ours"][0] > 0


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["--width", "63"], "width is a multiple of heads; got 63 and 4"),
        (["--width", "wide"], "argument --width: invalid int value: 'wide'"),
        (["--batch-size", "0"], "batch_size is at least 1; got 0"),
        (["--rank", "129"], "rank is at most the width; got 129 and 128"),
        (["--model", "gpt"], "argument --model: invalid choice: 'gpt'"),
        (["--rounds", "0"], "rounds is at least 1; got 0"),
        (["--processes", "-1"], "processes is at least 0; got -1"),
        (["--wide", "3"], "unrecognized arguments: --wide 3"),
        (["--wid", "64"], "unrecognized arguments: --wid 64"),
    ],
)
def test_a_faulty_request_is_refused_in_one_line(
    asked: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as ended:
        sys.exit(benchmark.main([*asked, "--output", str(tmp_path / "none")]))
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {said}")
    assert error.count("\n") == 1
    assert not (tmp_path / "none").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_a_device_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main(["--device", "cuda"]) == 2
    assert capsys.readouterr().err.startswith("error: device 'cuda' is not available")


def test_a_folder_that_holds_something_else_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for text in ("not json", "{}", "[1]"):
        (tmp_path / "benchmark.json").write_text(text)
        assert benchmark.main(["--output", str(tmp_path)]) == 2
        assert "is not what a benchmark wrote" in capsys.readouterr().err
        assert (tmp_path / "benchmark.json").read_text() == text


@pytest.mark.slow
def test_the_command_runs_from_any_folder(tmp_path: Path) -> None:
    script = ROOT / "experiments" / "benchmark.py"
    command = [sys.executable, str(script), *QUICK, "--model", "byte_transformer", "--rounds", "1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    (folder,) = (tmp_path / "benchmarks").iterdir()
    assert written(folder)["finished"]


# --- the figure


def test_the_figure_has_a_dot_at_each_median_and_a_bar_between_the_quartiles() -> None:
    values = {"ours": [0.5, 0.6, 0.9], "loralib": [0.9, 1.0, 1.2]}
    rows = [
        {"case": case, "implementation": name, "quantity": quantity, "ratio": ratio}
        for quantity, cases in (("time", ("small, a", "large, b")), ("memory", ("large, b",)))
        for case in cases
        for name, ratios in values.items()
        for ratio in ratios
    ]
    time, memory = benchmark_figure(pd.DataFrame(rows)).axes
    for axes, cases in ((time, ["small\na", "large\nb"]), (memory, ["large\nb"])):
        assert [label.get_text() for label in axes.get_yticklabels()] == cases
        dots = [line.get_xdata()[0] for line in axes.lines if line.get_marker() != "None"]
        drawn = [line for line in axes.lines if len(line.get_xdata()) == 2 and np.ptp(line.get_ydata()) == 0]
        bars_drawn = [tuple(line.get_xdata()) for line in drawn if tuple(line.get_xdata()) != (0, 1)]
        assert dots == [0.6] * len(cases) + [1.0] * len(cases)
        quartiles = [(0.55, 0.75)] * len(cases) + [(0.95, 1.1)] * len(cases)
        assert np.allclose(bars_drawn, quartiles)
        assert any(tuple(line.get_xdata()) == (1, 1) for line in axes.lines), "PEFT's line"
    assert time.get_xlim()[0] <= 0.5
    assert time.get_xlim() == memory.get_xlim()
