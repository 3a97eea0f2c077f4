"""The benchmark of packs and studies: the same work on both sides, and every number that is shown is kept."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from models import train
from torch import nn

from analysis.figures.benchmark import pack_figure
from experiments import benchmark
from experiments.benchmarking import pack_timing, peft_trials, timing, whole_study
from experiments.benchmarking.cases import Case, PackCase, packs_of, standard_pack_cases
from experiments.benchmarking.implementations import DEFAULT, PEFT
from experiments.benchmarking.pack_timing import PackResult, measure_packs
from experiments.benchmarking.packs import (
    CLIPPING,
    PackOfTrials,
    buckets,
    build_pack,
    build_theirs,
    largest_differences,
    workloads_of,
)
from experiments.benchmarking.peft_trials import PeftTrial, folder_of, train_trials
from experiments.benchmarking.whole_study import (
    A_PROCESS_A_TRIAL,
    ALLOWED_DIFFERENCE,
    ONE_PROCESS,
    OURS,
    Run,
    StudyCase,
    StudyResult,
    measure_study,
    median_difference,
)
from experiments.benchmarking.workload import in_place
from experiments.config.yaml_files import yaml_text
from experiments.models.transformer import ByteTransformer
from experiments.studies.protocol.protocol import plan_ahead
from experiments.studies.spec.study import load_study
from experiments.tasks.bytes import Bytes, BytesConfig
from experiments.tasks.task import Batch
from experiments.training.evaluation import evaluate
from experiments.training.hyperparameters import SharedHyperparameters, TrialHyperparameters
from lora_variants.interface.attach import attach
from lora_variants.interface.pack import Pack
from lora_variants.lora import LoRA, LoRAConfig

CPU = torch.device("cpu")
TINY = Case(width=16, layers=1, heads=2, batch_size=2, length=8, rank=3)
CASES = [
    packs_of(TINY),
    packs_of(replace(TINY, targets="qv")),
    packs_of(replace(TINY, model="roberta")),
    PackCase(case=replace(TINY, model="byte_transformer"), ranks=(2, 8, 5)),
]
SHAPE = [
    "--study", "--width", "16", "--layers", "1", "--heads", "2", "--batch-size", "2", "--length", "8", "--rank", "2",
]  # fmt: skip
QUICK = [*SHAPE, "--processes", "0", "--rounds", "2", "--trials", "0", "--packs", "1", "2"]


@pytest.fixture
def one_step_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "ROUND_SECONDS", 0.0)
    monkeypatch.setattr(timing, "WARM_UP_STEPS", 1)


def written(folder: Path) -> dict:
    return json.loads((folder / "benchmark.json").read_text(encoding="utf-8"))


def measured(case: PackCase, *sizes: int) -> PackResult:
    return measure_packs(case, CPU, sizes, rounds=2, processes=0, report=lambda *_: None)


# --- packs: the same work


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
def test_a_trial_in_a_pack_has_the_loss_and_gradients_of_peft(case: PackCase) -> None:
    workloads = workloads_of(case, CPU)
    theirs = build_theirs(workloads)
    pack = build_pack(workloads, case.ranks * 2)
    differences = largest_differences(pack, workloads, theirs[PEFT])
    assert differences["loss"] <= 1e-5
    assert differences["gradient"] <= 1e-5
    assert all(p.grad is None for group in pack.training.groups for p in group.parameters)


@pytest.mark.parametrize("trial", [0, 2])
def test_a_pack_with_another_scale_in_one_trial_is_not_timed(trial: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def scaled(*asked: object) -> PackOfTrials:
        pack = build_pack(*asked)  # type: ignore[arg-type]
        for module in pack.modules.values():
            module.scale[trial] *= 1.01  # type: ignore[operator,index]
        return pack

    monkeypatch.setattr(pack_timing, "build_pack", scaled)
    monkeypatch.setattr(pack_timing, "time_rounds", lambda *_, **__: pytest.fail("timed"))
    with pytest.raises(RuntimeError, match="does not compute what PEFT does: gradient differs by"):
        measured(packs_of(TINY), 3)


def test_a_step_is_the_loops_own_with_other_rates_and_batches_for_every_trial() -> None:
    workloads = workloads_of(packs_of(TINY), CPU)
    pack = build_pack(workloads, (3, 3, 3))
    starts = [[part.clone() for part in pack.factors(k)] for k in range(3)]
    assert all(torch.equal(a, b) for a, b in zip(starts[0], starts[2], strict=True))
    with in_place(workloads[3].base, pack.modules):
        reports = pack.training.step()
    assert len({report["train/learning_rate"] for report in reports}) == 3
    assert len({report["train/task_loss"] for report in reports}) == 3
    assert pack.training.variant.pack.steps == [1, 1, 1]
    moved = [max(float((a - b).abs().max()) for a, b in zip(pack.factors(k), starts[k], strict=True)) for k in range(3)]
    assert 0 < moved[0] < moved[1] < moved[2], "AdamW's first step is as long as the rate"


def test_the_base_is_bare_between_steps() -> None:
    workloads = workloads_of(packs_of(TINY), CPU)
    build_theirs(workloads)
    build_pack(workloads, (3, 3))
    assert all(type(workloads[3].linear(path)) is nn.Linear for path in workloads[3].paths)


# --- packs: the numbers


def test_ranks_of_several_lengths_train_in_packs_of_their_own() -> None:
    assert buckets((2, 4, 8, 16, 2, 4, 8, 16)) == [(2, 4, 8, 2, 4, 8), (16, 16)]
    assert buckets((2, 4, 6, 8)) == [(2, 4, 6, 8)]


def test_a_trial_step_costs_the_steps_of_all_packs_over_their_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    def timed(_: object, implementations: dict[str, object], **__: object) -> dict[str, list[float]]:
        costs = {"pack 0 of 2 trials": 3.0, "pack 1 of 2 trials": 5.0, f"{PEFT}, rank 2": 2.0, f"{PEFT}, rank 16": 6.0}
        return {name: [costs.get(name, 10.0)] for name in implementations}

    monkeypatch.setattr(pack_timing, "time_rounds", timed)
    result = measured(PackCase(case=TINY, ranks=(2, 16)), 1, 2)
    assert result.ours == {2: [4.0]}, "one trial has no mixed ranks"
    assert result.their_step(PEFT) == [4.0]
    assert result.ratios(2) == [1.0]
    assert result.ratios(2, DEFAULT) == [0.4]


def test_ratios_are_of_the_same_round() -> None:
    ours = {1: [2.0, 8.0, 1.0], 4: [0.5, 8.0, 0.25]}
    peft = np.array([1.0, 10.0, 1.0])
    theirs = {name: {3: (peft * times).tolist()} for name, times in ((PEFT, 1), (DEFAULT, 2), (CLIPPING, 4))}
    result = PackResult(packs_of(TINY), {}, theirs, ours, {8: "out of memory"}, {})
    alone, packed = result.summary()
    assert packed["ratio"] == 0.5
    assert packed["ratio_lower_quartile"] == 0.375
    assert packed["ratio_upper_quartile"] == 0.65
    assert packed["ratio_to_not_fused"] == 0.25
    assert packed["ratio_to_clipping"] == 0.125
    assert packed["ratio_to_pack_of_one"] == 0.25
    assert packed["trial_steps_per_second"] == 2.0
    assert alone["ratio_to_pack_of_one"] == 1.0
    assert PackResult.from_tree(json.loads(json.dumps(result.tree()))) == result


def test_the_standard_cases_have_labels_of_their_own_and_a_gpu_has_one_more() -> None:
    cases = standard_pack_cases("float32", "cpu")
    labels = [case.label for case in cases]
    assert len(set(labels)) == len(labels)
    assert {case.case.tokens for case in cases if case.case.model == "bert"} >= {32, 128, 256}
    (more,) = standard_pack_cases("float32", "cuda")[len(cases) :]
    assert (more.case.width, more.case.layers, more.case.batch_size, more.case.length) == (768, 12, 8, 128)


# --- studies: the same work


@pytest.mark.parametrize("ranks", [(8,), (2, 4, 8, 16)])
def test_the_study_is_one_and_has_as_many_trials_as_asked_for(ranks: tuple[int, ...], tmp_path: Path) -> None:
    case = StudyCase(ranks=ranks, trials=32, steps=100)
    (tmp_path / "speed.yaml").write_text(yaml_text(case.tree()))
    study = load_study(tmp_path / "speed.yaml")
    assert len(study.arms) == len(ranks)
    assert sum(len(plan_ahead(arm, study.protocol)) for arm in study.arms) == 32


class ShortBytes(Bytes):
    """The task with a base that nothing was learned by, and few rows to score it on."""

    def base_model(self, report: object = None) -> nn.Module:
        torch.manual_seed(0)
        return ByteTransformer()

    def evaluation_batches(self, split: str) -> Iterator[Batch]:  # type: ignore[override]
        yield {"tokens": next(iter(super().evaluation_batches("validation")))["tokens"][:4]}


def test_a_trial_of_peft_does_what_ours_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peft_trials, "Bytes", ShortBytes)
    first = PeftTrial(4, 8.0, 7, 5e-3, 5, 2, 1, "linear", 0.5, ("validation",))
    trials = [first, replace(first, seed=8, learning_rate=2e-2)]
    train_trials(trials, tmp_path, CPU)

    hyperparameters = [
        TrialHyperparameters(t.seed, t.learning_rate, max_grad_norm=t.max_grad_norm, warmup_steps=t.warmup_steps)
        for t in trials
    ]
    task = ShortBytes(BytesConfig())  # type: ignore[call-arg]
    pack = Pack(seeds=(7, 8), total_steps=(5, 5))
    configs = [LoRAConfig.model_validate({"rank": 4, "alpha": 8.0})] * 2
    variant = attach(LoRA, task.base_model(), targets=["layers.*"], pack=pack, configs=configs)
    rows: list[dict[str, list[float]]] = []
    train(
        variant, task, hyperparameters,
        SharedHyperparameters(steps=5, batch_size=2), on_step=lambda step, row: rows.append(row),
    )  # fmt: skip
    scores = evaluate(variant, task, "validation", "float32")
    for k, trial in enumerate(trials):
        folder = folder_of(trial, tmp_path)
        assert (folder / "adapter_model.safetensors").exists()
        result = json.loads((folder / "result.json").read_text())
        assert result["validation"]["bits_per_byte"] == pytest.approx(scores[k]["bits_per_byte"], rel=1e-5)
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
        for line, row in zip(lines, rows, strict=True):
            for name in ("train/task_loss", "train/gradient_norm", "train/learning_rate"):
                assert line[name] == pytest.approx(row[name][k], rel=1e-4)


def test_other_trials_or_scores_are_found_out() -> None:
    scores: dict[whole_study.Score, float] = {(8, 5e-3, 0, "validation"): 2.0, (8, 5e-3, 1, "validation"): 4.0}
    assert median_difference(scores, scores) == 0
    assert median_difference(scores, scores | {(8, 5e-3, 1, "validation"): 3.2}) == pytest.approx(0.125)
    with pytest.raises(RuntimeError, match=r"the trials are not the same: \(8, 0.005, 1, 'validation'\)"):
        median_difference(scores, dict(list(scores.items())[:1]))


def test_a_study_s_numbers_come_back_from_disk() -> None:
    runs = {OURS: Run(2.0, 1.0, 3.0), ONE_PROCESS: Run(8.0, 8.0, 8.0), A_PROCESS_A_TRIAL: Run(4.0, 4.0, 6.0)}
    result = StudyResult(StudyCase(ranks=(2, 8), trials=8, steps=3), 8, 1e-6, runs)
    assert StudyResult.from_tree(json.loads(json.dumps(result.tree()))) == result
    assert result.ratio("seconds", ONE_PROCESS) == 0.25
    assert result.ratio("processor_seconds", A_PROCESS_A_TRIAL) == 0.5


@pytest.mark.slow
def test_a_study_is_measured_against_the_same_trials_of_peft() -> None:
    result = measure_study(StudyCase(ranks=(4,), trials=4, steps=60), lambda *_: None)
    assert result.trials >= 4  # a grid may be extended
    assert result.difference < ALLOWED_DIFFERENCE
    assert all(run.seconds >= run.seconds_to_last_score > 0 for run in result.runs.values())
    assert all(run.processor_seconds > 1 for run in result.runs.values())


# --- the command


def test_the_command_leaves_every_number_and_a_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], one_step_a_round: None
) -> None:
    assert benchmark.main([*QUICK, "--output", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "pack of one" in shown
    tree = written(tmp_path)
    assert tree["finished"]
    assert tree["conditions"]["packages"].keys() >= {"torch", "peft", "transformers"}
    (result,) = tree["results"]["packs"]
    assert result["ours"].keys() == {"1", "2"}
    assert all(len(numbers) == 2 and min(numbers) > 0 for numbers in result["ours"].values())
    assert result["theirs"].keys() == {PEFT, DEFAULT, CLIPPING}
    assert [row["trials"] for row in result["summary"]] == [1, 2]
    assert (tmp_path / "packs.png").stat().st_size > 1000
    assert (tmp_path / "packs.pdf").stat().st_size > 1000


def test_an_interrupted_one_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, one_step_a_round: None
) -> None:
    monkeypatch.setattr(benchmark, "standard_pack_cases", lambda *_: CASES[:2])
    measure = pack_timing.measure_packs

    def interrupted(case: PackCase, *asked: object, **more: object) -> PackResult:
        if case == CASES[1]:
            raise KeyboardInterrupt
        return measure(case, *asked, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(pack_timing, "measure_packs", interrupted)
    asked = ["--study", "--processes", "0", "--rounds", "1", "--trials", "0", "--packs", "2", "--output", str(tmp_path)]
    assert benchmark.main(asked) == 130
    first = written(tmp_path)
    assert not first["finished"]
    assert len(first["results"]["packs"]) == 1
    assert (tmp_path / "packs.png").exists()

    assert benchmark.main([*asked, "--packs", "1"]) == 2
    assert "with other packs;" in capsys.readouterr().err
    assert benchmark.main([part for part in asked if part != "--study"]) == 2

    monkeypatch.setattr(pack_timing, "measure_packs", measure)
    assert benchmark.main(asked) == 0
    assert written(tmp_path)["finished"]
    assert written(tmp_path)["results"]["packs"][0] == first["results"]["packs"][0]
    assert benchmark.main(asked) == 2
    assert "holds a finished benchmark" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["--trials", "30"], "trials is a multiple of 4"),
        (["--trials", "4"], "trials is a multiple of 16 (at each of 4 ranks"),
        (["--trials", "-1"], "trials is at least 0; got -1"),
        (["--steps", "0"], "steps is at least 1; got 0"),
        (["--packs", "0"], "packs have 1 trial or more; got 0"),
        (["--trials", "0", "--rounds", "0"], "nothing is left to measure"),
    ],
)
def test_a_faulty_request_is_refused_before_anything_is_measured(
    asked: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert benchmark.main(["--study", *asked, "--output", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.startswith(f"error: {said}")
    assert not (tmp_path / "none").exists()


@pytest.mark.gpu
def test_packs_are_measured_on_a_cuda_device(tmp_path: Path, one_step_a_round: None) -> None:
    shape = ["--model", "roberta", *SHAPE, "--precision", "bfloat16", "--device", "cuda"]
    asked = ["--rounds", "2", "--processes", "1", "--trials", "0", "--packs", "1", "4", "--output", str(tmp_path)]
    assert benchmark.main([*shape, *asked]) == 0
    (result,) = written(tmp_path)["results"]["packs"]
    assert all(min(numbers) > 0 for numbers in result["ours"].values())
    assert result["bytes"]["4"][0] > 0
    assert result["summary"][1]["trial_steps_per_second"] > 0


# --- the figure


def test_the_figure_has_a_line_of_medians_in_a_band_of_quartiles_for_every_case() -> None:
    values = {1: [0.5, 0.6, 0.9], 4: [0.2, 0.3, 0.4], 16: [0.3, 0.3, 0.3]}
    rows = [
        {"model": model, "case": case, "trials": trials, "ratio": ratio + shift}
        for model in ("small", "large")
        for shift, case in enumerate(("a", "b"))
        for trials, ratios in values.items()
        for ratio in ratios
    ]
    small, axes = pack_figure(pd.DataFrame(rows)).axes
    assert (small.get_title(), axes.get_title()) == ("small", "large")
    lines = [line for line in axes.lines if line.get_marker() != "None"]
    assert [line.get_label() for line in lines] == ["a", "b"]
    for shift, line in enumerate(lines):
        assert line.get_xdata().tolist() == [1, 4, 16]
        assert np.allclose(line.get_ydata(), np.array([0.6, 0.3, 0.3]) + shift)
    corners = axes.collections[0].get_paths()[0].vertices
    assert {0.55, 0.75} <= {round(float(y), 6) for x, y in corners if x == 1}
    assert any(set(line.get_ydata()) == {1} for line in axes.lines), "PEFT's line"
    assert axes.get_ylim()[0] == 0
