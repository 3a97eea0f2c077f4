"""Adapters of others: each spelling gives the ΔW that its authors mean, and nothing in a file is dropped unsaid."""

import codecs
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from analysis.spectra import main as spectra
from experiments.config.errors import ConfigError
from experiments.config.loading import load
from experiments.config.schema import StartConfig
from experiments.models.lfs_pointer import MARK
from experiments.record.adapter_formats import CONFIG, DELTA, RunStoreError
from experiments.record.adapter_reading import read_adapter
from experiments.record.starting_point import read_start
from lora_variants.interface.rng import stream
from lora_variants.interface.warm_start import as_dense

A, B = torch.randn(2, 6, generator=stream(1)), torch.randn(5, 2, generator=stream(2))
HEAD = torch.ones(3, 5)
PEFT = "base_model.model.q"
PLAIN = {f"{PEFT}.lora_A.weight": A, f"{PEFT}.lora_B.weight": B, "base_model.model.head.weight": HEAD}
OTHER_ADAPTER = {f"{PEFT}.lora_A.other.weight": A, f"{PEFT}.lora_B.other.weight": B}
NAMED = {f"{PEFT}.lora_A.default.weight": A, f"{PEFT}.lora_B.default.weight": B}
LORALIB = {"q.lora_A": A, "q.lora_B": B}
SVD = {**LORALIB, "q.lora_E": torch.tensor([[0.5], [-0.25]]), "q.ranknum": torch.tensor([2.0])}


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor.clone().contiguous() for key, tensor in tensors.items()}


def saved_by_torch(path: Path, tensors: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(tensors, path)
    return path


def peft(
    folder: Path, tensors: Mapping[str, Tensor] = PLAIN, *, text: bytes | None = None, bin: bool = False, **config: Any
) -> Path:
    """A folder of PEFT's LoRA, of rank 2 and alpha 4."""
    folder.mkdir(parents=True, exist_ok=True)
    if bin:
        torch.save(dict(tensors), folder / "adapter_model.bin")
    else:
        save_file(copied(tensors), folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, **config}
    (folder / CONFIG).write_bytes(json.dumps(settings).encode() if text is None else text)
    return folder


def fine(encoding: str) -> bytes:
    return json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4}).encode(encoding)


SPELLINGS: dict[str, Callable[[Path], Path]] = {
    "a pickled adapter": lambda f: peft(f, bin=True),
    "the file of a pickled adapter": lambda f: peft(f, bin=True) / "adapter_model.bin",
    "the file of an adapter": lambda f: peft(f) / "adapter_model.safetensors",
    "the adapter's name in its keys": lambda f: peft(
        f, NAMED | {"base_model.model.head.modules_to_save.default.weight": HEAD}
    ),
    "DDP and torch.compile around it": lambda f: peft(
        f, {f"module._orig_mod.{key}": tensor for key, tensor in PLAIN.items()}
    ),
    "a config with a BOM": lambda f: peft(f, text=codecs.BOM_UTF8 + fine("utf-8")),
    "a config in UTF-16": lambda f: peft(f, text=fine("utf-16")),
}
LORALIB_SPELLINGS: dict[str, object] = {
    "as loralib saves it": LORALIB,
    "model": {"model": LORALIB, "optimizer": {}, "epoch": 3},
    "DeepSpeed and DDP": {"module": {f"module.{key}": tensor for key, tensor in LORALIB.items()}},
    "the adapter's name in its keys": {"q.lora_A.default.weight": A, "q.lora_B.default.weight": B},
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_of_a_peft_adapter_gives_its_update_and_its_head(tmp_path: Path, spelling: str) -> None:
    found = read_adapter(SPELLINGS[spelling](tmp_path / "peft"))
    torch.testing.assert_close(as_dense(found.updates["q"]), 2.0 * (B.double() @ A.double()))
    assert (list(found.updates), found.scale_known) == (["q"], True)
    assert set(found.others) <= {"head.weight"}


@pytest.mark.parametrize("spelling", LORALIB_SPELLINGS)
def test_every_spelling_of_a_loralib_checkpoint_gives_its_update(tmp_path: Path, spelling: str) -> None:
    path = saved_by_torch(tmp_path / "lora.pt", LORALIB_SPELLINGS[spelling])
    found = read_adapter(path).with_alpha(4.0)
    torch.testing.assert_close(as_dense(found.updates["q"]), 2.0 * (B.double() @ A.double()))
    assert list(found.updates) == ["q"]


@pytest.mark.parametrize("pruned", [False, True])
def test_a_checkpoint_of_the_adalora_authors_gives_b_e_a_times_alpha_over_ranknum(tmp_path: Path, pruned: bool) -> None:
    E = SVD["q.lora_E"] * torch.tensor([[1.0], [0.0 if pruned else 1.0]])
    path = saved_by_torch(tmp_path / "svd.pt", {**SVD, "q.lora_E": E})
    x = torch.randn(3, 6, generator=stream(3))
    expected = (x @ (A * E).T @ B.T) * 16.0 / (SVD["q.ranknum"] + 1e-5)  # of their SVDLinear.forward
    start = read_start(StartConfig(path=str(path), alpha=16.0))  # type: ignore[call-arg]
    assert start is not None
    torch.testing.assert_close(
        x.double() @ as_dense(start.adapter.updates["q"]).mT, expected.double(), rtol=1e-6, atol=1e-6
    )
    assert not read_adapter(path).scale_known


def peft_with(**config: Any) -> Callable[[Path], Path]:
    return lambda folder: peft(folder / "peft", **config)


def peft_of(tensors: Mapping[str, Tensor], **config: Any) -> Callable[[Path], Path]:
    return lambda folder: peft(folder / "peft", {**PLAIN, **tensors}, **config)


def pickled(tensors: object, name: str = "some.pt") -> Callable[[Path], Path]:
    return lambda folder: saved_by_torch(folder / name, tensors)


def delta(tensors: Mapping[str, Tensor]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        save_file(copied(tensors), folder / DELTA)
        return folder

    return write


def in_place_of(name: str, put: Callable[[Path], object]) -> Callable[[Path], Path]:
    """An adapter with something else in the place of one file."""

    def write(folder: Path) -> Path:
        path = peft(folder / "peft") / name
        path.unlink(missing_ok=True)
        put(path)
        return path.parent

    return write


def at(name: str, put: Callable[[Path], object]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        put(folder / name)
        return folder / name

    return write


def pointer(path: Path) -> None:
    path.write_bytes(MARK + b"\noid sha256:4d7a\nsize 132\n")


def loop(path: Path) -> None:
    path.symlink_to(path)


E_KEY, ROWS = f"{PEFT}.lora_E", torch.ones(2, 1)
ADALORA: dict[str, Any] = {"peft_type": "ADALORA", "init_r": 4}
WEIGHTS = "adapter_model.safetensors"
REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "lora_E of a LoRA": (peft_of({E_KEY: ROWS}), "q has lora_E too, which changes it: save merged minus"),
    "lora_E without ranknum": (pickled({**LORALIB, "q.lora_E": ROWS}), "ranknum .* divides alpha; .*some.pt, q has"),
    "ranknum without lora_E": (pickled({**LORALIB, "q.ranknum": torch.ones(1)}), "lora_E with one value a row"),
    "ranknum of nothing": (pickled({**SVD, "q.ranknum": torch.zeros(1)}), "a ranknum of at least as many"),
    "ranknum NaN": (pickled({**SVD, "q.ranknum": torch.tensor([torch.nan])}), "a ranknum of at least as many"),
    "DoRA in a checkpoint": (
        pickled({**LORALIB, "q.lora_magnitude_vector": ROWS}),
        "q.lora_magnitude_vector .* with DoRA",
    ),
    "a bias of LoRA": (peft_of({f"{PEFT}.lora_B.bias": torch.ones(5)}), r"q\.lora_B\.bias .* made with a bias"),
    "lora_bias": (peft_with(lora_bias=True), "made with lora_bias"),
    "KaSA": (peft_of({f"{PEFT}.lora_diag": ROWS}), "lora_diag .* made with KaSA"),
    "an unknown part": (peft_of({f"{PEFT}.lora_S": ROWS}), r"q\.lora_S in .* no part of LoRA or AdaLoRA that is known"),
    "an embedding beside a matrix": (peft_of({f"{PEFT}.lora_embedding_A": ROWS}), "q has lora_embedding_A too"),
    "two adapters": (peft_of({**NAMED, **OTHER_ADAPTER}), "q.lora_A stands twice"),
    "two named adapters": (
        pickled({"q.lora_A.default": A, "q.lora_B.default": B, "v.lora_A.other": A, "v.lora_B.other": B}),
        "holds 2, default, other: save one",
    ),
    "one key in two spellings": (peft_of({"q.lora_A": A}), r"q\.lora_A stands twice in .*, as .* and as .*keep one"),
    "a head in two spellings": (peft_of({"head.weight": HEAD}), r"head\.weight stands twice"),
    "a ΔW in two spellings": (
        delta({"q": A, "q.weight": A}),
        r"q stands twice in .*delta\.safetensors, as q and as q\.weight",
    ),
    "a ΔW and rows of it": (delta({"q": A, "q[1/2]": A[:1]}), r"q stands twice in .*, as q and as q\[1/2\]"),
    "integers": (
        peft_of({f"{PEFT}.lora_A.weight": torch.ones(2, 6, dtype=torch.int8)}),
        r"q\.lora_A\.weight in .* is int8: save it in float32",
    ),
    "integers beside": (pickled({**LORALIB, "position_ids": torch.arange(3)}), "position_ids in .* is int64"),
    "booleans in a ΔW": (delta({"q": torch.ones(2, 2, dtype=torch.bool)}), "q in .* is bool"),
    "complex": (pickled({**LORALIB, "q.lora_A": A.to(torch.complex64)}), r"q\.lora_A in .* is complex64"),
    "float8": (delta({"q": torch.ones(2, 2).to(torch.float8_e4m3fn)}), "q in .* is float8_e4m3fn"),
    "sparse": (pickled({**LORALIB, "q.lora_A": A.to_sparse()}), "is sparse"),
    "quantised": (
        lambda folder: pickled({"q.lora_A": torch.quantize_per_tensor(A, 0.1, 0, torch.qint8)})(folder),
        "is quantised",
    ),
    "meta": (pickled({**LORALIB, "q.lora_A": A.to("meta")}), r"is without values \(on the meta device\)"),
    "sharded": (peft_of({f"{PEFT}.lora_A.weight": A[:, :0]}), r"lora_A \(2, 0\) .* gather sharded weights"),
    "no rows": (pickled({"q.lora_A": A[:0], "q.lora_B": B[:, :0]}), "a lora_A of at least one row"),
    "an empty ΔW": (delta({"q": A[:, :0]}), "q in .* has none: leave it out"),
    "alpha beyond float32": (
        peft_with(text=fine("utf-8").replace(b"4", b"1" + b"0" * 400)),
        r"lora_alpha 10+\.\.\. \(401 characters\)",
    ),
    "alpha NaN": (peft_with(lora_alpha=float("nan")), "lora_alpha nan"),
    "alpha true": (peft_with(lora_alpha=True), "lora_alpha True"),
    "alpha a string": (peft_with(lora_alpha="16"), "lora_alpha '16'"),
    "r true": (
        peft_of({f"{PEFT}.lora_A.weight": A[:1], f"{PEFT}.lora_B.weight": B[:, :1].contiguous()}, r=True),
        "rank True",
    ),
    "r negative": (peft_with(r=-2), "rank -2"),
    "init_r negative": (peft_of({E_KEY: ROWS}, **ADALORA | {"init_r": -1}), "init_r -1"),
    "init_r below the rows": (peft_of({E_KEY: ROWS}, **ADALORA | {"init_r": 1}), "an init_r of at least as many"),
    "init_r infinite": (peft_of({E_KEY: ROWS}, **ADALORA | {"init_r": float("inf")}), "init_r inf"),
    "use_rslora a string": (peft_with(use_rslora="false"), "use_rslora is true or false; in .* it is 'false'"),
    "an unknown initialisation": (peft_with(init_lora_weights="newest"), "made with init_lora_weights 'newest'"),
    "activated LoRA": (peft_with(alora_invocation_tokens=[1, 2]), "made with activated LoRA"),
    "layers replicated": (peft_with(layer_replication=[[0, 1], [0, 1]]), "made with layers replicated"),
    "parameters": (peft_with(target_parameters=["experts.up"]), "made with target_parameters"),
    "rank_pattern a list": (peft_with(rank_pattern=["q"]), r"rank_pattern maps patterns to numbers; .* it is \['q'\]"),
    "a broken pattern": (
        peft_with(alpha_pattern={"q(": 2}),
        r"alpha_pattern has regular expressions; .* 'q\(' is none",
    ),
    "a long pattern": (peft_with(rank_pattern={"q" * 2000: 2}), "more than 1000 characters.* name the modules"),
    "JSON too deep": (peft_with(text=b"[" * 200_000), r"adapter_config\.json is JSON; .* is not \(maximum recursion"),
    "JSON of a list": (peft_with(text=b"[1]"), r"adapter_config\.json is a map; .* is \[1\]"),
    "JSON of 10 MB": (peft_with(text=b" " * 10_000_001), "at most 10000000 bytes; .* has 10000001"),
    "JSON not in UTF": (peft_with(text=b'{"a": "\xff\xfe"}'), "adapter_config.json is JSON; .* is not"),
    "a state_dict and another": (
        pickled({"model": LORALIB, "state_dict": LORALIB}),
        "has 'model' beside 'state_dict': save",
    ),
    "tensors beside a state_dict": (
        pickled({"model": LORALIB, "alpha": torch.tensor(16.0)}),
        "has 'alpha' beside 'model'",
    ),
    "numbers in a state_dict": (
        pickled({**LORALIB, "alpha": 16}),
        "has 'alpha' beside them: save its state_dict alone",
    ),
    "a dict in a state_dict": (pickled({**LORALIB, "head": {"weight": HEAD}}), "has 'head' beside them"),
    "a safetensors file": (
        at("lora.safetensors", lambda path: save_file(LORALIB, path)),
        "of safetensors files those of a folder are read",
    ),
    "a pointer of Git LFS": (
        in_place_of(WEIGHTS, pointer),
        r"adapter_model\.safetensors is a pointer of Git LFS.* `git lfs pull`",
    ),
    "a pickled pointer": (at("lora.bin", pointer), "lora.bin is a pointer of Git LFS"),
    "a pointer as delta": (in_place_of(DELTA, pointer), "delta.safetensors is a pointer of Git LFS"),
    "a folder named like the file": (in_place_of(WEIGHTS, Path.mkdir), "safetensors must be a file; it is a folder"),
    "a folder named like the config": (in_place_of(CONFIG, Path.mkdir), r"adapter_config\.json must be a file"),
    "a pipe": (at("lora.pt", os.mkfifo), "lora.pt must be a file; it is a pipe"),
    "a pipe as weights": (in_place_of(WEIGHTS, os.mkfifo), "must be a file; it is a pipe"),
    "a pipe as config": (in_place_of(CONFIG, os.mkfifo), "must be a file; it is a pipe"),
    "a device": (at("lora.pt", lambda path: path.symlink_to("/dev/zero")), "must be a file; it is a device"),
    "a link to nothing": (in_place_of(WEIGHTS, lambda path: path.symlink_to("nowhere")), "is a link to nothing"),
    "a loop of links": (at("round", loop), "round cannot be looked at .* check the path"),
    "a path too long": (lambda folder: folder / ("x" * 5000), r"\.\.\. cannot be looked at \(File name too long\)"),
}


@pytest.mark.filterwarnings("ignore:.*quantiz")
@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_understood_is_refused_with_the_rule_the_value_and_the_way_out(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write, says = REFUSED[kind]
    path = write(tmp_path)
    with pytest.raises(RunStoreError, match=f"(?s){says}") as refused:
        read_adapter(path)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 700 + 3 * len(str(tmp_path))
    assert spectra([str(path), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_pattern_of_exponential_time_is_refused_within_seconds(tmp_path: Path) -> None:
    name = "q" * 40
    tensors = {f"{name}.lora_A.weight": A, f"{name}.lora_B.weight": B}
    since = time.monotonic()
    with pytest.raises(RunStoreError, match=r"is not for q+: name the modules instead"):
        read_adapter(peft(tmp_path, tensors, rank_pattern={"(((q|q)+)+)+x": 2}))
    assert time.monotonic() - since < 30


@pytest.fixture
def seen_by_all() -> Iterator[Path]:
    """A folder that a user without rights can look into; that of pytest cannot be."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_an_unreadable_file_is_refused_by_name(seen_by_all: Path) -> None:
    (peft(seen_by_all) / WEIGHTS).chmod(0)
    is_root = os.geteuid() == 0  # who may read everything
    if is_root:
        os.seteuid(65534)
    try:
        with pytest.raises(RunStoreError, match=r"adapter_model\.safetensors cannot be read \(Permission denied\)"):
            read_adapter(seen_by_all)
    finally:
        if is_root:
            os.seteuid(0)


def test_a_start_path_that_is_no_path_is_an_error_of_the_configuration() -> None:
    with pytest.raises(ConfigError, match=r"start.path.*there is no home directory for '~nobody_of_that_name/x'"):
        load(None, overrides=["start.path=~nobody_of_that_name/x"])


def test_a_tensor_that_is_no_head_is_named_where_a_run_starts(tmp_path: Path) -> None:
    raw = {"base_model.model.q.base_layer.weight": torch.ones(5, 6)}
    assert "q.base_layer.weight" in read_adapter(peft(tmp_path, PLAIN | raw)).others
