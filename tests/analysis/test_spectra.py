"""Updates are read as those who wrote them mean them, and `spectra.py` tables and draws them."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from forked_python import run_python
from project_paths import ROOT
from safetensors.numpy import load_file, save_file
from torch import nn

from analysis.spectra import main, report_spectra
from analysis.spectra_tables import run_labels, spectrum_tables
from experiments.record.adapter_formats import RunStoreError
from experiments.record.adapter_spectra import read_matrices, spectrum_of
from experiments.record.run_dir import RunDirectory
from lora_variants.frozen_model.layer_names import Place, places, short_names
from lora_variants.interface.layer import Factors, Triplets
from lora_variants.interface.warm_start import Update, as_dense, rank_of, shape_of

SPECTRA = ROOT / "analysis" / "spectra.py"
DATA = Path(os.environ.get("LORA_STUDY_DATA", ROOT.parent / "shared" / "data"))
MNLI = next(
    (
        file
        for folder in (DATA, DATA / "lora_weights_mnli")
        if (file := folder / "roberta_base_lora_mnli.bin").is_file()
    ),
    None,
)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.value = nn.Linear(12, 10), nn.Linear(12, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.value(x)


class Toy(nn.Module):
    def __init__(self, *, linear: Callable[[int, int], nn.Module] = nn.Linear) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.embedding, self.mixer, self.head = nn.Embedding(20, 12), linear(9, 7), nn.Linear(7, 3)


def saved_by_peft(folder: Path, config: Any, model: nn.Module | None = None) -> Any:
    """Wraps a toy model, gives every adapter random weights, saves it; returns the wrapped model."""
    from peft import get_peft_model

    torch.manual_seed(0)
    wrapped = get_peft_model(model or Toy(), config, autocast_adapter_dtype=False)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.normal_()
    wrapped.save_pretrained(folder)
    return wrapped


def deltas_of_peft(wrapped: Any) -> dict[str, np.ndarray]:
    return {
        name.removeprefix("base_model.model."): layer.get_delta_weight("default").detach().numpy()
        for name, layer in wrapped.named_modules()
        if hasattr(layer, "get_delta_weight")
    }


def product(update: Update) -> np.ndarray:
    assert not isinstance(update, torch.Tensor)
    return as_dense(update).numpy()


def assert_read_as_peft_reads(folder: Path) -> None:
    from peft import PeftModel

    expected, found = deltas_of_peft(PeftModel.from_pretrained(Toy(), folder)), read_matrices(folder)
    assert found.scale_known
    assert set(found.updates) == set(expected)
    for name, update in found.updates.items():
        np.testing.assert_allclose(product(update), expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:The following rank_pattern keys did not match")
@pytest.mark.parametrize("use_rslora", [False, True])
def test_a_lora_adapter_is_read_with_the_rank_and_scale_peft_gives_every_matrix(
    tmp_path: Path, use_rslora: bool
) -> None:
    from peft import LoraConfig

    config = LoraConfig(
        r=4,
        lora_alpha=6,
        use_rslora=use_rslora,
        target_modules=["query", "value", "mixer"],
        modules_to_save=["head"],
        rank_pattern={r"blocks\.1\.query": 2, "query": 3, "alue": 5},
        alpha_pattern={"value": 20, r"0\.value": 1},
    )
    saved_by_peft(tmp_path, config)
    assert_read_as_peft_reads(tmp_path)
    ranks = {name: rank_of(update) for name, update in read_matrices(tmp_path).updates.items()}
    assert ranks == {
        "blocks.0.query": 3, "blocks.0.value": 4, "blocks.1.query": 2, "blocks.1.value": 4, "mixer": 4,
    }  # fmt: skip


def test_an_embedding_and_a_conv1d_are_read_with_the_shape_of_their_delta(tmp_path: Path) -> None:
    from peft import LoraConfig
    from transformers.pytorch_utils import Conv1D

    config = LoraConfig(r=3, lora_alpha=6, target_modules=["embedding", "mixer"], fan_in_fan_out=True)
    wrapped = saved_by_peft(tmp_path, config, Toy(linear=lambda d_in, d_out: Conv1D(d_out, d_in)))
    expected, found = deltas_of_peft(wrapped), read_matrices(tmp_path).updates
    np.testing.assert_allclose(product(found["embedding"]), expected["embedding"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(product(found["mixer"]), expected["mixer"].T, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Adapter .* invalid shape")
@pytest.mark.parametrize("pruned", [False, True])
def test_an_adalora_adapter_is_divided_by_its_initial_rank_pruned_or_not(tmp_path: Path, pruned: bool) -> None:
    from peft import AdaLoraConfig

    config = AdaLoraConfig(
        init_r=6, target_r=2, lora_alpha=5, total_step=10, target_modules=["query", "value"], modules_to_save=["head"]
    )
    wrapped = saved_by_peft(tmp_path, config)
    if pruned:
        kept = {"blocks.0.query": [True, False] * 3, "blocks.1.value": [False] * 6}
        for name, alive in kept.items():
            mask = torch.tensor(alive)[:, None]
            wrapped.base_model.model.get_submodule(name).lora_E["default"].data *= mask
        wrapped.peft_config["default"].rank_pattern = {f"{name}.lora_E": alive for name, alive in kept.items()}
        wrapped.save_pretrained(tmp_path)
        pruned_ranks = {name: rank_of(read_matrices(tmp_path).updates[name]) for name in kept}
        assert pruned_ranks == {"blocks.0.query": 3, "blocks.1.value": 0}
    found = read_matrices(tmp_path).updates
    for name, expected in deltas_of_peft(wrapped).items():
        np.testing.assert_allclose(product(found[name]), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", ["factors", "triplets", "dense"])
def test_the_spectrum_of_an_update_is_that_of_its_product_scale_included(form: str) -> None:
    torch.manual_seed(0)
    left, right, Lambda = torch.randn(7, 3).double(), torch.randn(3, 5).double(), torch.tensor([2.0, -1.0, 0.5])
    update = {
        "factors": Factors(left, right, -0.75),
        "triplets": Triplets(left, Lambda.double(), right, 0.75),
        "dense": left @ right,
    }[form]
    expected = np.linalg.svd(as_dense(update).numpy(), compute_uv=False)
    found = spectrum_of(update)
    np.testing.assert_allclose(found, expected[: len(found)], rtol=1e-12, atol=1e-12)
    assert len(found) == (5 if form == "dense" else 3)


def test_bfloat16_factors_are_read(tmp_path: Path) -> None:
    from peft import LoraConfig

    config = LoraConfig(r=4, lora_alpha=6, target_modules=["query"])
    wrapped = saved_by_peft(tmp_path, config, Toy().to(torch.bfloat16))
    layer = wrapped.base_model.model.blocks[0].query
    A, B = (part["default"].weight.detach().double().numpy() for part in (layer.lora_A, layer.lora_B))
    np.testing.assert_allclose(
        product(read_matrices(tmp_path).updates["blocks.0.query"]), B @ A * 1.5, rtol=1e-3, atol=1e-6
    )


def test_a_loralib_checkpoint_is_read_and_says_that_its_scale_is_unknown(tmp_path: Path) -> None:
    import loralib

    model = nn.ModuleDict({"query": loralib.Linear(6, 5, r=2, lora_alpha=8), "head": nn.Linear(5, 2)})
    nn.init.normal_(model["query"].lora_B)
    torch.save(loralib.lora_state_dict(model, bias="all"), tmp_path / "lora.pt")
    found = read_matrices(tmp_path / "lora.pt")
    assert list(found.updates) == ["query"]
    query = found.updates["query"]
    assert (found.scale_known, shape_of(query), rank_of(query)) == (False, (5, 6), 2)
    expected = (model["query"].lora_B @ model["query"].lora_A).detach().numpy()
    np.testing.assert_allclose(product(query), expected, rtol=1e-5)


@pytest.mark.skipif(MNLI is None, reason="roberta_base_lora_mnli.bin is not here; LORA_STUDY_DATA says where")
def test_the_effective_ranks_of_the_lora_authors_mnli_checkpoint_are_found() -> None:
    assert MNLI is not None
    rows = spectrum_tables([MNLI]).summary.set_index("name")
    assert len(rows) == 24
    assert set(rows["r"]) == {8}
    for name, effective_rank in {"11.query": 1.04, "0.query": 3.05, "5.value": 6.13}.items():
        assert rows.loc[name, "entropy_rank_energy"] == pytest.approx(effective_rank, abs=0.005)


def dense_run(folder: Path, **more: np.ndarray) -> Path:
    """A finished run of full fine-tuning: two layers of two matrices."""
    rng = np.random.default_rng(0)
    matrices = [f"encoder.layer.{layer}.attention.{kind}" for layer in (10, 2) for kind in ("query", "value")]
    folder.mkdir(parents=True)
    deltas = {name: rng.standard_normal((9, 7), dtype=np.float32) for name in matrices}
    save_file({**deltas, **more}, folder / "delta.safetensors")
    (folder / "config.yaml").write_text("variant: full\n")
    RunDirectory(folder).finish({})
    return folder


def head_run(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("variant: head\n")
    RunDirectory(folder).finish({})
    return folder


def adapter(folder: Path, *, drop: str = "nothing", add: str | None = None, **config: object) -> Path:
    folder.mkdir(parents=True)
    prefix = "base_model.model.blocks.0.query"
    rng = np.random.default_rng(1)
    tensors = {
        f"{prefix}.lora_A.weight": rng.standard_normal((2, 6), dtype=np.float32),
        f"{prefix}.lora_B.weight": rng.standard_normal((5, 2), dtype=np.float32),
    }
    if add is not None:
        tensors[f"{prefix}.{add}"] = np.ones(5, np.float32)
    kept = {key: tensor for key, tensor in tensors.items() if drop not in key}
    save_file(kept, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, **config}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def test_dense_deltas_are_read_in_the_order_of_the_layers_without_what_is_not_a_matrix(tmp_path: Path) -> None:
    run = dense_run(tmp_path / "run", bias=np.ones(3, np.float32), stack=np.ones((2, 2, 2), np.float32))
    found = read_matrices(run).updates
    assert [name.split(".")[2] for name in found] == ["2", "2", "10", "10"]
    stored = load_file(run / "delta.safetensors")
    for name, update in found.items():
        assert isinstance(update, torch.Tensor)
        np.testing.assert_array_equal(update.numpy(), stored[name])


def test_a_run_that_left_its_delta_beside_dora_factors_is_read_from_the_delta(tmp_path: Path) -> None:
    run = adapter(tmp_path / "run", use_dora=True)
    save_file({"blocks.0.query.weight": np.eye(5, 6, dtype=np.float32)}, run / "delta.safetensors")
    assert {name: shape_of(update) for name, update in read_matrices(run).updates.items()} == {"blocks.0.query": (5, 6)}


def test_a_finished_run_of_the_head_alone_has_no_updates(tmp_path: Path) -> None:
    assert read_matrices(head_run(tmp_path / "head")).updates == {}


def missing(folder: Path) -> Path:
    return folder / "nowhere"


def without_adapter(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder


def unfinished(folder: Path) -> Path:
    (folder / "config.yaml").write_text("")
    return folder


def truncated(folder: Path) -> Path:
    weights = adapter(folder / "cut") / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-20])
    return weights.parent


def empty_file(folder: Path) -> Path:
    (adapter(folder / "empty") / "adapter_model.safetensors").write_bytes(b"")
    return folder / "empty"


def without_config(folder: Path) -> Path:
    (adapter(folder / "run") / "adapter_config.json").unlink()
    return folder / "run"


def config_not_json(folder: Path) -> Path:
    (adapter(folder / "run") / "adapter_config.json").write_text("r: 2")
    return folder / "run"


def code_in_a_pickle(folder: Path) -> Path:
    torch.save({"q.lora_A": A, "q.lora_B": B, "code": os.system}, folder / "code.bin")
    return folder / "code.bin"


def not_a_pickle(folder: Path) -> Path:
    (folder / "text.pt").write_text("not a checkpoint")
    return folder / "text.pt"


def cut_checkpoint(folder: Path) -> Path:
    buffer = io.BytesIO()
    torch.save({"q.lora_A": torch.ones(2, 50), "q.lora_B": torch.ones(50, 2)}, buffer)
    (folder / "cut.pt").write_bytes(buffer.getvalue()[:-300])
    return folder / "cut.pt"


def checkpoint(tensors: object) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        torch.save(tensors, folder / "some.pth")
        return folder / "some.pth"

    return write


def broken_adapter(**options: Any) -> Callable[[Path], Path]:
    return lambda folder: adapter(folder / "run", **options)


def infinite(folder: Path) -> Path:
    return dense_run(folder / "run", worse=np.full((2, 2), np.inf, np.float32))


A, B = torch.ones(2, 6), torch.ones(5, 2)
ERRORS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing path": (missing, "nowhere does not exist: check the path"),
    "folder of nothing": (without_adapter, "holds neither: give the folder of one run"),
    "unfinished run": (unfinished, r"has a config.yaml but no result.json: run it again"),
    "truncated": (truncated, r"must be whole; .*adapter_model.safetensors \(\d+ bytes\) cannot be read .* copy it"),
    "empty file": (empty_file, r"\(0 bytes\) cannot be read"),
    "no config": (without_config, "adapter_config.json is missing: copy it"),
    "config not JSON": (config_not_json, "adapter_config.json is not"),
    "other method": (broken_adapter(peft_type="IA3"), r"peft_type must be LORA or ADALORA; .* it is 'IA3'"),
    "DoRA": (broken_adapter(use_dora=True), "made with DoRA: save merged minus base"),
    "DoRA by its key": (broken_adapter(add="lora_magnitude_vector"), "made with DoRA"),
    "PiSSA": (broken_adapter(init_lora_weights="pissa_niter_4"), "init_lora_weights 'pissa_niter_4'"),
    "A without B": (broken_adapter(drop="lora_B"), r"needs both factors; .* blocks.0.query has only lora_A"),
    "B without A": (broken_adapter(drop="lora_A"), r"blocks.0.query has only lora_B"),
    "neither A nor B": (broken_adapter(drop="lora_"), "at least one lora_A and lora_B"),
    "convolution": (broken_adapter(add="lora_A.weight"), r"only matrices .* shape \(5,\)"),
    "another rank": (broken_adapter(r=3), "rank 3 and lora_alpha 4 for blocks.0.query, whose lora_A has 2 rows"),
    "no alpha": (broken_adapter(lora_alpha=None), "lora_alpha None"),
    "AdaLoRA without E": (broken_adapter(peft_type="ADALORA", init_r=4), "lora_E None, init_r 4"),
    "code in a pickle": (code_in_a_pickle, "tensors and nothing else; .*code.bin is not .* save its state_dict"),
    "not a pickle": (not_a_pickle, "tensors and nothing else; .*text.pt is not"),
    "cut checkpoint": (cut_checkpoint, "a whole file of tensors .*cut.pt is not"),
    "not a loralib checkpoint": (checkpoint({"head.weight": A}), r"has none: save it with loralib"),
    "a list": (checkpoint([A, B]), r"some.pth has none"),
    "loralib A without B": (checkpoint({"q.lora_A": A}), "some.pth, q has only lora_A"),
    "ranks that differ": (checkpoint({"q.lora_A": A, "q.lora_B": B[:, :1]}), r"lora_A \(2, 6\) and lora_B \(5, 1\)"),
    "other file": (lambda folder: Path(__file__), r"ends in .bin, .pt, .pth, .ckpt; this is .*test_spectra.py"),
    "infinite ΔW": (infinite, r"run run, matrix worse: .* entry \(0, 0\) of the ΔW is inf"),
}


@pytest.mark.parametrize("error", ERRORS)
def test_what_cannot_be_read_is_refused_with_the_rule_the_value_and_the_way_out(tmp_path: Path, error: str) -> None:
    write, message = ERRORS[error]
    with pytest.raises(RunStoreError, match=f"(?s){message}") as refused:
        spectrum_tables([write(tmp_path)])
    assert "\n" not in str(refused.value)


def test_names_lose_only_the_words_all_layers_share() -> None:
    bert = [f"bert.layer.{layer}.attention.self.{kind}" for layer in (0, 1) for kind in ("query", "key")]
    assert list(short_names(bert).values()) == ["0.query", "0.key", "1.query", "1.key"]
    llama = ["model.layers.0.attn.q", "model.layers.0.mlp.up", "lm_head"]
    assert list(short_names(llama).values()) == ["0.attn.q", "0.mlp.up", "lm_head"]
    assert short_names(["h.3.attn.c_attn"]) == {"h.3.attn.c_attn": "3.c_attn"}
    assert list(short_names(["a.0.b.w", "b.0.a.w"]).values()) == ["a.0.b.w", "b.0.a.w"]
    assert short_names([]) == {}


def test_the_place_of_a_matrix_is_its_first_number_and_the_rest_of_its_name() -> None:
    assert list(places(["m.0.attn.q", "m.1.mlp.up", "lm_head"]).values()) == [
        Place("0", "attn.q"), Place("1", "mlp.up"), Place("–", "lm_head"),
    ]  # fmt: skip
    assert list(places(["hidden", "readout"]).values()) == [Place("hidden", "ΔW"), Place("readout", "ΔW")]


def test_runs_are_told_apart_by_the_shortest_end_of_their_path(tmp_path: Path) -> None:
    first, second = tmp_path / "a" / "run", tmp_path / "b" / "run"
    assert list(run_labels([first])) == ["run"]
    assert list(run_labels([first, second, first])) == ["a/run", "b/run"]


def test_the_tables_hold_every_singular_value_of_every_matrix(tmp_path: Path) -> None:
    tables = spectrum_tables([dense_run(tmp_path / "full"), adapter(tmp_path / "lora"), head_run(tmp_path / "head")])
    assert tables.unadapted == ("head",)
    assert tables.summary["r"].isna().tolist() == [True] * 4 + [False]
    stored = load_file(tmp_path / "full" / "delta.safetensors")
    for (run, matrix), values in tables.values.groupby(["run", "matrix"], sort=False):
        assert values["index"].tolist() == list(range(1, len(values) + 1))
        if run == "full":
            np.testing.assert_allclose(values["sigma"], np.linalg.svd(stored[matrix], compute_uv=False), rtol=1e-5)


def test_an_adapter_is_read_against_random_factors_of_its_rank_and_a_dense_update_against_a_gaussian(
    tmp_path: Path,
) -> None:
    large, small = np.eye(9, 7, dtype=np.float32) * 1e3, np.eye(9, 7, dtype=np.float32) * 1e-3
    runs = [dense_run(tmp_path / "full", large=large, small=small), adapter(tmp_path / "lora")]
    rows = spectrum_tables(runs).summary.set_index("matrix")
    assert rows.loc["blocks.0.query", "hard_rank_random"] == 2
    assert rows.loc["large", "hard_rank_random"] == 7
    assert 1 < rows.loc["blocks.0.query", "stable_rank_random"] < 2 < rows.loc["large", "stable_rank_random"] < 4
    ratios = [f"{name}_ratio" for name in ("stable_rank", "entropy_rank_sigma", "r90", "r99", "sigma_1")]
    np.testing.assert_allclose(*(rows.loc[name, ratios].to_list() for name in ("large", "small")), rtol=1e-6)
    assert (rows["stable_rank_ratio"] * rows["stable_rank_random"]).to_list() == pytest.approx(rows["stable_rank"])


def test_the_figure_drawn_again_from_its_csv_has_the_same_bytes(tmp_path: Path) -> None:
    import matplotlib as mpl

    from analysis.figures.spectra import spectra_figure
    from analysis.figures.style import save_figure

    settings = dict(mpl.rcParams)
    report_spectra([dense_run(tmp_path / "full"), adapter(tmp_path / "lora")], tmp_path / "out")
    summary, values = (pd.read_csv(tmp_path / "out" / f"{name}.csv") for name in ("spectra", "spectra_values"))
    for again in save_figure(spectra_figure(summary, values), tmp_path, "again"):
        assert again.read_bytes() == (tmp_path / "out" / f"spectra{again.suffix}").read_bytes()
    assert dict(mpl.rcParams) == settings


def test_the_figure_has_a_line_and_a_cell_a_matrix_and_a_line_a_shape_without_structure(tmp_path: Path) -> None:
    from analysis.figures.spectra import spectra_figure

    tables = spectrum_tables([dense_run(tmp_path / "full")])
    lines, depth, cells = spectra_figure(tables.summary, tables.values).axes
    drawn = [line for line in lines.get_lines() if len(line.get_xdata())]
    assert len(drawn) == 5
    assert (lines.get_xlabel(), lines.get_yscale(), depth.get_ylabel()) == ("index $i$", "log", "layer")
    shown = sorted(float(text.get_text()) for text in cells.texts)
    assert shown == sorted(round(rank, 1) for rank in tables.summary["entropy_rank_energy"])


def test_the_key_to_many_kinds_of_long_names_stays_within_the_axes(tmp_path: Path) -> None:
    from analysis.figures.spectra import spectra_figure

    kinds = {
        f"h.{layer}.a_matrix_of_kind_{kind}": np.eye(9, 7, dtype=np.float32) for layer in (0, 1) for kind in "abcdefg"
    }
    tables = spectrum_tables([dense_run(tmp_path / "full", **kinds)])
    figure = spectra_figure(tables.summary, tables.values)
    figure.savefig(tmp_path / "drawn.png")  # lays it out
    lines = figure.axes[0]
    key = lines.get_legend()
    assert key is not None
    assert [text.get_text() for text in key.get_texts()][-1] == "Gaussian"
    assert lines.get_window_extent().ymax > key.get_window_extent().ymax


def test_an_adapter_that_was_never_trained_is_tabled_and_drawn(tmp_path: Path) -> None:
    run = adapter(tmp_path / "lora")
    weights = load_file(run / "adapter_model.safetensors")
    save_file({key: tensor * ("lora_A" in key) for key, tensor in weights.items()}, run / "adapter_model.safetensors")
    report_spectra([run], tmp_path / "out")
    row = pd.read_csv(tmp_path / "out" / "spectra.csv").iloc[0]
    assert (row["frobenius"], row["hard_rank"], row["r90"], row["stable_rank"]) == (0, 0, 0, 0)


def command(*arguments: object, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "COLUMNS")}
    return run_python([sys.executable, SPECTRA, *map(str, arguments)], cwd=folder, env=environment)


def test_the_command_works_from_any_folder_and_fits_a_pipe_of_80_columns(tmp_path: Path) -> None:
    dense_run(tmp_path / "full")
    head_run(tmp_path / "head")
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "COLUMNS")}
    done = subprocess.run(
        [sys.executable, str(SPECTRA), "full", "head", "--out", "new/drawn"],
        cwd=tmp_path, env=environment | {"PYTHONIOENCODING": "utf-8"}, capture_output=True, encoding="utf-8",
        check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert "head: nothing adapted" in lines
    header = next(line for line in lines if line.startswith("matrix")).split()
    assert header == ["matrix", "shape", "r", "‖ΔW‖_F", "σ1", "stable", "PR", "eff", "erank", "r90", "r99"]
    assert [line.split()[:3] for line in lines if "9x7" in line] == [
        [name, "9x7", "-"] for name in ("2.query", "2.value", "10.query", "10.value", "Gaussian")
    ]
    written = sorted(path.name for path in (tmp_path / "new" / "drawn").iterdir())
    assert written == ["spectra.csv", "spectra.pdf", "spectra.png", "spectra_values.csv"]
    assert [f"wrote {Path('new/drawn') / name}" in lines for name in written] == [True] * 4


def test_a_run_of_the_head_alone_is_said_to_adapt_nothing_and_writes_nothing(tmp_path: Path) -> None:
    head_run(tmp_path / "head")
    done = command("head", folder=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "head: nothing adapted\n", "")
    assert not (tmp_path / "figures").exists()


def test_spectra_of_other_runs_never_replace_those_that_are_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, out = dense_run(tmp_path / "a" / "run"), tmp_path / "out"
    other = adapter(tmp_path / "b" / "run")  # its label is 'run' too
    assert main([str(first), "--out", str(out)]) == 0
    before = {path: path.read_bytes() for path in out.iterdir()}
    assert main([str(first), "--out", str(out)]) == 0
    capsys.readouterr()
    assert main([str(other), "--out", str(out)]) == 2
    assert "spectra.csv is there and of other runs or other values: name another folder" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    (out / "spectra_values.csv").write_text("mine")
    assert main([str(first), "--out", str(out)]) == 2
    assert (out / "spectra_values.csv").read_text() == "mine"
    for table in out.glob("*.csv"):
        table.unlink()
    assert main([str(first), "--out", str(out)]) == 2
    assert "spectra.png is there" in capsys.readouterr().err


def test_a_scale_that_the_file_lacks_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"q.lora_A": A, "q.lora_B": B}, tmp_path / "some.pt")
    report_spectra([tmp_path / "some.pt"], tmp_path / "out")
    assert "some.pt does not hold its scale" in capsys.readouterr().out


def test_a_long_name_wraps_and_its_numbers_do_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "a_matrix_with_a_name_of_more_than_forty_letters"
    report_spectra([dense_run(tmp_path / "full", **{name: np.eye(7, 9, dtype=np.float32)})], tmp_path / "out")
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80 or len(str(tmp_path)) > 50
    row = next(line for line in printed.splitlines() if "7x9" in line).split()
    assert row[1:] == ["7x9", "-", "2.65", "1.00", "7.00", "7.00", "7.00", "7.00", "7", "7"]
    column = "".join(line.split()[0] for line in printed.splitlines() if line.strip())
    assert name in column


def test_bad_input_exits_with_2_and_a_message_and_no_traceback(tmp_path: Path) -> None:
    done = command("nowhere", folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("spectra.py: error: a run is a folder or a checkpoint file; nowhere does not exist")
    dense_run(tmp_path / "full")
    (tmp_path / "file").write_text("")
    blocked = command("full", "--out", "file", folder=tmp_path)
    assert blocked.returncode == 2
    assert "Traceback" not in blocked.stderr
    assert "file" in blocked.stderr


def test_options_cannot_be_abbreviated(tmp_path: Path) -> None:
    done = command("full", "--ou", "x", folder=tmp_path)
    assert done.returncode == 2
    assert "unrecognized arguments: --ou" in done.stderr


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    started = [sys.executable, "-X", "importtime", str(SPECTRA), "--help"]
    done = subprocess.run(started, cwd=tmp_path, capture_output=True, text=True, check=True)
    imported = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "argparse" in imported
    assert not imported & {"torch", "numpy", "scipy", "pandas", "matplotlib", "seaborn", "rich", "jaxtyping"}
