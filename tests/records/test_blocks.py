import pytest

from depthcut.errors import PlanError, SettingsError
from depthcut.records import layer_counts


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("7", (7,)),
        ("25%", (7,)),
        ("1:3", (1, 2, 3)),
        ("1:10%", (1, 2, 3)),
        ("10%:5", (3, 4, 5)),
        ("8, 2,2", (2, 8)),
    ],
)
def test_numbers_of_layers_are_read_from_numbers_shares_and_ranges(
    text: str, counts: tuple[int, ...]
) -> None:
    assert layer_counts(text, 30) == counts


@pytest.mark.parametrize("text", ["seven", "3:1", "1:2:3", "-1", "1:", ":3", "2.5", "20%:1"])
def test_what_is_no_number_of_layers_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="write a number of layers"):
        layer_counts(text, 30)


@pytest.mark.parametrize("text", ["0", "30", "1:30", "100%", ""])
def test_none_or_all_of_the_layers_cannot_go(text: str) -> None:
    with pytest.raises(PlanError, match="removes"):
        layer_counts(text, 30)
