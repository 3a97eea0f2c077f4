"""Knobs of the `text_classification` task: its columns, labels and metrics, of a preset or the user's own."""

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from experiments.data.doubts import Suspicion
from experiments.data.presets import PRESETS
from experiments.tasks.metrics import OF_CLASSES, OF_NUMBERS, Metric
from experiments.tasks.text_config import TextDataConfig, location


class TextClassificationConfig(TextDataConfig):
    places: ClassVar[tuple[str, ...]] = (*TextDataConfig.places, "suspicious_labels")

    name: Literal["text_classification"] = "text_classification"
    preset: str | None = Field(None, description=f"columns, labels, splits and metrics of: {', '.join(PRESETS)}")
    text: list[str | int] | None = Field(
        None, min_length=1, max_length=2, description="column of the text, or two of a pair; numbers without a header"
    )
    label: str | int | None = Field(None, description="column of the label")
    labels: list[str] | None = Field(
        None, min_length=2, description="the labels in the order of their numbers; null: those of the training rows"
    )
    regression: bool | None = Field(None, description="the label is a number to predict")
    metrics: list[Metric] | None = Field(None, min_length=1, description="metrics to log; the first is the score")
    header: bool | None = Field(None, description="csv and tsv: the first row names the columns; null: yes")
    quoted: bool | None = Field(None, description='csv and tsv: "..." holds a field; null: in csv, not in tsv')
    suspicious_labels: Suspicion = Field(
        "refuse_missing", description="labels like nan, spelled in two ways, or of one row: what is refused of them"
    )
    max_length: int = Field(
        128, ge=8, le=2**20, multiple_of=8, description="most tokens of a text; longer ones are cut"
    )

    @field_validator("labels", mode="before")
    @classmethod
    def _as_texts(cls, labels: object) -> object:
        """Whole numbers are the labels that a table has as such; yes and no, which YAML reads as truths, are none."""
        return [str(label) if type(label) is int else label for label in labels] if isinstance(labels, list) else labels

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.preset is not None and self.preset not in PRESETS:
            raise ValueError(f"preset: {self.preset!r} is not known; one of {', '.join(PRESETS)}")
        if self.path is None and "path" not in self.knobs():
            raise ValueError("path: missing; give a file, a folder or a name on the Hub")
        kind, fitting = ("regression", OF_NUMBERS) if self.knobs()["regression"] else ("labels", OF_CLASSES)
        labels = self.knobs()["labels"]
        if labels is not None and len(set(labels)) < len(labels):
            raise ValueError(f"labels: each once, got {', '.join(labels)}")
        if str(self.knobs()["label"]) in map(str, self.knobs()["text"]):
            label = self.knobs()["label"]
            raise ValueError(f"label: {label!r} is a column of the text too; name another one, or a copy of it")
        if unfit := [metric for metric in self.knobs()["metrics"] if metric not in fitting]:
            raise ValueError(f"metrics: {', '.join(unfit)} is not for {kind}; choose from {', '.join(fitting)}")
        return self

    def knobs(self) -> dict[str, Any]:
        """The preset's knobs for these data with those that are given on top."""
        local = self.path is not None and location(self, self.path, {}).is_local
        preset = PRESETS[self.preset].knobs(local=local) if self.preset else {}
        found = {"text": ["text"], "label": "label", "labels": None, "regression": False, "header": True}
        found |= {"quoted": None, "encoding": "utf-8"} | preset
        found |= {knob: value for knob in type(self).model_fields if (value := getattr(self, knob)) is not None}
        if self.path is not None and "path" in preset and self.path != preset["path"]:
            found |= {"subset": self.subset, "revision": self.revision}  # the preset's are those of its own data set
        default = ["pearson", "spearman"] if found["regression"] else ["accuracy"]
        return {"metrics": default} | found
