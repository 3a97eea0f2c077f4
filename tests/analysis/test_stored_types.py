"""The difference of two stored models says what the types that they are stored in do to it."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from analysis.model_differences import difference_notes, difference_tables
from experiments.record.adapter_formats import RunStoreError
from experiments.record.stored_models import pair_models

Weights = dict[str, Tensor]
SHAPES = {"l.q.weight": (24, 24), "l.o.weight": (32, 24)}


def base() -> Weights:
    torch.manual_seed(0)
    return {name: torch.randn(shape) for name, shape in SHAPES.items()}


def tuned(size: float) -> Weights:
    """Rank 2 is added to every matrix."""
    torch.manual_seed(1)
    return {key: W + size * torch.randn(len(W), 2) @ torch.randn(2, W.shape[1]) for key, W in base().items()}


def stored(weights: Mapping[str, Tensor], dtype: torch.dtype) -> Weights:
    return {key: W.to(dtype) for key, W in weights.items()}


def said(folder: Path, before: Weights, after: Weights) -> tuple[str, pd.DataFrame]:
    """The notes that the command prints, and its table."""
    for name, weights in (("before", before), ("after", after)):
        (folder / name).mkdir()
        save_file(weights, folder / name / "model.safetensors")
    pair = pair_models(folder / "before", folder / "after", ())
    summary = difference_tables(pair, folder / "after").summary
    return "\n".join(difference_notes(pair, summary)), summary


@pytest.mark.parametrize(("dtype", "size"), [(torch.bfloat16, 0.01), (torch.float16, 0.001)])
@pytest.mark.parametrize("rounded", ["before", "after"])
def test_the_rounding_of_either_model_is_told_and_is_what_was_measured(
    tmp_path: Path, dtype: torch.dtype, size: float, rounded: str
) -> None:
    models = {"before": base(), "after": tuned(size)}
    exact = models[rounded]
    models[rounded] = stored(exact, dtype)
    printed, summary = said(tmp_path, models["before"], models["after"])
    name = str(dtype).removeprefix("torch.")
    assert set(summary["dtype"]) == {name}
    assert set(summary["stored_so"]) == {rounded}
    for key, row in zip(SHAPES, summary.set_index("matrix").loc[["l.q", "l.o"]].itertuples(), strict=True):
        error = (models[rounded][key].double() - exact[key].double()).square().sum()
        whole = (models["after"][key].double() - models["before"][key].double()).square().sum()
        assert row.rounding_share == pytest.approx(float(error / whole), rel=0.2)
    told = {
        "before": f"WARNING: stored in {name} before: the difference is exact only if training started from these "
        "rounded weights; otherwise ",
        "after": f"WARNING: stored in {name}: ",
    }
    assert told[rounded] in printed
    assert "of 2 matrices count rounding, which is up to" in printed


def test_models_that_are_both_rounded_may_hold_the_rounding_twice(tmp_path: Path) -> None:
    before, after = stored(base(), torch.bfloat16), stored(tuned(0.01), torch.bfloat16)
    printed, summary = said(tmp_path, before, after)
    assert set(summary["stored_so"]) == {"both"}
    assert "and about twice that unless training started from the rounded weights before" in printed
    error = sum(float((after[k].double() - tuned(0.01)[k].double()).square().sum()) for k in SHAPES)
    error += sum(float((before[k].double() - base()[k].double()).square().sum()) for k in SHAPES)
    expected = (2 * summary["rounding_share"] * summary["frobenius"] ** 2).sum()
    assert expected == pytest.approx(error, rel=0.2)


@pytest.mark.parametrize("rounded", ["before", "after"])
def test_each_matrix_is_warned_of_by_its_own_type(tmp_path: Path, rounded: str) -> None:
    models = {"before": base(), "after": tuned(0.001)}
    models[rounded]["l.q.weight"] = models[rounded]["l.q.weight"].bfloat16()
    printed, summary = said(tmp_path, models["before"], models["after"])
    found = summary.set_index("matrix")[["dtype", "stored_so"]].to_dict("index")
    assert found["l.q"] == {"dtype": "bfloat16", "stored_so": rounded}
    assert found["l.o"] == {"dtype": "float32", "stored_so": "both"}
    assert "of 1 matrices count rounding" in printed
    assert "stored in float32" not in printed


def test_float16_is_coarser_than_bfloat16_where_weights_are_tiny(tmp_path: Path) -> None:
    tiny = {key: 1e-6 * W for key, W in base().items()}
    last = {key: 1e-6 * W for key, W in tuned(1.0).items()}
    _, summary = said(tmp_path, stored(tiny, torch.float16), stored(last, torch.bfloat16))
    assert set(summary["dtype"]) == {"float16"}


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn, torch.float8_e5m2, torch.int32])
@pytest.mark.parametrize("narrow", ["before", "after"])
def test_weights_in_a_type_that_is_not_read_are_told_apart_from_those_of_one_model_alone(
    tmp_path: Path, dtype: torch.dtype, narrow: str
) -> None:
    models = {"before": base(), "after": tuned(1.0) | {"l.z.weight": torch.eye(4)}}
    models[narrow]["l.q.weight"] = models[narrow]["l.q.weight"].to(dtype)
    printed, summary = said(tmp_path, models["before"], models["after"])
    name = {"float8_e4m3fn": "float8_e4m3"}.get(str(dtype).removeprefix("torch."), str(dtype).removeprefix("torch."))
    assert "left out, in one of the models alone: 1 (l.z)" in printed
    assert f"left out: 1 stored as {name}, which is not read (l.q): save that model dequantised, in float32" in printed
    assert summary["matrix"].tolist() == ["l.o"]


def test_weights_that_both_models_store_in_int8_are_told_and_buffers_of_integers_are_not(tmp_path: Path) -> None:
    more = {f"l.{i}.weight": torch.ones(4, 4, dtype=torch.int8) for i in range(5)}
    positions = {"positions": torch.arange(12)[None], "mask": torch.ones(4, 4, dtype=torch.bool)}
    printed, _ = said(tmp_path, base() | more | positions, tuned(1.0) | more)
    assert "left out: 5 stored as int8, which is not read (l.0, l.1, l.2 and 2 more)" in printed
    assert "positions" not in printed
    assert "in one of the models alone" not in printed


def test_models_that_share_quantised_weights_alone_are_refused_with_their_type(tmp_path: Path) -> None:
    told = r"share none by name and such a type: 2 stored as int8, which is not read \(l.o, l.q\)"
    with pytest.raises(RunStoreError, match=told):
        said(tmp_path, base(), stored(base(), torch.int8))
