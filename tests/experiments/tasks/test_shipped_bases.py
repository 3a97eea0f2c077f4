"""The shipped bases and texts: the same for everyone, and refused where they are not what was shipped."""

import fnmatch
import hashlib
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
from project_paths import CONFIGS, ROOT

from experiments import run, ship, shipped_files
from experiments.config.errors import ConfigError
from experiments.config.loading import load, resolve
from experiments.models.byte_pretraining import stdlib_source
from experiments.models.weights import fingerprint
from experiments.ship import SOURCE_SHA256, build_files, relative_distance, topics_by_split
from experiments.shipped_files import FOLDER, SHA256
from experiments.training.context import TrainingContext

TASKS = ("bytes", "digits")
W0_SHA256 = {
    "bytes": "201c91663aae66ead83feb78015be846749062c2967903f48f1be9af8b03b372",
    "digits": "eed41be4132686e0497e97e75825738c1d2cd885ef869719fa247d367a651287",
}
DATA_SHA256 = {
    "bytes": {
        "train": "adbdb64e3748f422288794e7c2ba2efb768c2703ce972b6c777e64fb015c2c97",
        "validation": "1a6a64d0f74a79438e29bf3149d035fd075a2eda5095685b4e8045dd74f8670c",
        "test": "1823f17bf13dff81bc22a347bb59674ae61685cfade937f773ca75fd7ac280e9",
    },
    "digits": {
        "train": "d93d6a770d892a0f7daaa397a4fbe47d0482bf680d9f7b99716f428d3d069f3d",
        "validation": "168e55d101ffd321447e8b06bf5605a320554c36a9b20d06d6914d4e27ae8144",
        "test": "bf256725a56e100866a8fd6abc5b0578c36ee618e42ca546542f8d6f0a334e3a",
    },
}


def config(name: str, *overrides: str) -> Any:
    return load(CONFIGS / f"{name}.yaml", overrides=overrides)


@pytest.mark.parametrize("name", TASKS)
def test_every_machine_and_python_adapts_the_same_weights_to_the_same_data(name: str) -> None:
    context = TrainingContext(config(name))
    context.load()
    assert context.base_sha256 == W0_SHA256[name]
    assert context.data_sha256 == DATA_SHA256[name]


@pytest.mark.parametrize("name", TASKS)
def test_a_shipped_base_needs_no_pretraining_and_no_cache(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    said: list[str] = []
    TrainingContext(config(name)).load(lambda what, done, total: said.append(what))
    assert said == []
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize(
    ("overrides", "settled"),
    [
        ([], "shipped"),
        (["task.pretraining=shipped"], "shipped"),
        (["task.pretraining=rebuild"], "rebuild"),
        (["task.pretraining_seed=0"], "shipped"),
        (["task.pretraining_seed=1"], "rebuild"),
        (["task.pretraining_steps=20"], "rebuild"),
        (["task.pretraining=null", "task.pretraining_steps=20"], "rebuild"),
        (["task.pretraining=rebuild", "task.pretraining_steps=20"], "rebuild"),
    ],
)
def test_other_steps_or_another_seed_of_the_pretraining_mean_rebuild(
    name: str, overrides: list[str], settled: str
) -> None:
    found = config(name, *overrides)
    assert found.task.pretraining == settled
    assert resolve(found.tree()) == found


@pytest.mark.parametrize(
    ("override", "differs"),
    [
        ("task.pretraining_steps=20", "pretraining_steps 1000, not 20; say rebuild, or leave pretraining_steps out"),
        ("task.pretraining_seed=3", "pretraining_seed 0, not 3; say rebuild, or leave pretraining_seed out"),
    ],
)
def test_a_shipped_base_of_other_steps_or_another_seed_is_an_error_with_the_way_out(
    override: str, differs: str
) -> None:
    with pytest.raises(ConfigError) as error:
        config("bytes", "task.pretraining=shipped", override)
    (told,) = error.value.errors
    assert told.startswith("task.pretraining: ")
    assert differs in told


@pytest.mark.parametrize("name", TASKS)
def test_a_run_is_known_by_the_weights_it_adapts_and_not_by_where_they_came_from(name: str) -> None:
    ways = ("pretraining=shipped", "pretraining=rebuild", "pretraining_seed=1")
    assert len({config(name, f"task.{way}").config_hash(base="the same") for way in ways}) == 1
    own = {"bytes": "context", "digits": "split_seed"}[name]
    assert config(name).hashed_config()["task"].keys() == {"name", "pretraining_steps", own}


def test_the_seed_of_the_pretraining_is_in_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in TASKS:
        found = set()
        for seed in (0, 1):
            context = TrainingContext(config(name, "task.pretraining_steps=1", f"task.pretraining_seed={seed}"))
            context.load()
            found.add(fingerprint(context.base.state_dict()))
        assert len(found) == 2


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the shipped files, which the package reads."""
    shutil.copytree(FOLDER, tmp_path / "shipped")
    monkeypatch.setattr(shipped_files, "FOLDER", tmp_path / "shipped")
    return tmp_path / "shipped"


@pytest.mark.parametrize("plan", [["--plan"], []], ids=["plan", "run"])
@pytest.mark.parametrize("name", ["bytes.safetensors", "bytes_test.txt", "digits.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "altered", "empty"])
def test_a_shipped_file_that_is_missing_or_another_one_is_refused_before_anything_is_trained(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, damage: str, plan: list[str]
) -> None:
    path = copied / name
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(b"" if damage == "empty" else bytes(content))
    if damage == "missing":
        path.unlink()
    task = name.partition(".")[0].partition("_")[0]
    given = ["--config", str(CONFIGS / f"{task}.yaml"), "--wandb", "disabled", "--runs-dir", str(tmp_path / "runs")]
    assert run.main([*given, *plan]) == 2
    told = capsys.readouterr().err
    assert f"error: {path}" in told
    assert ("cannot be read" if damage == "missing" else "is not the file that was shipped") in told
    assert "install the project again" in told
    assert not list((tmp_path / "runs").rglob("metrics.jsonl"))


def test_the_wheel_takes_every_shipped_file_and_the_licences_of_what_is_not_ours() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["experiments"]
    names = {path.name for path in FOLDER.iterdir()}
    assert names >= {*SHA256, "LICENSE-Python.txt", "NOTICE.txt"}
    assert all(any(fnmatch.fnmatch(f"shipped/{name}", pattern) for pattern in patterns) for name in names)
    licences = {path for path in project["project"]["license-files"] if (ROOT / path).is_file()}
    assert licences >= {f"experiments/shipped/{name}" for name in ("LICENSE-Python.txt", "NOTICE.txt")}


def test_the_shipped_files_are_built_from_the_standard_library_that_they_were_built_from_only(
    copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ship, "SOURCE_SHA256", "0" * 64)
    before = {path.name: path.read_bytes() for path in copied.iterdir()}
    assert ship.main([]) == 2
    told = capsys.readouterr().err
    assert "is not the text that the shipped base of bytes was pretrained on, that of 3.11.7" in told
    assert hashlib.sha256(stdlib_source()).hexdigest() in told
    assert {path.name: path.read_bytes() for path in copied.iterdir()} == before


@pytest.fixture
def where_it_was_built() -> None:
    if hashlib.sha256(stdlib_source()).hexdigest() != SOURCE_SHA256:
        pytest.skip("this Python's standard library is not the text that the shipped base was pretrained on")


@pytest.mark.usefixtures("where_it_was_built")
def test_the_texts_that_are_built_anew_are_the_shipped_ones() -> None:
    built = {f"bytes_{split}.txt": hashlib.sha256(text).hexdigest() for split, text in topics_by_split().items()}
    assert built.items() <= SHA256.items()


@pytest.mark.acceptance
@pytest.mark.usefixtures("where_it_was_built")
def test_bases_that_are_built_anew_come_close_to_the_shipped_ones() -> None:
    """docs/w0.md says how far apart bases of other processors and other seeds are."""
    built = build_files(lambda what, done, total: None)
    for name in ("bytes.safetensors", "digits.safetensors"):
        distance = relative_distance(built[name], (FOLDER / name).read_bytes())
        print(f"{name}: {distance:.4f}")
        assert distance <= 0.1
