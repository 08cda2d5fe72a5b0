import pytest
from hypothesis import given
from hypothesis import strategies as st

from depthcut.errors import PlanError, SettingsError
from depthcut.records import (
    Sublayer,
    removal_in_words,
    sublayers_in_words,
    sublayers_of,
    unit_set,
    units_of,
)


def parts(*places: str) -> tuple[Sublayer, ...]:
    """("12.mlp", …) as parts."""
    pairs = (place.split(".") for place in places)
    return tuple(Sublayer(layer=int(layer), part=part) for layer, part in pairs)  # type: ignore[arg-type]


def test_both_parts_of_a_layer_are_the_layer() -> None:
    assert sublayers_of([5, 2, 3, 8]) == (((1, 2),), parts("2.mlp", "4.attention"))


@given(st.sets(st.integers(0, 40)))
def test_parts_are_counted_both_ways_alike(units: set[int]) -> None:
    assert units_of(*sublayers_of(units)) == tuple(sorted(units))


def test_a_list_names_layers_and_parts() -> None:
    assert unit_set("1-2, 4.attention 5–6.mlp", 8) == (2, 3, 4, 5, 8, 11, 13)
    assert unit_set("", 8) == ()


@pytest.mark.parametrize("text", ["1.norm", "1.", "a", "5-3.mlp", ".mlp", "1.mlp.attention"])
def test_what_is_no_list_of_parts_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match=r"parts of them as 20\.attention"):
        unit_set(text, 8)


def test_a_part_of_no_layer_is_refused() -> None:
    with pytest.raises(PlanError, match="there is no layer 8"):
        unit_set("8.mlp", 8)


def test_parts_are_named_for_people() -> None:
    some = parts("12.attention", "14.attention", "15.attention", "20.mlp")
    assert sublayers_in_words(some) == "attention of layers 12, 14–15; MLP of layer 20"
    assert removal_in_words((), some[:1]) == "attention of layer 12"
    assert removal_in_words(((3, 6),), some[-1:]) == "layers 3–5 (3 layers); MLP of layer 20"
    assert removal_in_words(((3, 6),), ()) == "layers 3–5 (3 layers)"
