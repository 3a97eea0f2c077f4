"""The spectra of what a fine-tuning changed between two models on disk."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from project_paths import ROOT
from safetensors.torch import load_file, save_file
from torch import Tensor

from analysis.model_differences import NOT_TESTABLE, difference_tables
from analysis.spectra import main
from analysis.stats.singular_values import singular_values
from experiments.record.adapter_formats import RunStoreError
from experiments.record.stored_models import StoredTensor, pair_models

DATA = Path(os.environ.get("LORA_STUDY_DATA", ROOT.parent / "shared" / "data"))
STORIES = DATA / "stories260K" / "hf"
SHAPES = {"embed": (30, 12), "layers.2.query": (12, 12), "layers.10.up": (20, 12)}
Weights = dict[str, Tensor]


def base() -> Weights:
    torch.manual_seed(0)
    matrices = {f"{name}.weight": torch.randn(shape) for name, shape in SHAPES.items()}
    return {**matrices, "norm.weight": torch.ones(12), "positions": torch.arange(12)[None]}


def tuned(before: Mapping[str, Tensor]) -> Weights:
    """Rank 2 is added to every matrix but the embedding."""
    torch.manual_seed(1)
    return {
        key: W + torch.randn(len(W), 2) @ torch.randn(2, W.shape[1]) if key.startswith("layers") else W
        for key, W in before.items()
    }


def saved(folder: Path, weights: Mapping[str, Tensor]) -> Path:
    folder.mkdir(parents=True)
    save_file(dict(weights), folder / "model.safetensors")
    return folder


def sharded(folder: Path, weights: Mapping[str, Tensor]) -> Path:
    folder.mkdir(parents=True)
    parts = {key: f"model-{number % 2}.safetensors" for number, key in enumerate(sorted(weights))}
    for part in set(parts.values()):
        save_file({key: weights[key] for key in parts if parts[key] == part}, folder / part)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))
    return folder


def assert_spectra_of_the_change(before: Path, after: Path) -> None:
    tables = difference_tables(pair_models(before, after, ()), after)
    assert tables.summary["matrix"].tolist() == ["layers.2.query", "layers.10.up"]
    assert tables.summary["r"].isna().all()
    assert set(tables.summary["dtype"]) == {"float32"}
    first, last = base(), tuned(base())
    for name, values in tables.values.groupby("matrix"):
        key = f"{name}.weight"
        expected = singular_values((last[key].double() - first[key].double()).numpy())
        np.testing.assert_allclose(values["sigma"], expected, rtol=1e-12, atol=1e-12)
    assert tables.summary["r99"].tolist() == [2, 2]


@pytest.mark.parametrize("save", [saved, sharded])
def test_every_matrix_that_changed_has_its_spectrum_from_one_file_or_from_parts(
    tmp_path: Path, save: Callable[[Path, Weights], Path]
) -> None:
    assert_spectra_of_the_change(saved(tmp_path / "before", base()), save(tmp_path / "after", tuned(base())))


def test_single_files_are_models_too(tmp_path: Path) -> None:
    before, after = saved(tmp_path / "before", base()), saved(tmp_path / "after", tuned(base()))
    assert_spectra_of_the_change(before / "model.safetensors", after / "model.safetensors")


@pytest.mark.parametrize("longer", ["before", "after"])
def test_a_prefix_that_one_model_has_before_its_names_is_no_difference(tmp_path: Path, longer: str) -> None:
    models = {"before": base(), "after": tuned(base())}
    models[longer] = {f"bert.{key}": W for key, W in models[longer].items()} | {"classifier.weight": torch.eye(3)}
    before, after = (saved(tmp_path / name, weights) for name, weights in models.items())
    pair = pair_models(before, after, ())
    assert list(pair.matrices) == ["bert.embed", "bert.layers.2.query", "bert.layers.10.up"]
    assert pair.unpaired == ("classifier",)
    assert len(list(pair.changes())) == 2


def test_patterns_leave_the_other_matrices_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = saved(tmp_path / "before", base()), saved(tmp_path / "after", tuned(base()))
    read, keys = StoredTensor.read, []
    monkeypatch.setattr(StoredTensor, "read", lambda self: (keys.append(self.key), read(self))[1])
    tables = difference_tables(pair_models(before, after, ["*.query"]), after)
    assert tables.summary["matrix"].tolist() == ["layers.2.query"]
    assert keys == ["layers.2.query.weight"] * 2


def test_a_matrix_is_read_when_its_turn_comes_not_before(tmp_path: Path) -> None:
    pair = pair_models(saved(tmp_path / "before", base()), saved(tmp_path / "after", tuned(base())), ())
    changes = pair.changes()
    assert next(changes).name == "layers.2.query"
    (tmp_path / "after" / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError):
        next(changes)


def test_the_command_prints_what_the_spectra_cannot_say_and_writes_the_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, after = saved(tmp_path / "before", base()), saved(tmp_path / "after", tuned(base()))
    out = tmp_path / "out"
    request = ["--before", str(before), "--after", str(after), "--out", str(out)]
    assert main(request) == 0
    printed = capsys.readouterr().out
    assert f"2 matrices changed, 1 did not\n{NOT_TESTABLE}" in printed
    assert max(map(len, printed.partition("wrote")[0].splitlines())) <= 80
    summary = pd.read_csv(out / "spectra.csv")
    assert f"{summary['stable_rank_ratio'][0]:.2f}x" in printed
    np.testing.assert_allclose(summary["r90_ratio"], summary["r90"] / summary["r90_random"])
    assert sorted(path.name for path in out.iterdir()) == [
        "spectra.csv", "spectra.pdf", "spectra.png", "spectra_values.csv",
    ]  # fmt: skip
    assert main(request) == 0


def test_ranks_that_count_the_rounding_of_what_was_stored_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = {key: W.bfloat16() if W.is_floating_point() else W for key, W in base().items()}
    last = {key: (W.float() + 0.01 * (tuned(base())[key] - base()[key])).bfloat16() for key, W in first.items()}
    before, after = saved(tmp_path / "before", first), saved(tmp_path / "after", last)
    assert main(["--before", str(before), "--after", str(after), "--out", str(tmp_path / "out")]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "WARNING: stored in bfloat16: r99 of 2 of 2 matrices count rounding, which is up to" in printed
    summary = pd.read_csv(tmp_path / "out" / "spectra.csv")
    assert summary["rounding_counted"].tolist() == ["r99", "r99"]
    assert (summary["r99"] > 2).all()


def with_broken(weights: Weights) -> Weights:
    return {**weights, "layers.10.up.weight": torch.full((20, 12), float("nan"))}


def with_another_shape(weights: Weights) -> Weights:
    return {**weights, "embed.weight": torch.ones(31, 12)}


def as_vectors(weights: Weights) -> Weights:
    return {key: W.flatten() for key, W in weights.items()}


REFUSED: dict[str, tuple[Callable[[Weights], Weights], str]] = {
    "not finite": (
        with_broken,
        r"layers.10.up.weight in .*after.* has 240 entries that are not: the training diverged",
    ),
    "another shape": (
        with_another_shape,
        r"embed is 30x12 in .*before and 31x12 in .*after: leave it out .* --targets",
    ),
    "vectors alone": (as_vectors, r"has one shape before and after; embed is 30x12 in .* and 360 in"),
    "nothing in common": (
        lambda weights: {f"x{key}": W for key, W in weights.items()},
        "share none by name: they have",
    ),
    "nothing changed": (lambda weights: base(), "none of the 3 matrices that .*after shares with the model before"),
    "integers": (lambda weights: {k: W.int() for k, W in weights.items()}, "share none by name"),
}


@pytest.mark.parametrize("wrong", REFUSED)
def test_models_that_cannot_be_compared_are_refused_with_the_value_and_the_way_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong: str
) -> None:
    change, message = REFUSED[wrong]
    before, after = saved(tmp_path / "before", base()), saved(tmp_path / "after", change(tuned(base())))
    with pytest.raises(RunStoreError, match=message):
        difference_tables(pair_models(before, after, ()), after)
    assert main(["--before", str(before), "--after", str(after), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith("spectra.py: error: ")
    assert not (tmp_path / "out").exists()


def test_a_matrix_of_another_shape_can_be_left_out(tmp_path: Path) -> None:
    before = saved(tmp_path / "before", base())
    after = saved(tmp_path / "after", with_another_shape(tuned(base())))
    assert list(pair_models(before, after, ["layers.*"]).matrices) == ["layers.2.query", "layers.10.up"]


def test_a_model_that_is_not_whole_is_refused_by_its_file(tmp_path: Path) -> None:
    before, after = saved(tmp_path / "before", base()), sharded(tmp_path / "after", tuned(base()))
    (pickled := tmp_path / "pickled").mkdir()
    (pickled / "pytorch_model.bin").write_bytes(b"")
    cut = saved(tmp_path / "cut", base()) / "model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-9])
    expected = {
        tmp_path / "nowhere": "nowhere does not exist: check the path",
        pickled: "holds neither: save the model with save_pretrained",
        pickled / "pytorch_model.bin": "is or holds neither",
        cut.parent: "model.safetensors cannot be read .*: copy it again",
    }
    for path, message in expected.items():
        for pair in ((path, before), (before, path)):
            with pytest.raises(RunStoreError, match=message):
                pair_models(*pair, ())
    index = after / "model.safetensors.index.json"
    (after / "model-1.safetensors").unlink()
    with pytest.raises(RunStoreError, match=r"names 'model-1.safetensors', which is no file of .*: copy it too"):
        pair_models(before, after, ())
    for text in ("[]", "{", '{"weight_map": {"a": "../before/model.safetensors"}}'):
        index.write_text(text)
        with pytest.raises(RunStoreError, match=r"has no weight_map|which is no file of"):
            pair_models(before, after, ())
    with pytest.raises(
        RunStoreError, match=r"target '\*.key' matches no matrix of the models; they have: embed, layers"
    ):
        pair_models(before, before, ["layers.*", "*.key"])


@pytest.mark.parametrize(
    "arguments",
    [["run", "--before", "a", "--after", "b"], ["--before", "a"], ["--after", "b"], ["run", "--targets", "x"], []],
)
def test_runs_and_two_models_are_two_requests(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert "--before and --after" in capsys.readouterr().err


@pytest.mark.skipif(not STORIES.is_dir(), reason="stories260K is not here; LORA_STUDY_DATA says where")
def test_a_real_model_stored_again_in_bfloat16_has_changed_by_rounding_alone(tmp_path: Path) -> None:
    weights = load_file(STORIES / "model.safetensors")
    after = saved(tmp_path / "after", {key: W.bfloat16() for key, W in weights.items()})
    summary = difference_tables(pair_models(STORIES, after, ()), after).summary
    assert len(summary) == 36
    assert set(summary["rounding_counted"]) == {"r90 r95 r99"}
    np.testing.assert_allclose(summary["rounding_share"], 1, atol=0.35)  # its last digits are not uniform
    assert summary["r90_ratio"].min() > 0.5
