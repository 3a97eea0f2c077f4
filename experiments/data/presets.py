"""Benchmarks by name: where their columns, labels and splits are, in the files that circulate and on the Hub.

GLUE publishes no labels of its test splits, so its dev splits are the test splits here and a share of the
training rows is for validation (MRPC apart, whose test labels are public).
"""

from dataclasses import dataclass, field
from typing import Any

TREC_FINE = [
    f"{coarse}:{fine}"
    for coarse, fines in {
        "ABBR": "abb exp",
        "DESC": "def desc manner reason",
        "ENTY": "animal body color cremat currency dismed event food instru lang letter other plant product religion "
        "sport substance symbol techmeth termeq veh word",
        "HUM": "desc gr ind title",
        "LOC": "city country mount other state",
        "NUM": "code count date dist money ord other perc period speed temp volsize weight",
    }.items()
    for fine in fines.split()
]
NOT_BOTH = ["entailment", "not_entailment"]


@dataclass(frozen=True)
class Preset:
    """Knobs of the task: those that always hold, those of files, those of the Hub."""

    always: dict[str, Any]
    files: dict[str, Any] = field(default_factory=dict)
    hub: dict[str, Any] = field(default_factory=dict)

    def knobs(self, *, local: bool) -> dict[str, Any]:
        return self.always | (self.files if local else self.hub)


def _glue(
    subset: str, text: list[str], *, metrics: list[str], label: str = "label", labels: list[str] | None = None,
    files: dict[str, Any] | None = None, **more: Any,
) -> Preset:  # fmt: skip
    always = {"metrics": metrics, "regression": labels is None, "labels": labels, "label": "label", "text": text}
    always |= {"test": "dev|validation", "validation": 0.1} | more
    return Preset(
        always=always,
        files={"label": label, "quoted": False, **(files or {})},
        hub={"path": "nyu-mll/glue", "subset": subset},
    )


def _trec(column: str, labels: list[str]) -> Preset:
    return Preset(
        always={"text": ["text"], "label": column, "labels": labels, "metrics": ["accuracy", "mcc"], "validation": 0.1},
        files={"test": "test*|TREC*", "encoding": "latin-1"},
        hub={"path": "CogComp/trec", "revision": "refs/convert/parquet"},
    )


TWO = ["0", "1"]
PRESETS: dict[str, Preset] = {
    "trec/fine": _trec("fine_label", TREC_FINE),
    "trec/coarse": _trec("coarse_label", ["ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM"]),
    "sst2_sentences": Preset(
        always={"labels": TWO, "metrics": ["accuracy"]},
        files={"header": False, "text": ["0"], "label": "1", "quoted": False},
        hub={"path": "SetFit/sst2", "text": ["text"], "label": "label"},
    ),
    "glue/cola": _glue(
        "cola", ["sentence"], labels=TWO, metrics=["mcc", "accuracy"],
        files={"header": False, "text": ["3"], "label": "1"},
    ),
    "glue/sst2": _glue("sst2", ["sentence"], labels=TWO, metrics=["accuracy"]),
    "glue/mrpc": _glue(
        "mrpc", ["sentence1", "sentence2"], labels=TWO, metrics=["accuracy", "f1"], label="Quality",
        files={"text": ["#1 String", "#2 String"], "test": "msr_paraphrase_test|test", "validation": "dev"},
        validation="validation", test="test",
    ),
    "glue/qqp": _glue(
        "qqp", ["question1", "question2"], labels=TWO, metrics=["accuracy", "f1"], label="is_duplicate"
    ),
    "glue/stsb": _glue("stsb", ["sentence1", "sentence2"], metrics=["pearson", "spearman"], label="score"),
    "glue/mnli": _glue(
        "mnli", ["premise", "hypothesis"], labels=["entailment", "neutral", "contradiction"], metrics=["accuracy"],
        label="gold_label", files={"text": ["sentence1", "sentence2"]}, test="dev_matched|validation_matched",
    ),
    "glue/qnli": _glue("qnli", ["question", "sentence"], labels=NOT_BOTH, metrics=["accuracy"]),
    "glue/rte": _glue("rte", ["sentence1", "sentence2"], labels=NOT_BOTH, metrics=["accuracy"]),
    "glue/wnli": _glue("wnli", ["sentence1", "sentence2"], labels=TWO, metrics=["accuracy"]),
}  # fmt: skip
