"""The README: its Python runs as it stands there, its commands resolve, and the files it names exist."""

import re
import shlex
from pathlib import Path

import pytest
from project_paths import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
DATA = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
SHELL = "\n".join(re.findall(r"```sh\n(.*?)```", README, re.DOTALL)).splitlines()
TREE = README.partition("## Architecture")[2].partition("```text\n")[2].partition("```")[0]


def commands(script: str) -> list[str]:
    """The lines of the shell blocks that start a script."""
    return [line for line in SHELL if line.startswith(f"python experiments/{script}")]


def arguments(command: str) -> list[str]:
    return shlex.split(command, comments=True)[2:]


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_the_readme_s_python_runs(code: str) -> None:
    exec(compile(code, "README.md", "exec"), {})


@pytest.mark.parametrize("text", re.findall(r"```yaml\n(.*?)```", DATA, re.DOTALL))
def test_the_configurations_of_the_documentation_of_data_resolve(text: str, tmp_path: Path) -> None:
    from experiments.config.loading import load

    (tmp_path / "c.yaml").write_text(text)
    load(tmp_path / "c.yaml")


def test_the_files_that_the_readme_names_exist() -> None:
    folders = "experiments|lora_variants|analysis|configs|tests|examples|docs"
    named = set(re.findall(rf"\b((?:{folders})/[\w./]*\w/?)", README)) | {".ci/run"}
    assert len(named) > 20
    assert not {name for name in named if not (ROOT / name).exists()}


def test_the_tree_of_the_architecture_names_every_folder_and_no_other() -> None:
    named: set[str] = set()
    path: list[str] = []
    for indent, folder in re.findall(r"^( *)(\w+)/", TREE, re.MULTILINE):
        path[len(indent) // 2 :] = [folder]
        named.add("/".join(path))
    there = {
        str(file.parent.relative_to(ROOT))
        for package in ("lora_variants", "experiments", "analysis", "configs")
        for kind in ("*.py", "*.yaml")
        for file in (ROOT / package).rglob(kind)
    }
    assert named == there | {"examples", "tests", "docs"}


def test_every_variant_is_in_the_readme_and_no_other() -> None:
    from lora_variants import VARIANTS

    table = README.partition("## The variants")[2].partition("##")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == set(VARIANTS)


@pytest.mark.parametrize("command", commands("run.py"))
def test_every_setting_of_a_run_in_a_shell_block_is_a_key_of_its_schema(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from experiments.config.loading import load
    from experiments.run import parse_arguments

    monkeypatch.chdir(ROOT)
    asked = parse_arguments(arguments(command))
    flags = {"variant": asked.variant, "rank": asked.rank, "seed": asked.seed, "start_from": asked.start_from}
    load(asked.config, **flags, overrides=asked.overrides)


@pytest.mark.parametrize("command", commands("study.py"))
def test_every_study_in_a_shell_block_resolves(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from experiments.studies.spec.study import load_study
    from experiments.study import parse_arguments

    monkeypatch.chdir(ROOT)
    asked = parse_arguments(arguments(command))
    load_study(asked.file, asked.overrides)


@pytest.mark.parametrize("setting", sorted(set(re.findall(r"`--set ([\w.]+=[^\s`]+)`", README))))
def test_every_setting_in_the_prose_is_a_key_of_the_default_schema(setting: str) -> None:
    from experiments.config.loading import load

    load(ROOT / "configs" / "bytes.yaml", overrides=[setting])
