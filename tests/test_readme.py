"""The README: its Python runs as it stands there, and the files it names exist."""

import re

import pytest
from project_paths import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_the_readme_s_python_runs(code: str) -> None:
    exec(compile(code, "README.md", "exec"), {})


def test_the_files_that_the_readme_names_exist() -> None:
    named = set(re.findall(r"`((?:experiments|lora_variants|analysis|configs)/[\w./]+)`", README))
    assert named
    assert not {name for name in named if not (ROOT / name).exists()}


def test_every_variant_is_in_the_readme_and_no_other() -> None:
    from lora_variants import VARIANTS

    table = README.partition("## The variants")[2].partition("##")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == set(VARIANTS)
