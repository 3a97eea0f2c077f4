"""Knobs of the `language_modeling` task: how its rows are made of text, and what of them is learned and scored."""

from typing import ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from experiments.data.sources import whole
from experiments.tasks.text_config import TextDataConfig
from lora_variants.interface.config import MOST


class ForgettingConfig(BaseModel):
    """Text of the base's own domain, on which the model is scored before and after."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    path: str = Field(min_length=1, description="a text file, or a folder of .txt files")
    windows: int = Field(64, ge=1, le=MOST, description="most windows of it, spread evenly")

    @field_validator("path")
    @classmethod
    def _whole(cls, path: str) -> str:
        return whole(path)


class LanguageModelingConfig(TextDataConfig):
    places: ClassVar[tuple[str, ...]] = (*TextDataConfig.places, "forgetting.path")

    name: Literal["language_modeling"] = "language_modeling"
    context: int = Field(256, ge=8, le=2**20, multiple_of=8, description="most tokens before the one that is predicted")
    layout: Literal["stream", "lines"] = Field(
        "stream", description="stream: all text, cut into windows; lines: every line or table row is a row"
    )
    split: Literal["contiguous", "documents"] = Field(
        "contiguous", description="how shares are taken of the training text: its end, or documents drawn at random"
    )
    document_separator: str = Field("\n\n", min_length=1, description="what stands between the documents of a stream")
    text: str = Field("text", description="column of the text, in tables")
    prompt: str | None = Field(None, description="column of what stands before the text, in tables")
    prompt_separator: str | None = Field(
        None, min_length=1, description="what ends the prompt in the lines of text files"
    )
    score: Literal["all", "reference"] = Field("all", description="reference: prompts are read but not learned")
    evaluation_rows: int | None = Field(
        None, ge=1, le=MOST, description="most rows of validation and of test; null: all"
    )
    forgetting: ForgettingConfig | None = Field(None, description="text of the base's own domain; null: none")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.path is None:
            raise ValueError("path: missing; give a file, a folder or a name on the Hub")
        has_prompt = self.prompt is not None or self.prompt_separator is not None
        if has_prompt and self.layout == "stream":
            raise ValueError("layout: a stream has no prompts; say layout=lines")
        in_documents = self.layout == "stream" and self.split == "documents"
        if self.document_separator != type(self).model_fields["document_separator"].default and not in_documents:
            raise ValueError("document_separator: a stream alone is cut at it, with split=documents; leave it out")
        if self.prompt == self.text:
            raise ValueError(
                f"prompt: {self.prompt!r} is the column of the text too; name another one, or a copy of it"
            )
        if self.score == "reference" and not has_prompt:
            raise ValueError("score: reference needs a prompt or a prompt_separator to end where the reference begins")
        return self
