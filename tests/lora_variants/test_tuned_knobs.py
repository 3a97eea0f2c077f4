"""What scales a variant besides its learning rate, how a study's grid reads for it, and which variants are one LoRA."""

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import KINDS, attached, built, trained

from lora_variants import VARIANTS
from lora_variants.interface.config import Config
from lora_variants.lora import LoRAConfig
from lora_variants.lora_plus import LoRAPlusConfig
from lora_variants.rslora import RsLoRAConfig

KIND, STEPS = "linear", 4
GRID = {"alpha_per_rank": 3.0, "learning_rate_ratio": 4.0, "patience": 7.0}
RELATIVES: dict[str, type[LoRAConfig]] = {"lora": LoRAConfig, "rslora": RsLoRAConfig, "lora_plus": LoRAPlusConfig}


def config_of(name: str, **knobs: Any) -> Config:
    return VARIANTS[name].load().config_class(name=name, **knobs)


def moved(config: Config, point: Mapping[str, float]) -> Config:
    """The configuration at a point of a grid, which must be one that a file could state."""
    found = config.model_copy(update=config.at(point))
    assert config_of(config.name, **found.model_dump(exclude={"name"})) == found
    return found


@pytest.mark.parametrize("name", VARIANTS)
def test_a_point_of_a_grid_sets_the_knobs_that_scale_the_variant_and_no_others(name: str) -> None:
    before = config_of(name)
    after = moved(before, GRID)
    changed = {knob for knob, value in after.model_dump().items() if value != getattr(before, knob)}
    own = {"alpha"} if name == "rslora" else {"alpha_per_rank"}
    of_a_ratio = {"learning_rate_ratio"} if name == "lora_plus" else set()
    assert changed == (set() if name in ("head", "full", "full_all") else own | of_a_ratio)
    assert moved(before, {"patience": 7.0}) == before


@pytest.mark.parametrize("value", [0.5, 2, 3.7, 32.0])
def test_a_grids_alpha_is_the_scale_of_every_adapter_at_rank_16(value: float) -> None:
    scales = {name: moved(config_of(name), {"alpha_per_rank": value}) for name in (*RELATIVES, "adalora")}
    assert {name: config.scale_at(16) for name, config in scales.items()} == dict.fromkeys(scales, value)
    assert scales["rslora"].scale_at(4) == 2 * value  # type: ignore[attr-defined]  # alpha is what stays
    assert scales["lora"].scale_at(4) == value  # type: ignore[attr-defined]


@pytest.mark.parametrize("stated", [{"alpha": 5.0}, {"alpha_per_rank": 5.0}])
@pytest.mark.parametrize("name", [*RELATIVES, "adalora"])
def test_a_point_takes_the_place_of_an_alpha_however_that_was_stated(name: str, stated: dict[str, float]) -> None:
    point = {"alpha_per_rank": 8.0}
    assert moved(config_of(name, **stated), point) == moved(config_of(name), point)


@st.composite
def relatives(draw: st.DrawFn) -> LoRAConfig:
    """LoRA and what differs from it in a number, with one rank or several."""
    ranks = st.integers(0, 7)
    alpha = st.none() | st.sampled_from([1.0, 8.0, 24.0]) | st.floats(0.1, 50)
    chosen = draw(st.sampled_from(["alpha", "alpha_per_rank"]))
    knobs = {
        "rank": draw(ranks | st.fixed_dictionaries({"*": ranks, "first": ranks})),
        chosen: draw(alpha),
        "learning_rate_ratio": draw(st.sampled_from([1.0, 4.0])),
        "init": draw(st.sampled_from(["kaiming", "gaussian"])),
        "dropout": draw(st.sampled_from([0.0, 0.25])),
        "pad_rank_to": draw(st.sampled_from([0, 8])),
    }
    return RELATIVES[draw(st.sampled_from([*RELATIVES]))](**knobs)


def history(config: Config) -> list[Any]:
    """The scales, and what training comes to: every trained number and the last loss."""
    variant = attached(config.name, built(KIND), targets=KINDS[KIND].targets, configs=[config], steps=STEPS)
    (outcome,) = trained(variant, steps=STEPS)
    tensors = {name: tensor.tolist() for name, tensor in variant.trained_tensors(0).items()}
    return [variant.scales(), tensors, outcome]


@settings(max_examples=20, deadline=None)
@given(relatives())
def test_what_is_said_to_be_a_lora_trains_as_it_bit_for_bit(config: LoRAConfig) -> None:
    lora = config.as_lora()
    if lora is None:
        assert config.name == "rslora"
        return
    assert (type(lora), lora.name) == (LoRAConfig, "lora")
    assert lora.as_lora() == lora
    assert history(lora) == history(config)


def test_which_relatives_are_one_lora() -> None:
    default = LoRAConfig().as_lora()
    assert default == LoRAConfig()
    assert LoRAConfig(alpha=32.0).as_lora() == RsLoRAConfig().as_lora() == default
    assert LoRAPlusConfig(learning_rate_ratio=1.0).as_lora() == default
    assert LoRAPlusConfig().as_lora() == LoRAConfig(learning_rate_ratio=16.0)
    assert RsLoRAConfig(rank=4).as_lora() == LoRAConfig(rank=4, alpha_per_rank=4.0)
    one_rank = {"*": 4, "first": 0}
    assert RsLoRAConfig(rank=one_rank).as_lora() == LoRAConfig(rank=one_rank, alpha_per_rank=4.0)


def test_what_is_no_lora_says_so() -> None:
    assert RsLoRAConfig(rank={"*": 4, "first": 16}).as_lora() is None  # two scales that no alpha of LoRA's gives
    assert RsLoRAConfig(rank=5).as_lora() is None  # its scale, times 5, by 5, is another number
    assert {name: config_of(name).as_lora() for name in VARIANTS if name not in RELATIVES} == dict.fromkeys(
        ("head", "full", "full_all", "adalora")
    )


def test_a_new_relative_of_lora_is_no_lora_before_it_says_so() -> None:
    class Fixed(LoRAConfig):
        """LoRA with a scale of its own, which the alpha says nothing of."""

    assert Fixed().as_lora() is None
