"""What a pack trains with: the numbers that each trial has for itself, and those that all its trials share."""

from dataclasses import dataclass

from experiments.config.schema import Labels, RunConfig
from experiments.config.seed import seed_parts


@dataclass(frozen=True)
class TrialHyperparameters:
    """What may differ between the trials of one pack, besides the variant's own knobs."""

    seed: int  # of the data; those of initialisation and dropout are the pack's
    learning_rate: float
    weight_decay: float = 0.0
    max_grad_norm: float | None = 1.0
    lr_schedule: str = "linear"
    warmup_steps: int = 0


@dataclass(frozen=True)
class SharedHyperparameters:
    """What the trials of one pack share."""

    steps: int
    batch_size: int
    gradient_accumulation_steps: int = 1
    evaluate_every: int = 0
    precision: str = "float32"
    labels: Labels = True


def trial_hyperparameters(config: RunConfig) -> TrialHyperparameters:
    """What the configuration says of one trial of a pack."""
    training = config.training
    return TrialHyperparameters(
        seed=seed_parts(config.seed).data,
        learning_rate=config.learning_rate,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        lr_schedule=training.lr_schedule,
        warmup_steps=round(training.warmup_ratio * training.steps),
    )


def shared_hyperparameters(config: RunConfig) -> SharedHyperparameters:
    """What the configuration says of all trials of a pack."""
    training = config.training
    return SharedHyperparameters(
        steps=training.steps,
        batch_size=training.batch_size,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        evaluate_every=training.evaluate_every,
        precision=training.precision,
        labels=training.labels,
    )
