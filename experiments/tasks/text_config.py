"""Knobs that all tasks on text share: where the data are and how they are split."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from experiments.data.sources import Location, whole
from experiments.tasks.task import TaskConfig
from lora_variants.interface.config import MOST, Seed

Share = Annotated[float, Field(gt=0, lt=1)]


class TextDataConfig(TaskConfig):
    """Data of the user's choice."""

    places: ClassVar[tuple[str, ...]] = ("path", "subset", "revision", "allow_overlap")

    path: str | None = Field(
        None, min_length=1, description="a file, a folder with one file or more a split, or a name on the Hub"
    )
    subset: str | None = Field(None, description="configuration of a data set on the Hub")
    revision: str | None = Field(None, description="branch, tag or commit on the Hub; null: its main branch")
    train: str | None = Field(
        None, description="file of training rows, with or without its ending, or Hub split; 'a*|b*' are tried in turn"
    )
    validation: str | Share | None = Field(None, description="likewise, or a share of the training rows")
    test: str | Share | None = Field(None, description="likewise, or a share of the training rows")
    split_seed: Seed = Field(0, description="seed of shares and of the limit; not the run's seed")
    train_rows: int | None = Field(None, ge=1, le=MOST, description="most rows to train on; null: all")
    format: Literal["csv", "tsv", "jsonl", "parquet", "trec", "text"] | None = Field(
        None, description="of the files; null: what their names say"
    )
    encoding: str | None = Field(None, description="of text files; null: the preset's, else utf-8")
    skip_malformed: bool = Field(False, description="leave malformed rows out and count them, instead of an error")
    allow_overlap: bool = Field(False, description="splits may have nearly all rows in common")

    @field_validator("path")
    @classmethod
    def _whole(cls, path: str | None) -> str | None:
        return None if path is None else whole(path)


def notes_of(described: Mapping[str, Mapping[str, str]]) -> list[str]:
    """A plan's words on the data, a line a split."""
    return [f"{split}: {'; '.join(f'{name} {what}' for name, what in row.items())}" for split, row in described.items()]


def few_rows_warnings(asked: int | None, rows: int) -> list[str]:
    """A warning where there are fewer training rows than are asked for."""
    if asked is None or rows >= asked:
        return []
    return [f"task.train_rows={asked:,} is more than the {rows:,} training rows that there are: all are used"]


def location(config: TextDataConfig, path: str, preset: dict[str, object]) -> Location:
    """Where the splits are: what the configuration says, else the preset."""
    asked = {split: getattr(config, split) for split in ("train", "validation", "test")}
    return Location(path, **{split: preset.get(split) if at is None else at for split, at in asked.items()})  # type: ignore[arg-type]
