"""Pretrained transformers as base models: a name on the Hugging Face Hub, or a folder that needs no network.

Nothing but a task's head is ever left at random: a checkpoint that lacks anything else is refused.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from experiments.models.architecture import Kind, head_modules
from experiments.models.json_files import read_map
from experiments.models.model_config import ModelConfig, ModelError
from experiments.models.model_files import commit_of, model_folder, raw_settings, weight_files
from experiments.models.model_size import counted, refuse_sizes, refuse_too_large
from experiments.models.pooled import MeanPooled
from experiments.models.stored_weights import StoredWeights, read_headers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "ModelConfig",
    "ModelError",
    "auto_class",
    "build_model",
    "content_of",
    "head_modules",
    "load_tokenizer",
    "model_settings",
    "use_gradient_checkpointing",
]

TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")
TOKENIZER_SETTINGS = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
MOST_SHOWN = 200  # characters of a library's own message
WHOLE_LAYERS = ("layerdrop", "drop_path")  # what these knobs drop is not numbers but layers: never


def load_tokenizer(config: ModelConfig) -> "PreTrainedTokenizerBase":
    """The model's fast tokenizer; it has a pad token (its end token where it has no other) and pads on the right.

    Padding on the left would shift the learned positions of GPT-2, which counts them from the first column.
    Raises: ModelError where there is none, or where the model has no embedding of a token of its vocabulary. One that
    was added to it may have none: who encodes a text refuses those that occur.
    """
    from transformers import AutoTokenizer

    folder = model_folder(config, weights=False)
    if not any(path for pattern in TOKENIZERS for path in folder.glob(pattern)):  # transformers would make an empty one
        raise ModelError(f"model.name: {config.name!r} has no tokenizer, no {', '.join(TOKENIZERS)}")
    there = [folder / name for name in TOKENIZER_SETTINGS if (folder / name).is_file()]
    problem = f"the tokenizer of {config.name!r} cannot be used ({', '.join(path.name for path in there)})"
    try:
        for path in there:  # the libraries do not say which of them is no JSON
            read_map(config, path)
    except ModelError as error:
        raise ModelError(f"model.name: {problem}: {str(error).removeprefix('model.name: ')}") from None
    with _reading(problem):
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=config.remote_code, use_fast=True
        )
        makes_tokens = tokenizer.is_fast and bool(tokenizer("a").input_ids)
    if not makes_tokens:
        raise ModelError(f"model.name: {config.name!r} has no fast tokenizer; it needs a tokenizer.json")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise ModelError(f"model.name: the tokenizer of {config.name!r} has neither a pad nor an end token to pad with")
    tokenizer.padding_side = "right"
    embeddings = raw_settings(config, folder).get("vocab_size")
    own = (number for number in tokenizer.get_vocab().values() if number not in tokenizer.added_tokens_decoder)
    numbers = max(own, default=-1) + 1
    if isinstance(embeddings, int) and numbers > embeddings:
        raise ModelError(
            f"model.name: the tokenizer of {config.name!r} numbers its tokens up to {numbers - 1} but the model has "
            f"{embeddings} embeddings; they do not belong together"
        )
    return tokenizer


def build_model(config: ModelConfig, kind: Kind, *, labels: int, pad_token_id: int | None, weights: bool) -> nn.Module:
    """The base model of a task; forward(input_ids=, attention_mask=) returns an object with `.logits`.

    With `weights` it has W0 and its heads are zero (each trial draws its own); without, its weights are arbitrary and
    only its settings are read: enough to plan with. One label means regression.
    Raises: ModelError for what cannot be had, fits no such task, or lacks weights.
    """
    pretrained = weights and config.weights == "pretrained"
    folder = model_folder(config, weights=pretrained)
    settings = model_settings(config, folder)
    if kind == "classification":
        settings.num_labels = labels
    _refuse_kind(config, kind, settings, pad_token_id)
    with _reading(f"config.json of {config.name!r} describes no model that can be built"):
        on_meta: Any = counted(config, lambda: _random(config, kind, settings, drawn=False))
        if weights:
            refuse_too_large(config, on_meta)
        model: Any = None if pretrained else _random(config, kind, settings, drawn=weights)
    stored = read_headers(config, weight_files(config, folder) if pretrained else [], on_meta.base_model_prefix)
    if pretrained:
        stored.refuse_unfit(on_meta, _fresh(on_meta, kind))
        model = _pretrained(config, folder, kind, settings, stored)
    if pad_token_id is not None:
        model.config.pad_token_id = pad_token_id  # where GPT-2 and Llama look for a row's last token
    if kind == "classification" and config.pooling == "mean":
        if getattr(model, "pooler", None) is not None:
            model.pooler = None  # not used, and in many checkpoints not there
        model = MeanPooled(model, name=model.base_model_prefix, width=_width(config, settings), labels=labels)
    with torch.no_grad():
        for name in head_modules(model, kind):
            for parameter in model.get_submodule(name).parameters():
                parameter.zero_()
    if weights:
        stored.refuse_not_finite(model)
    return model


def content_of(config: ModelConfig) -> dict[str, str]:
    """What `environment.json` says of the base next to its weights' fingerprint: its architecture and its commit."""
    folder = model_folder(config, weights=False)
    commit = commit_of(config, folder)
    kind = {"model_type": str(raw_settings(config, folder).get("model_type"))}
    return kind if commit is None else kind | {"model_commit": commit}


def use_gradient_checkpointing(model: nn.Module) -> None:
    """The model computes activations again in backward instead of keeping them."""
    body: Any = model.base_model if isinstance(model, MeanPooled) else model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of a new name, which not every version 5 has
        body.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def model_settings(config: ModelConfig, folder: Path | None = None) -> Any:
    """The model's own configuration with the base's dropout set and no cache; `folder` is its folder where known.

    Raises: ModelError for what cannot be had or used.
    """
    from transformers import AutoConfig

    folder = folder or model_folder(config, weights=False)
    raw = raw_settings(config, folder)
    refuse_sizes(config, raw)
    if raw.get("quantization_config"):
        raise ModelError(
            f"model.name: the weights of {config.name!r} are quantised; name the model they were made from"
        )
    try:
        with _reading(f"config.json of {config.name!r} cannot be used"):
            settings = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=config.remote_code)
    except ModelError:
        if raw.get("auto_map") and not config.remote_code:
            raise ModelError(
                f"model.name: {config.name!r} needs Python code that comes with it; read that code, then "
                f"model.remote_code=true runs it"
            ) from None
        raise
    pad, vocabulary = getattr(settings, "pad_token_id", None), getattr(settings.get_text_config(), "vocab_size", None)
    if isinstance(pad, int) and isinstance(vocabulary, int) and pad >= vocabulary:
        settings.pad_token_id = None  # added to the tokenizer alone; whoever pads says with what
    for knob, value in vars(settings).items():
        if "drop" in knob and isinstance(value, int | float) and not isinstance(value, bool):
            setattr(settings, knob, 0.0 if any(part in knob for part in WHOLE_LAYERS) else config.dropout)
    settings.use_cache = False
    return settings


def auto_class(config: ModelConfig, kind: Kind) -> Any:
    """The class of transformers that loads the model: its body alone where this project pools."""
    import transformers

    if kind == "causal_lm":
        return transformers.AutoModelForCausalLM
    return transformers.AutoModel if config.pooling == "mean" else transformers.AutoModelForSequenceClassification


def _refuse_kind(config: ModelConfig, kind: Kind, settings: Any, pad_token_id: int | None) -> None:
    """Raises: ModelError for an architecture that is not made for the kind of task."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as MASKED

    auto, name = auto_class(config, kind), f"model.name: {config.name!r} ({settings.model_type})"
    has_code = config.remote_code and auto.__name__ in (getattr(settings, "auto_map", None) or {})
    if type(settings) not in auto._model_mapping and not has_code:
        way_out = "; model.pooling=mean may do" if kind == "classification" and config.pooling == "auto" else ""
        raise ModelError(f"{name} has no form for {kind.replace('_', ' ')} in transformers{way_out}")
    if settings.is_encoder_decoder:
        raise ModelError(f"{name} is an encoder and a decoder; choose a model that is one of them")
    if kind == "causal_lm" and settings.model_type in MASKED and not getattr(settings, "is_decoder", False):
        raise ModelError(f"{name} sees the tokens that it would have to predict; choose a causal language model")
    if kind == "classification" and pad_token_id is None:
        raise ModelError(f"{name}: rows of unequal length need a pad token")


def _fresh(model: Any, kind: Kind) -> tuple[str, ...]:
    """The modules that a checkpoint need not have: the heads, and of a body alone the pooler, which is not used."""
    names = ("pooler",) if model.base_model is model else head_modules(model, kind)
    return tuple(f"{name}." for name in names)


def _pretrained(config: ModelConfig, folder: Path, kind: Kind, settings: Any, stored: StoredWeights) -> Any:
    """W0 from the checkpoint; only what is a head may have been left at random."""
    from transformers import GenerationConfig

    with _reading(f"{config.name!r} cannot be loaded"):
        model, info = auto_class(config, kind).from_pretrained(
            folder,
            config=settings,
            dtype=getattr(torch, config.dtype),
            use_safetensors=None if config.pickled else True,
            trust_remote_code=config.remote_code,
            local_files_only=True,
            ignore_mismatched_sizes=True,
            generation_config=GenerationConfig(),  # nothing is generated, and the folder's need not be read
            output_loading_info=True,
        )
    random = {*info["missing_keys"], *(mismatch[0] for mismatch in info["mismatched_keys"])}
    fresh = _fresh(model, kind)
    lost = sorted(key for key in random if not key.startswith(fresh))
    if lost:
        pooler = "; model.pooling=mean needs no pooler" if all("pooler" in key for key in lost) else ""
        raise ModelError(
            f"model.name: {config.name!r} was not trained as a {type(model).__name__}: {len(lost)} of its weights are "
            f"not in the checkpoint or of another shape and would be random: {', '.join(lost[:4])}"
            f"{', ...' if len(lost) > 4 else ''}{pooler}"
        )
    stored.refuse_dropped(model, info["unexpected_keys"], fresh)
    return model


def _random(config: ModelConfig, kind: Kind, settings: Any, drawn: bool) -> Any:
    """The architecture alone: weights from one seed, or whatever is in memory."""
    from transformers.initialization import no_init_weights

    auto = auto_class(config, kind)
    options = {"dtype": getattr(torch, config.dtype), "trust_remote_code": config.remote_code}
    if not drawn:
        with no_init_weights():
            model = auto.from_config(settings, **options)
        model.tie_weights()
        return model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return auto.from_config(settings, **options)


def _width(config: ModelConfig, settings: Any) -> int:
    width = getattr(settings, "hidden_size", None)
    if not isinstance(width, int):
        raise ModelError(f"model.pooling: mean is not possible, {config.name!r} does not say how wide it is")
    return width


def _first_line(error: BaseException) -> str:
    if isinstance(error, KeyError):
        return f"unknown {error}"
    if isinstance(error.__cause__, TypeError | ValueError):  # of a field of config.json: the cause names the value
        error = error.__cause__
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return line if len(line) <= MOST_SHOWN else f"{line[:MOST_SHOWN]}..."


@contextmanager
def _reading(problem: str) -> Iterator[None]:
    """The model's files are read by transformers inside, which prints nothing.

    A broken file may raise anything there (tokenizers raises bare Exceptions), so this is a border: whatever it is, a
    ModelError begins with the problem, in one line, and has the library's own error as its cause.
    """
    try:
        with _quiet():
            yield
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"model.name: {problem}: {_first_line(error)}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers prints nothing inside: what matters of it is an error of ours."""
    from transformers.utils import logging

    verbosity, had_progress_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if had_progress_bars:
            logging.enable_progress_bar()
