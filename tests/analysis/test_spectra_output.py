"""`spectra.py` sees first whether it can write where it is told to."""

from pathlib import Path

import pytest
from safetensors.torch import save_file
from torch import eye, zeros

from analysis.spectra import FILES, main


@pytest.mark.parametrize("request_", [["nowhere"], ["--before", "nowhere", "--after", "nowhere"]])
def test_a_place_that_takes_no_files_is_refused_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], request_: list[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        assert main([*request_, "--out", str(out)]) == 2
        said = f"{tmp_path / 'file'} is no folder, so nothing can be written to {out}; name another folder with --out"
        assert capsys.readouterr().err == f"spectra.py: error: {said}\n"


def test_what_is_written_is_what_was_looked_at(tmp_path: Path) -> None:
    for name, W in (("before", zeros(4, 4)), ("after", eye(4))):
        (tmp_path / name).mkdir()
        save_file({"a.weight": W}, tmp_path / name / "model.safetensors")
    request = ["--before", str(tmp_path / "before"), "--after", str(tmp_path / "after")]
    assert main([*request, "--out", str(tmp_path / "out")]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(FILES)
