"""A new variant is one file and one line of the table: every configuration resolves with it, and it trains."""

import sys
from pathlib import Path

import pytest
from project_paths import CONFIGS
from tiny_studies import study_file

from experiments.config.loading import load
from experiments.record.run_dir import RunDirectory
from experiments.run import main
from experiments.studies.spec.study import load_study
from lora_variants import VARIANTS, VariantEntry

FACTOR = 0.75
FILE = f'''
"""Fixed: LoRA whose scaling is a number of its own, the same at any rank."""

from typing import ClassVar, Literal

from pydantic import Field

from lora_variants.interface.config import Config
from lora_variants.lora import LoRA, LoRAConfig


class FixedConfig(LoRAConfig):
    learning_rate_factor: ClassVar[float | None] = {FACTOR}

    name: Literal["fixed"] = Field("fixed", description="which variant")
    scale: float = Field(1.5, gt=0, description="s")


class Fixed(LoRA):
    config_class: ClassVar[type[Config]] = FixedConfig

    def scaling(self, trial: int, rank: int) -> float:
        return self.configs[trial].scale if rank else 0.0
'''


@pytest.fixture(autouse=True)
def one_file_and_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fixed_variant.py").write_text(FILE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(VARIANTS, "fixed", VariantEntry("fixed_variant", "Fixed", "ΔW = s B A, s a number"))
    monkeypatch.delitem(sys.modules, "fixed_variant", raising=False)


def test_every_configuration_resolves_with_a_variant_that_none_names() -> None:
    files = [path for path in CONFIGS.glob("**/*.yaml") if path.parent.name != "studies"]
    assert files
    for path in files:
        lora, fixed = (load(path, variant=name) for name in ("lora", "fixed"))
        factor = 1 if path.parent.name == "recipes" else FACTOR  # recipes name one rate, that of the run
        assert fixed.learning_rate == lora.learning_rate * factor
        assert fixed.variant.rank == lora.variant.rank  # type: ignore[attr-defined]


def test_a_new_variant_is_an_arm_of_a_study_tuned_around_its_own_rate(tmp_path: Path) -> None:
    found = load_study(study_file(tmp_path, arms=[{"variant": ["lora", "fixed"], "scale": [1.0, 2.0], "rank": 4}]))
    centres = {arm.label: arm.centre for arm in found.arms}
    assert centres == {"lora r=4": 1e-2, "fixed r=4 scale=1": 7.5e-3, "fixed r=4 scale=2": 7.5e-3}


def test_a_new_variant_trains_and_leaves_a_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick = ["--set", "steps=5", "--set", "task.evaluation_rows=64", "--wandb", "disabled", "--runs-dir", str(tmp_path)]
    command = ["--config", str(CONFIGS / "planted.yaml"), "--variant", "fixed", *quick]
    assert main(command) == 0
    (path,) = (found for found in (tmp_path / "single").iterdir() if found.is_dir())
    record = RunDirectory(path)
    result = record.result()
    assert path.name.startswith("fixed-r4-lr0.0075-")
    assert (result["variant"], result["learning_rate"], set(result["scales"].values())) == ("fixed", 0.0075, {1.5})
    losses = [row["train/task_loss"] for row in record.history() if "train/task_loss" in row]
    assert len(losses) == 5
    assert losses[-1] < losses[0]
    assert (path / "adapter_model.safetensors").exists()
    assert main(command) == 0
    assert "already finished" in capsys.readouterr().out
