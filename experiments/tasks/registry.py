"""The lazy table of tasks: every name with what it is; torch is imported when one is loaded."""

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from experiments.tasks.task import Task


@dataclass(frozen=True)
class TaskEntry:
    """Where a task is and what it is."""

    module: str
    class_name: str
    summary: str

    def load(self) -> "type[Task]":
        """The task's class; this is what imports torch."""
        loaded: type[Task] = getattr(import_module(self.module), self.class_name)
        return loaded


TASKS: dict[str, TaskEntry] = {
    "bytes": TaskEntry("experiments.tasks.bytes", "Bytes", "Python source to documentation prose, bits per byte"),
    "digits": TaskEntry("experiments.tasks.digits", "Digits", "digits 0-4 to 5-9, 8 x 8 images, accuracy"),
    "text_classification": TaskEntry(
        "experiments.tasks.text_classification", "TextClassification", "labels of texts, or numbers: your own data"
    ),
    "language_modeling": TaskEntry(
        "experiments.tasks.language_modeling", "LanguageModeling", "a text of your own, perplexity"
    ),
    "planted": TaskEntry("experiments.tasks.planted", "Planted", "matrices whose right update is known"),
}
