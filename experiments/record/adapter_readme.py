"""The README.md beside what a run learned: at most 15 lines of Python that give the run's own logits.

For a base that transformers loads they need this project nowhere. For one of this project's own, or an update in a
form that only this project reads, they load it with this project.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.models.model_card import ModelCard
from experiments.record.adapter_formats import DELTA, HEAD, WEIGHTS

README = "README.md"


@dataclass(frozen=True)
class Stored:
    """What lies beside the README: `body` is what the model calls the part that the names of an adapter begin in.

    `orientations` of the matrices in a `delta.safetensors`: plain, transposed where the model stores them as
    (d_in, d_out), fused where several are in one.
    """

    has_adapter: bool
    has_delta: bool
    has_head: bool
    body: str | None
    orientations: frozenset[str]

    @classmethod
    def of(cls, files: Sequence[Path], body: str | None, orientations: frozenset[str] = frozenset()) -> "Stored":
        names = {path.name for path in files}
        return cls(WEIGHTS in names, DELTA in names, HEAD in names, body, orientations)


def readme(card: ModelCard, stored: Stored) -> str:
    """The text of the README."""
    if card.name is None or "fused" in stored.orientations or len(stored.orientations) > 1:
        return _of_this_project(card)
    source = f"revision `{card.revision}` of `{card.name}` on the Hugging Face Hub"
    if card.is_folder:
        source = f"the folder `{card.name}`: where it lies elsewhere, give its path as `base`"
    parts = [
        f"# Learned on `{card.name}`",
        f"The base is {source}. From inside this folder these lines give the logits of texts, to the "
        f"rounding of {card.dtype}:",
        _fenced(_lines(card, stored)),
    ]
    if card.labels:
        parts.append("`labels` are in the order of the logits.")
    if card.rows:
        parts.append(f"In this run {card.rows}.")
    if stored.has_adapter:
        parts += _on_peft(card)
    return "\n\n".join(parts) + "\n"


def _on_peft(card: ModelCard) -> list[str]:
    """What PEFT's own classes do with the folder, and what PEFT says of keys that it does not know."""
    ignored = (
        "PEFT warns that it ignores `base_sha256`, `pooling`, `body` and `labels` of `adapter_config.json`. No newer "
        "PEFT is needed: they say which weights, which head and which labels the adapter belongs to."
    )
    if card.task_type is None:
        return ["PEFT's `AutoPeftModel` classes cannot load it: they know no mean of the last hidden states.", ignored]
    elsewhere = "; anywhere else PEFT would ask the Hub for a model of that name"
    where = f" where `{card.name}` is a folder in the current one{elsewhere}" if card.is_folder else ""
    call = f"Auto{_peft_class(card)}.from_pretrained(folder, {_options(card)})"
    return [f"`{call}` loads base and adapter in one call{where}.", ignored]


def _peft_class(card: ModelCard) -> str:
    return card.auto_class.replace("AutoModel", "PeftModel")


def _lines(card: ModelCard, stored: Stored) -> list[str]:
    """Python for the base as transformers loads it, the update on it, and the logits."""
    base = f"./{card.name}" if card.is_folder else card.name  # ./ is never asked of the Hub
    revision = [f"revision={card.revision!r}"] if card.revision else []
    code = ["trust_remote_code=True"] if card.remote_code else []
    tokenizer = ", ".join(["base", *revision, *code, f"pad_token={card.pad_token!r}", 'padding_side="right"'])
    options = ", ".join(["base", *revision, _options(card)])
    wide = ".float()" if card.dtype != "float32" and not stored.has_adapter else ""  # 16 bits would lose most of ΔW
    return [
        *(["from peft import PeftModel"] if stored.has_adapter else []),
        *(["from safetensors.torch import load_file"] if stored.has_delta or stored.has_head else []),
        f"from transformers import {card.auto_class}, AutoTokenizer",
        "",
        f'folder, base = ".", {base!r}',
        *([f"labels = {[*card.labels]!r}"] if card.labels else []),
        f"tokenizer = AutoTokenizer.from_pretrained({tokenizer})",
        f"model = {card.auto_class}.from_pretrained({options}){wide}.requires_grad_(False)",
        *(["model.config.pad_token_id = tokenizer.pad_token_id"] if card.task_type == "SEQ_CLS" else []),
        *(["model = PeftModel.from_pretrained(model, folder)"] if stored.has_adapter else []),
        *(_adding_the_update(stored) if stored.has_delta else []),
        *(_with_head(stored) if stored.has_head else []),
        "",
        *_logits(card, stored),
    ]


def _options(card: ModelCard) -> str:
    """What `from_pretrained` is told of the base, for transformers and for PEFT alike."""
    options = [f'dtype="{card.dtype}"', *(["trust_remote_code=True"] if card.remote_code else [])]
    if card.task_type == "SEQ_CLS":
        outputs = "id2label=dict(enumerate(labels))" if card.labels else "num_labels=1"
        options += [outputs, "ignore_mismatched_sizes=True"]
    return ", ".join(options)


def _adding_the_update(stored: Stored) -> list[str]:
    names = f'{{f"{stored.body}.{{name}}": tensor for name, tensor in model.state_dict().items()}}'
    change = "change if name in state else change.T" if "transposed" in stored.orientations else "change"
    return [
        f"state = {names if stored.body else 'model.state_dict()'}",
        f'for name, change in load_file(f"{{folder}}/{DELTA}").items():',
        f'    state[name if name in state else f"{{name}}.weight"] += {change}',
    ]


def _with_head(stored: Stored) -> list[str]:
    if stored.body:
        return [f'head = load_file(f"{{folder}}/{HEAD}")']
    return [f'model.load_state_dict(load_file(f"{{folder}}/{HEAD}"), strict=False)']


def _logits(card: ModelCard, stored: Stored) -> list[str]:
    """A function of texts, or of the first and the second texts of pairs."""
    options = ", ".join(f"{key}={value!r}" for key, value in card.tokenizer_options.items())
    inputs = f'    inputs = tokenizer(*texts, padding=True, {options}, return_tensors="pt")'
    if not stored.body:
        return ["def logits(*texts):", inputs, "    return model(**inputs).logits"]
    return [
        "def logits(*texts):",
        inputs,
        "    hidden = model(**inputs).last_hidden_state.float()",
        '    kept = inputs["attention_mask"][..., None]',
        '    return ((hidden * kept).sum(1) / kept.sum(1)) @ head["classifier.weight"].T + head["classifier.bias"]',
    ]


def _of_this_project(card: ModelCard) -> str:
    """Lines that run where this project is installed."""
    why = "has a form that only this project reads" if card.name else "is of a base that only this project makes"
    lines = [
        "from pathlib import Path",
        "from experiments.config.loading import load",
        "from experiments.record.adapter_files import load_update",
        "from experiments.training.context import load_task",
        "from experiments.training.evaluation import evaluate_plain",
        "",
        'folder = Path(".")',
        'config = load(folder / "config.yaml")',
        "task = load_task(config)",
        f"model = task.base_model(){'' if card.dtype == 'float32' else '.float()'}",
        "load_update(model, folder)",
        'print(evaluate_plain(model, task, "validation", config.training.precision))',
    ]
    return (
        f"# Learned with this project\n\nWhat was learned here {why}. From inside this folder, with the project "
        f"installed, these lines make `model` the tuned model and print what it scores on the validation split:\n\n"
        f"{_fenced(lines)}\n"
    )


def _fenced(lines: Sequence[str]) -> str:
    return "\n".join(["```python", *lines, "```"])
