"""Values that no run can have: each is refused before any compute, shortened, with the rule and the way out."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import annotated_types
import pytest
from project_paths import CONFIGS
from pydantic import BaseModel
from tiny_studies import study_file

from experiments import run, study
from experiments.config.errors import ConfigError
from experiments.config.loading import load
from experiments.config.schema import RunConfig
from experiments.config.shown import LONGEST_MESSAGE, message, shown
from experiments.record.atomic_files import as_json, write_atomically
from experiments.record.errors import RecordError
from experiments.record.run_dir import RunDirectory
from experiments.record.runs_dir import refuse_unusable
from experiments.studies.spec.study import load_study
from experiments.studies.spec.study_config import StudyConfig
from experiments.tasks.registry import TASKS
from lora_variants import VARIANTS
from lora_variants.interface.ranks import ranks_by_layer

PLANTED = CONFIGS / "planted.yaml"
NOT_UTF8 = os.fsdecode(b"caf\xe9")


def errors(*overrides: str, path: Path = PLANTED, **layers: Any) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as error:
        load(path, overrides=overrides, **layers)
    return error.value.errors


def study_errors(folder: Path, *overrides: str, **changed: Any) -> tuple[str, ...]:
    begun = time.process_time()
    with pytest.raises(ConfigError) as error:
        load_study(study_file(folder, **changed), overrides)
    assert time.process_time() - begun < 2
    return error.value.errors


def whole_numbers(schema: type[BaseModel]) -> Iterator[tuple[str, list[Any]]]:
    """Every knob of a schema and of its sections that takes a whole number, with what is said of its values."""

    def parts(annotation: Any, marks: list[Any]) -> Iterator[tuple[Any, list[Any]]]:
        found = get_args(annotation)
        if hasattr(annotation, "__metadata__"):
            yield from parts(annotation.__origin__, [*marks, *annotation.__metadata__])
        elif found:
            for part in found:
                yield from parts(part, marks)
        else:
            yield annotation, marks

    for name, field in schema.model_fields.items():
        for kind, marks in parts(field.annotation, list(field.metadata)):
            if kind is int:
                yield (
                    f"{schema.__name__}.{name}",
                    [at for mark in marks for at in (mark, *getattr(mark, "metadata", ()))],
                )
            elif isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from whole_numbers(kind)


SCHEMAS = [RunConfig, StudyConfig] + [
    entry.load().config_class for table in (TASKS, VARIANTS) for entry in table.values()
]
COLUMNS = ("TextClassificationConfig.text", "TextClassificationConfig.label")  # names, which are not counted with


def test_every_whole_number_has_a_highest_value() -> None:
    found = {name: marks for schema in SCHEMAS for name, marks in whole_numbers(schema) if name not in COLUMNS}
    assert len(found) > 30
    assert not [
        name for name, marks in found.items() if not any(isinstance(mark, annotated_types.Le) for mark in marks)
    ]


@pytest.mark.parametrize("number", [10**11, 2**63 - 1, 2**63, 2**64 + 1, 10**400])
@pytest.mark.parametrize("knob", ["steps", "batch_size", "threads", "rank", "pad_rank_to", "task.evaluation_rows"])
def test_an_absurd_number_is_refused_by_the_knob_that_has_it(knob: str, number: int) -> None:
    (told,) = errors(f"{knob}={number}")
    assert told.partition(":")[0].endswith(knob)
    assert len(told) < 200


def test_factors_are_padded_to_no_more_than_a_rank_can_need(capsys: pytest.CaptureFixture[str]) -> None:
    plan = ["--config", str(PLANTED), "--plan", "--set"]
    assert run.main([*plan, "pad_rank_to=1000000"]) == 2
    assert "pad_rank_to 1,000,000 (in a search: search.highest_rank) pads to more than 64" in capsys.readouterr().err
    assert run.main([*plan, "pad_rank_to=128"]) == 0


def test_matrices_that_do_not_fit_into_memory_are_refused() -> None:
    (told,) = errors("task.matrices=[{d_out: 8192, d_in: 100000}]")
    assert "they have 886,308,864 numbers with their readouts, at most 268,435,456" in told
    assert load(PLANTED, overrides=["task.matrices=[{d_in: 100000}]"])


@pytest.mark.parametrize(
    "override",
    ["rank=" + "k" * 100_000, "k" * 100_000 + "=1", "k" * 100_000, ".".join("abc" * 1000) + "=1", "rank=" + "9" * 5000,
     "rank=[" + "a, " * 9000 + "]", "study=" + "s" * 9000, "targets=['" + "*a" * 3000 + "']"],
    ids=range(8),
)  # fmt: skip
def test_a_long_value_is_not_echoed_whole_nor_does_it_take_long(override: str) -> None:
    begun = time.process_time()
    assert all(len(told) < 500 for told in errors(override))
    assert time.process_time() - begun < 1


def test_what_is_printed_is_short_and_has_no_control_characters() -> None:
    assert shown("four") == "'four'"
    assert shown(10**5000) == "a number of 16610 bits"
    assert len(shown([["x" * 1000] * 1000] * 1000)) < 1000
    assert len(message("a" * 5_000_000)) < LONGEST_MESSAGE + 100
    assert message("a\x1b[31m\udcffb\n") == "a\\x1b[31m\\udcffb\n"


def test_a_target_or_rank_pattern_has_a_length_and_many_patterns_take_little_time() -> None:
    assert "at most 1000 characters" in errors("targets=['" + "a" * 1001 + "']")[0]
    assert "at least 1 character" in errors('rank={"": 2}')[0]
    begun, shapes = time.process_time(), {f"layers.{i}": (8, 8) for i in range(10)}
    with pytest.raises(ValueError, match=r"rank pattern '\*0x', .*\(5000 in all\) matches no targeted layer"):
        ranks_by_layer({"*": 1} | {f"*{i}x": 1 for i in range(5000)}, shapes)
    assert time.process_time() - begun < 2


def test_a_wrong_variant_does_not_hide_wrong_knobs_that_all_adapters_share() -> None:
    found = errors("variant.name=lorra", "rank=-1", "dropout=2")
    assert len(found) == 3
    assert "did you mean 'lora'?" in found[0]
    assert "variant.rank: must be at least 0, got -1" in found[1]
    assert "variant.dropout: must be below 1, got 2" in found[2]


def test_a_key_of_two_sections_is_one_error_and_changes_neither() -> None:
    assert errors("name=full") == ("name: stands for task.name and variant.name; give the whole path",)


def test_a_word_where_a_list_belongs_and_a_number_where_a_text_belongs_are_told_the_way_out() -> None:
    assert errors("targets=attention") == ("targets: must be a list, got 'attention': write [...] around it",)
    assert errors("study=2024") == ("study: must be a text, got 2024; write it in quotes for a text",)


@pytest.mark.parametrize(
    ("key", "near"), [("lr", "training.learning_rate"), ("bs", "training.batch_size"), ("wd", "training.weight_decay")]
)
def test_the_initials_of_a_key_are_near_to_it(key: str, near: str) -> None:
    assert f"{key}: unknown key (did you mean '{near}'?)" in errors(f"{key}=1")[0]


def test_a_section_that_is_a_number_is_an_error_though_a_knob_of_it_is_set() -> None:
    assert errors("training=5", "steps=3")[0].startswith("training: must be a map of keys to values")


@pytest.mark.parametrize("override", ["steps", "=5", "=", "training..steps=3", ".steps=3", "training.=3"])
def test_what_is_no_override_is_told_how_one_looks(override: str) -> None:
    assert errors(override) == (f"--set '{override}': an override is key=value, e.g. training.steps=100",)


def test_the_file_of_the_other_command_is_one_line_that_names_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    of_a_study = study_file(tmp_path)
    assert run.main(["--config", str(of_a_study), "--plan"]) == 2
    assert capsys.readouterr().err == (
        f"error: {of_a_study}: this is the file of a study, which study.py reads: study.py {of_a_study}\n"
    )
    assert study.main([str(PLANTED), "--plan"]) == 2
    assert capsys.readouterr().err == (
        f"error: {PLANTED}: this is the file of a run, which run.py reads: run.py --config {PLANTED}\n"
    )
    assert study_errors(tmp_path, config=str(CONFIGS / "studies" / "rank.yaml"))[0].startswith("config: ")


@pytest.mark.parametrize("flag", [["--rank", "x" * 9000], ["--rank", "9" * 9000], ["--seed", "1.5"]])
def test_a_flag_that_is_no_whole_number_says_so(flag: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        run.main([*flag, "--plan"])
    assert f"argument {flag[0]}: a whole number, not '{flag[1][:40]}'" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--workers", "--pack"])
@pytest.mark.parametrize("number", ["0", "99999999999", "9" * 5000, "²"])
def test_a_study_starts_no_absurd_number_of_processes(
    flag: str, number: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        study.main([str(study_file(tmp_path)), flag, number, "--plan"])
    assert f"argument {flag}: a whole number from 1 to 1000, not '{number[:40]}'" in capsys.readouterr().err


def test_a_study_whose_name_is_too_long_for_a_file_is_no_file(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        study.main(["a" * 5000])
    assert "is no file; in " in capsys.readouterr().err


def test_lists_that_multiply_to_a_million_arms_are_refused_before_they_are_multiplied(tmp_path: Path) -> None:
    many = {"variant": "lora", "rank": list(range(1, 101)), "alpha": list(range(1, 101))}
    many["dropout"] = [i / 1000 for i in range(100)]
    assert study_errors(tmp_path, arms=[many]) == ("arms: 1,000,000 arms; a study has at most 2,000, make it several",)


def test_a_study_of_too_many_trials_is_refused(tmp_path: Path) -> None:
    seeds = list(range(1000, 10_500))
    arms = [{"variant": "lora", "rank": list(range(1, 12))}]
    protocol = {
        "margin": 1,
        "evaluation": {"seeds": seeds},
        "tuning": {"shared": True, "learning_rate_multipliers": [1, 2]},
    }
    (told,) = study_errors(tmp_path, arms=arms, protocol=protocol)
    assert told.startswith("protocol: up to 104,544 trials; a study has at most 100,000")


def test_seeds_that_differ_in_their_seventh_digit_are_two_seeds(tmp_path: Path) -> None:
    protocol = {"margin": 1, "evaluation": {"seeds": [1_000_000, 1_000_001]}}
    assert load_study(study_file(tmp_path, protocol=protocol)).protocol.evaluation.seeds == [1_000_000, 1_000_001]
    protocol["evaluation"] = {"seeds": [2**53 + 1]}
    assert "must be at most 9007199254740992" in study_errors(tmp_path, protocol=protocol)[0]


def test_keys_of_a_search_that_are_no_names_are_errors(tmp_path: Path) -> None:
    found = study_errors(
        tmp_path,
        search={"budget": {"total_rank": 4}},
        arms=[{"allocation": 5, "sampler": [["a"]], "search_seed": -1}],
        protocol={"margin": 1},
    )
    text = "\n".join(found)
    assert "allocation: 5 is not known; one of grouped" in text
    assert "sampler: ['a'] is not known; one of tpe" in text
    assert "search_seed: a whole number from 0 to 9223372036854775807, got -1" in text


@pytest.mark.parametrize("label", ["\x1b[31m", "two\nlines", "nul\0"])
def test_a_label_is_a_line_that_can_be_printed(tmp_path: Path, label: str) -> None:
    (told,) = study_errors(tmp_path, arms=[{"label": label, "variant": "lora"}])
    assert told == f"arms.0.label: a label is a line of printable text, got {label!r}"


def test_a_label_with_brackets_is_printed_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = study_file(tmp_path, arms=[{"label": "[red] [/x]", "variant": "lora"}, {"variant": "adalora"}])
    assert study.main([str(file), "--plan"]) == 0
    assert "[red] [/x]" in capsys.readouterr().out


def test_a_path_that_is_not_utf8_is_refused_before_a_run_or_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / NOT_UTF8
    folder.mkdir()
    with pytest.raises(RecordError, match="the path is not UTF-8; give a folder whose path is"):
        refuse_unusable(folder / "runs")
    file = folder / "c.yaml"
    file.write_text(PLANTED.read_text())
    quick = ["--config", str(file), "--set", "task.evaluation_rows=8", "--set", "steps=1", "--wandb", "disabled"]
    assert run.main([*quick, "--runs-dir", str(folder)]) == 2
    assert [path.name for path in folder.iterdir()] == ["c.yaml"]
    assert "the path is not UTF-8" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["run.py", *quick])  # it is in the run's environment.json
    assert run.main([*quick, "--runs-dir", str(tmp_path / "runs")]) == 0
    (run_dir,) = (tmp_path / "runs" / "single").glob("lora*")
    assert RunDirectory(run_dir).environment()["command"][2] == str(file)
    monkeypatch.chdir(folder)
    (told,) = errors("start.path=here")
    assert told.endswith("is not UTF-8; give the file or folder a name that is")


def test_a_record_can_hold_a_path_that_is_not_utf8(tmp_path: Path) -> None:
    write_atomically(tmp_path / "environment.json", as_json({"command": [NOT_UTF8]}))
    assert RunDirectory(tmp_path).environment() == {"command": [NOT_UTF8]}
    RunDirectory(tmp_path).fail(f"no {NOT_UTF8}")
    assert (tmp_path / "error.txt").read_text() == "no caf\\udce9\n"


TREC = CONFIGS / "trec.yaml"


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("task.validation=10", "must be below 1, got 10"),
        ("rank=four", "must be a whole number or a map of keys to values, got 'four'"),
        ('rank={"*": four}', "must be a whole number, got 'four'"),
        ("study=a b", "must be a name of letters, digits, '_', '.' and '-' that begins with a letter, a digit or '_', "
         "got 'a b'"),
        ("targets=[]", "must have at least 1 item, got []"),
        ("task.max_length=12", "must be a multiple of 8, got 12"),
        ("lr_schedule=step", "must be 'linear', 'cosine' or 'constant', got 'step'"),
    ],
)  # fmt: skip
def test_rules_are_told_in_plain_words_and_the_value_once(override: str, told: str) -> None:
    (error,) = errors(override, path=TREC)
    assert error.partition(": ")[2] == told


def test_an_override_that_is_no_yaml_is_told_how_quotes_go_round_its_value() -> None:
    (error,) = errors("task.encoding=||", path=TREC)
    assert error.startswith("task.encoding: invalid YAML: ")
    assert error.endswith("""; put the value in quotes: --set 'task.encoding="VALUE"'""")
    assert load(TREC, overrides=['task.encoding="||"']).tree()["task"]["encoding"] == "||"


def test_labels_that_are_whole_numbers_are_their_texts_and_truths_are_none() -> None:
    task: Any = load(TREC, overrides=["task.labels=[0, 1]"]).task
    assert task.labels == ["0", "1"]
    assert errors("task.labels=[yes, x]", path=TREC) == (
        "task.labels.0: must be a text, got True; write it in quotes for a text",
    )
