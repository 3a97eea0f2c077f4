"""`predictions.parquet`: the metrics of `result.json` follow from it, and its rows are those of the user's files."""

import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from project_paths import CONFIGS, ROOT
from scipy import stats
from sklearn import metrics
from text_data import SENTENCES, write_model
from tiny_runs import only_run, tiny_run

from experiments.config.loading import load
from experiments.config.schema import RunConfig
from experiments.config.yaml_files import yaml_text
from experiments.packed_runs import execute_in_packs
from experiments.record.predictions import read_predictions, write_predictions
from experiments.record.run_dir import RunDirectory
from experiments.runner import Finished, execute
from experiments.terminal import Display

FILE = "predictions.parquet"
LINES = [f"a {s.split()[2]}||{s}" for s in SENTENCES]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {kind: write_model(tmp_path_factory.mktemp(kind), kind) for kind in ("bert", "llama")}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.data.tokens.cache_folder", lambda: tmp_path / "cache")


def configured(folder: Path, task: dict[str, Any], model: str) -> RunConfig:
    """Of a run of four steps."""
    pooling = {"pooling": "mean"} if task["name"] == "text_classification" else {}
    training = {"steps": 4, "batch_size": 8, "threads": 1, "learning_rate": 1e-2}
    tree = {"task": task, "variant": {"name": "lora", "rank": 2}, "targets": ["all-linear"], "training": training}
    tree |= {"model": {"name": model} | pooling, "wandb": {"mode": "disabled"}}
    (folder / "c.yaml").write_text(yaml_text(tree))
    return load(folder / "c.yaml")


def executed(folder: Path, task: dict[str, Any], model: str, *, test: bool = True) -> Finished:
    config = configured(folder, task, model)
    return execute(config, runs_dir=folder / "runs", test=test, display=Display.silent())


def of_split(finished: Finished, split: str) -> pd.DataFrame:
    table = pd.read_parquet(finished.folder / FILE)
    return table[table["split"] == split].reset_index(drop=True)


def write_csv(folder: Path, label: Callable[[int], object]) -> dict[str, Any]:
    """train.csv, dev.csv and test.csv; the knobs that read them."""
    (folder / "data").mkdir()
    for split, part in {"train": range(64), "dev": range(64, 90), "test": range(90, 108)}.items():
        rows = [f"{SENTENCES[(i * 37) % 108]},{label(i)}" for i in part]
        (folder / "data" / f"{split}.csv").write_text("\n".join(["sentence,label", *rows]) + "\n")
    return {"name": "text_classification", "text": ["sentence"], "max_length": 32, "path": str(folder / "data")}


def test_accuracy_mcc_and_f1_are_those_that_scikit_learn_has_of_the_predictions(
    tmp_path: Path, models: dict[str, str]
) -> None:
    task = write_csv(tmp_path, lambda i: "cat" if "cat" in SENTENCES[(i * 37) % 108] else "other")
    finished = executed(tmp_path, task | {"metrics": ["accuracy", "mcc", "f1"]}, models["bert"])
    for split in ("validation", "test"):
        rows = of_split(finished, split)
        assert list(rows) == ["split", "row", "file", "line", "label", "prediction", "loss"]
        assert finished.result[split] == pytest.approx(
            {
                "loss": rows["loss"].mean(),
                "accuracy": metrics.accuracy_score(rows["label"], rows["prediction"]),
                "mcc": metrics.matthews_corrcoef(rows["label"], rows["prediction"]),
                "f1": metrics.f1_score(rows["label"], rows["prediction"], pos_label="other"),
            },
            rel=1e-12,
        )
        right = rows["label"] == rows["prediction"]
        assert (right == (rows["loss"] < math.log(2))).all(), "exp(-loss) is the probability of the label"


def test_the_example_of_another_metric_gives_it(
    tmp_path: Path, models: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    task = write_csv(tmp_path, lambda i: "yes" if "cat" in SENTENCES[(i * 37) % 108] else "no")
    folder = executed(tmp_path, task, models["bert"], test=False).folder
    example = (ROOT / "docs" / "predictions.md").read_text().partition("```python\n")[2].partition("```")[0]
    code = re.sub(r"runs/.*(?=/predictions.parquet)", str(folder), example)
    exec(code, {})
    rows = pd.read_parquet(folder / FILE)
    p_yes = np.where(rows["label"] == "yes", np.exp(-rows["loss"]), 1 - np.exp(-rows["loss"]))
    ranks, yes = stats.rankdata(p_yes), rows["label"] == "yes"
    auc = (ranks[yes].mean() - (yes.sum() + 1) / 2) / (~yes).sum()
    assert float(capsys.readouterr().out) == pytest.approx(auc)
    assert 0 < auc < 1


def test_both_correlations_are_those_that_scipy_has_of_the_predicted_numbers(
    tmp_path: Path, models: dict[str, str]
) -> None:
    task = write_csv(tmp_path, lambda i: len(SENTENCES[(i * 37) % 108]) / 10)
    finished = executed(tmp_path, task | {"regression": True}, models["bert"])
    for split in ("validation", "test"):
        rows = of_split(finished, split)
        expected = {
            "loss": metrics.mean_squared_error(rows["label"], rows["prediction"]),
            "pearson": stats.pearsonr(rows["label"], rows["prediction"]).statistic,
            "spearman": stats.spearmanr(rows["label"], rows["prediction"]).statistic,
        }
        assert finished.result[split] == pytest.approx(expected, rel=1e-5)
        assert finished.result[split]["loss"] == pytest.approx(rows["loss"].mean(), rel=1e-12)


@pytest.mark.parametrize("layout", ["stream", "lines"])
def test_loss_and_perplexity_are_means_over_the_tokens_of_the_rows(
    tmp_path: Path, models: dict[str, str], layout: str
) -> None:
    task = lines_of_text(tmp_path) | ({"layout": layout} if layout == "stream" else {"prompt_separator": "||"})
    finished = executed(tmp_path, task, models["llama"])
    for split in ("validation", "test"):
        rows = of_split(finished, split)
        loss = (rows["loss"] * rows["tokens"]).sum() / rows["tokens"].sum()
        assert finished.result[split] == pytest.approx({"loss": loss, "perplexity": math.exp(loss)}, rel=1e-12)
        assert list(rows) == ["split", "row", *(["file", "line"] if layout == "lines" else []), "tokens", "loss"]
        assert list(rows["row"]) == [*range(len(rows))]


@pytest.mark.parametrize("name", ["bytes", "digits", "planted"])
def test_the_scores_of_the_built_in_tasks_follow_from_the_predictions(tmp_path: Path, name: str) -> None:
    small = ["steps=2", "batch_size=8", "evaluate_every=0", "wandb.mode=disabled"]
    finished = execute(
        load(CONFIGS / f"{name}.yaml", overrides=small), runs_dir=tmp_path, test=True, display=Display.silent()
    )
    for split in ("validation", "test"):
        rows = of_split(finished, split)
        loss = (rows["loss"] * rows["tokens"]).sum() / rows["tokens"].sum() if name == "bytes" else rows["loss"].mean()
        expected = {"loss": loss}
        if name == "bytes":
            expected["bits_per_byte"] = loss / math.log(2)
        elif name == "digits":
            assert set(rows["label"]) == set("56789")
            expected["accuracy"] = metrics.accuracy_score(rows["label"], rows["prediction"])
        else:
            expected["squared_error"] = loss
        assert finished.result[split] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_the_predictions_of_a_run_are_the_same_alone_and_in_a_pack(
    tmp_path: Path, models: dict[str, str], kind: str
) -> None:
    task = write_csv(tmp_path, lambda i: i % 2) if kind == "bert" else lines_of_text(tmp_path)
    config = configured(tmp_path, task, models[kind])
    configs = [config.model_copy(update={"seed": seed}) for seed in range(3)]
    for size in (1, 3):
        runs_dir = tmp_path / f"packs of {size}"
        execute_in_packs(configs, pack=size, runs_dir=runs_dir, test=True, display=Display.silent())
    alone, packed = ([path.read_bytes() for path in sorted(tmp_path.glob(f"packs of {n}/*/*/{FILE}"))] for n in (1, 3))
    assert alone == packed
    assert len(set(alone)) == 3


def test_a_row_is_the_one_of_its_line_in_the_file_also_where_rows_are_scored_by_length_or_left_out(
    tmp_path: Path, models: dict[str, str]
) -> None:
    task = write_csv(tmp_path, lambda i: len(SENTENCES[(i * 37) % 108]) / 10 + i / 1000)  # each its own
    lines = (tmp_path / "data" / "dev.csv").read_text().splitlines()
    lines.insert(3, "one field too few")
    (tmp_path / "data" / "dev.csv").write_text("\n".join(lines) + "\n")
    finished = executed(tmp_path, task | {"regression": True, "skip_malformed": True}, models["bert"], test=False)
    rows = of_split(finished, "validation")
    assert list(rows["row"]) == [*range(26)]
    assert list(rows["line"]) == [2, 3, *range(5, 29)]
    in_file = [float(lines[line - 1].split(",")[1]) for line in rows["line"]]
    assert list(rows["label"]) == pytest.approx(in_file, rel=1e-6)


def test_rows_that_were_drawn_from_the_training_file_have_its_lines(tmp_path: Path, models: dict[str, str]) -> None:
    task = write_csv(tmp_path, float) | {"regression": True, "validation": 0.3, "test": "test", "train": "train"}
    rows = of_split(executed(tmp_path, task, models["bert"], test=False), "validation")
    assert list(rows["row"]) == [*range(19)]
    assert set(rows["file"]) == {"train.csv"}
    assert list(rows["line"]) == [*(rows["label"].astype(int) + 2)]
    assert len(set(rows["line"])) == 19


def test_a_row_of_one_of_several_files_has_the_file_s_name(tmp_path: Path, models: dict[str, str]) -> None:
    task = write_csv(tmp_path, float) | {"regression": True}
    data = tmp_path / "data"
    header, *lines = (data / "dev.csv").read_text().splitlines()
    for i, part in enumerate((lines[:9], lines[9:])):
        (data / f"dev-{i}-of-2.csv").write_text("\n".join([header, *part]) + "\n")
    (data / "dev.csv").unlink()
    rows = of_split(executed(tmp_path, task, models["bert"], test=False), "validation")
    content = {name: (data / name).read_text().splitlines() for name in set(rows["file"])}
    found = [content[file][line - 1] for file, line in zip(rows["file"], rows["line"], strict=True)]
    assert found == lines
    assert len(content) == 2


def lines_of_text(folder: Path) -> dict[str, Any]:
    """valid.txt and test.txt of unlike lines, each with a prompt; the knobs that read them."""
    (folder / "data").mkdir()
    for name, part in {"train": LINES[:60], "valid": LINES[60:80], "test": LINES[80:]}.items():
        (folder / "data" / f"{name}.txt").write_text("\n\n".join(part) + "\n")
    return {"name": "language_modeling", "context": 16, "layout": "lines", "path": str(folder / "data")}


def test_the_rows_of_a_language_model_are_those_of_their_lines_also_where_only_some_are_scored(
    tmp_path: Path, models: dict[str, str]
) -> None:
    task = lines_of_text(tmp_path) | {"prompt_separator": "||", "score": "reference", "evaluation_rows": 7}
    rows = of_split(executed(tmp_path, task, models["llama"], test=False), "validation")
    assert len(rows) == 7
    assert list(rows["line"]) == [*(2 * rows["row"] + 1)], "every second line is blank and no row"
    of_line = [len(LINES[60 + row].partition("||")[2].split()) + 1 for row in rows["row"]]  # and the end
    assert list(rows["tokens"]) == of_line


def test_the_test_split_has_rows_where_it_was_read_and_later_the_same_as_at_once(tmp_path: Path) -> None:
    assert tiny_run(tmp_path / "later") == tiny_run(tmp_path / "at once", "--test") == 0
    later, at_once = only_run(tmp_path / "later"), only_run(tmp_path / "at once")
    first = pd.read_parquet(later.path / FILE)
    assert set(first["split"]) == {"validation"}
    assert tiny_run(tmp_path / "later", "--test") == 0
    assert later.result()["test"] == at_once.result()["test"]
    assert (later.path / FILE).read_bytes() == (at_once.path / FILE).read_bytes()
    later.check_files()
    assert pd.read_parquet(later.path / FILE)["split"].value_counts().to_dict() == {"validation": 64, "test": 64}


@pytest.fixture
def killed(tmp_path: Path) -> RunDirectory:
    """A run whose test score was written down, and whose predictions were about to be when it was killed."""
    assert tiny_run(tmp_path) == 0
    run = only_run(tmp_path)
    shutil.copy(run.path / FILE, tmp_path / "before")
    assert tiny_run(tmp_path, "--test") == 0
    (run.path / FILE).replace(run.path / f"{FILE}.123.partial")
    shutil.copy(tmp_path / "before", run.path / FILE)
    return run


def test_a_kill_between_a_later_test_score_and_its_rows_loses_neither(killed: RunDirectory) -> None:
    killed.check_files()
    rows = pd.read_parquet(killed.path / FILE)
    assert rows[rows["split"] == "test"]["loss"].mean() == pytest.approx(killed.result()["test"]["loss"], rel=1e-12)


def test_no_other_file_takes_the_place_of_the_predictions(killed: RunDirectory) -> None:
    (killed.path / f"{FILE}.123.partial").write_bytes((killed.path / FILE).read_bytes() + b" ")
    with pytest.raises(ValueError, match=f"{FILE} is not what the run wrote"):
        killed.check_files()


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-1])])
def test_damaged_predictions_are_refused_before_the_test_split_is_read(
    tmp_path: Path, damage: Callable[[Path], object], capsys: pytest.CaptureFixture[str]
) -> None:
    assert tiny_run(tmp_path) == 0
    damage(only_run(tmp_path).path / FILE)
    assert tiny_run(tmp_path, "--test") == 2
    assert str(only_run(tmp_path).path / FILE) in capsys.readouterr().err
    assert not (tmp_path / "test_reads.jsonl").exists()


def test_a_run_of_an_earlier_version_stays_readable_and_gets_the_rows_of_a_later_test_score(tmp_path: Path) -> None:
    assert tiny_run(tmp_path) == 0
    run = only_run(tmp_path)
    (run.path / FILE).unlink()
    result = run.path / "result.json"
    result.write_text("".join(line for line in result.read_text().splitlines(True) if FILE not in line))
    assert tiny_run(tmp_path) == tiny_run(tmp_path, "--test") == 0
    run.check_files()
    rows = pd.read_parquet(run.path / FILE)
    assert set(rows["split"]) == {"test"}
    assert rows["loss"].mean() == pytest.approx(run.result()["test"]["loss"], rel=1e-12)


def test_rows_of_a_split_that_were_kept_without_a_column_stay_beside_those_that_have_it(tmp_path: Path) -> None:
    row, loss = torch.arange(2), torch.rand(2)
    write_predictions(tmp_path / FILE, {"validation": {"row": row, "loss": loss}})
    of_test = {"row": row, "file": ["a.csv", "b.csv"], "loss": loss}
    write_predictions(tmp_path / FILE, read_predictions(tmp_path / FILE) | {"test": of_test})
    assert list(pd.read_parquet(tmp_path / FILE)["file"].fillna("")) == ["", "", "a.csv", "b.csv"]


def test_a_test_score_that_comes_without_rows_changes_no_predictions(tmp_path: Path) -> None:
    """As one does that is collected from a run of an earlier version."""
    assert tiny_run(tmp_path) == 0
    run = only_run(tmp_path)
    run.add_test({"loss": 1.0, "squared_error": 1.0}, {})
    run.check_files()
    assert run.result()["test"]["loss"] == 1.0
    assert set(pd.read_parquet(run.path / FILE)["split"]) == {"validation"}


def test_one_label_for_all_rows_is_told_at_the_end_of_a_run(
    tmp_path: Path, models: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(Display, "warn", lambda _, text: told.append(text))
    task = write_csv(tmp_path, lambda i: "yes" if i in (3, 9) or (i > 63 and i % 9 == 0) else "no")
    config = configured(tmp_path, task, models["bert"])
    execute(config, runs_dir=tmp_path / "runs", test=True, display=Display.silent())
    constant = (
        "were given the label 'no': the score is that of a constant; more steps or another learning rate may help"
    )
    assert told == [f"all 26 rows of validation {constant}", f"all 18 rows of test {constant}"]
    told.clear()
    (tmp_path / "numbers").mkdir()
    executed(tmp_path / "numbers", write_csv(tmp_path / "numbers", lambda i: i) | {"regression": True}, models["bert"])
    assert not told
