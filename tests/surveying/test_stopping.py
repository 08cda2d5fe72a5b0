"""Surveys that stop once their choice is settled: how often rightly, and what they say of it."""

import pytest
import torch
from torch import Tensor

from depthcut.errors import PlanError, SettingsError
from depthcut.records import Survey, merged
from depthcut.surveying import stopping as module
from depthcut.surveying.criteria import CRITERIA
from depthcut.surveying.stopping import Settling, lowest, settled
from tests.surveying.surveys_for_tests import flat, make_sequences, per_sequence, survey
from tests.tiny import build_tiny

LENGTHS = (6,) * 200
NOT_OF_STATES = [
    name
    for name, each in CRITERIA.items()
    if each.needs not in ("pairs", "centred pairs", "sequence")
]


def rows_around(means: Tensor, count: int, *, seed: int) -> Tensor:
    """Sequences that differ by what they have in common, and by less of their own."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(count, 1, generator=generator, dtype=torch.float64)
    own = torch.randn(count, len(means), generator=generator, dtype=torch.float64)
    return means + common + 0.3 * own


def reads(values: Tensor, taken: int, error_rate: float) -> tuple[bool, int]:
    """Whether it is settled on the way, and after how many sequences."""
    look = 24
    while look < len(values):
        if settled(values[:look], taken, error_rate):
            return True, look
        look = look * 5 // 4
    return settled(values, taken, error_rate), len(values)


@pytest.mark.parametrize("taken", [1, 3])
def test_what_is_settled_is_wrong_no_more_often_than_stated(taken: int) -> None:
    # The last one taken and the first one left are as good: either choice is half the time wrong.
    means = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]).double()
    first = set(range(taken))
    wrong = 0
    for seed in range(300):
        values = rows_around(means, 300, seed=seed)
        values[:, taken:4] += 1e-6  # so there is a right choice
        done, look = reads(values, taken, 0.2)
        wrong += done and set(lowest(values[:look], taken)) != first
    assert wrong / 300 <= 0.2


def test_a_clear_choice_is_settled_soon_and_is_right() -> None:
    means = torch.tensor([5, 1, 4, 0, 3, 2]).double()
    found = [reads(rows_around(means, 300, seed=seed), 2, 0.05) for seed in range(20)]
    assert {done for done, _ in found} == {True}
    assert max(look for _, look in found) <= 40
    assert lowest(rows_around(means, 40, seed=0), 2) == [1, 3]


def test_equals_never_settle() -> None:
    values = rows_around(torch.zeros(4).double(), 500, seed=0)
    values[:, 1] = values[:, 0]
    assert not settled(values, 1, 0.05)
    assert settled(values + torch.tensor([0, 0, 9, 9]), 2, 0.05)  # both are taken


def test_each_pair_of_a_taken_and_a_left_one_has_its_share_of_the_rate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def noted(differences: Tensor, rate: float) -> bool:
        asked.append((round(differences.mean().item()), rate))
        return True

    monkeypatch.setattr(module, "worse", noted)
    assert settled(torch.tensor([[0.0, 3, 1, 7, 12]]).expand(30, 5), 2, 0.06)
    assert [each for each, _ in asked] == [2, 3, 6, 7, 11, 12]  # closest first
    assert {rate for _, rate in asked} == {0.06 / 6}


def test_a_survey_stops_once_its_choice_is_settled_and_says_what_it_read() -> None:
    model, sequences = build_tiny("llama"), make_sequences(LENGTHS)
    whole = survey(model, sequences)
    found = survey(model, sequences, confidence=0.9, settle=2)
    said = found.stopping
    assert said is not None
    assert said.settled
    assert said.criterion == "angular"
    assert said.tokens == found.text.tokens < said.of_tokens == whole.text.tokens == 1200
    assert found.text.sequences == found.text.tokens // 6
    for scores in found.scores:
        assert len(per_sequence(scores)) == found.text.sequences
    assert said.removed == best_block(found, 2) == best_block(whole, 2)
    assert whole.stopping is None


def test_layers_settle_as_a_set() -> None:
    model, sequences = build_tiny("llama"), make_sequences(LENGTHS)
    found = survey(model, sequences, confidence=0.9, settle=2, settle_by="block-influence")
    assert found.stopping is not None
    assert found.stopping.settled
    means = flat(found.find("block-influence", "all").mean)
    assert found.stopping.removed == merged(means.argsort()[:2].tolist())


def test_criteria_behind_the_states_read_the_same_sequences() -> None:
    model, sequences = build_tiny("llama"), make_sequences(LENGTHS)
    criteria = ["angular", "weight-magnitude", "taylor", "kl-block"]
    found = survey(model, sequences, criteria=criteria, confidence=0.9, settle=2, largest_block=2)
    assert found.text.sequences < len(LENGTHS)
    for scores in found.scores:
        assert len(per_sequence(scores)) == found.text.sequences


def test_a_choice_that_the_text_cannot_settle_is_told() -> None:
    found = survey(build_tiny("llama"), make_sequences((6,) * 10), confidence=0.9, settle=2)
    assert found.stopping is not None
    assert not found.stopping.settled
    assert found.stopping.tokens == found.stopping.of_tokens == 60
    assert found.stopping.removed == best_block(found, 2)


def test_sequences_are_read_in_random_order_the_same_each_time() -> None:
    sequences = make_sequences(range(2, 60))
    one, two = (
        Settling(
            "angular", CRITERIA["angular"], count=2, layers=6, confidence=0.9, sequences=sequences
        ).sequences.sequences
        for _ in range(2)
    )
    lengths = [len(each) for each in one]
    assert lengths == [len(each) for each in two]
    assert sorted(lengths) == list(range(2, 60)) != lengths


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"settle": 2}, "settle without confidence: add --confidence 0.95"),
        ({"settle_by": "angular"}, "settle-by without confidence"),
        ({"confidence": 95}, "confidence 95: write a share above 0.5 and below 1, such as 0.95"),
        ({"confidence": 0.5}, "confidence 0.5: write a share"),
        ({"confidence": 0.9, "settle": "7x"}, "settle 7x: write a number of layers"),
        ({"confidence": 0.9, "settle": "1:3"}, "settle 1:3: name one number of layers"),
        ({"confidence": 0.9, "stream": True}, "leave out --stream or --confidence"),
        ({"confidence": 0.9, "criteria": ["cka"]}, "settle-by angular: the survey measures cka"),
        (
            {"confidence": 0.9, "criteria": ["angular", "linear-map"]},
            "leave out linear-map or --confidence",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        survey(build_tiny("llama"), make_sequences(), **settings)


@pytest.mark.parametrize("name", NOT_OF_STATES)
def test_a_criterion_that_is_not_of_states_settles_nothing(name: str) -> None:
    with pytest.raises(SettingsError, match=f"settle-by {name}: no survey can stop by it, "):
        survey(
            build_tiny("llama"),
            make_sequences(),
            criteria=["angular", name],
            confidence=0.9,
            settle_by=name,
        )


def test_all_layers_are_no_choice() -> None:
    with pytest.raises(PlanError, match="settle 6: removes 6 of 6 layers"):
        survey(build_tiny("llama"), make_sequences(), confidence=0.9, settle=6)


def best_block(found: Survey, size: int) -> tuple[tuple[int, int], ...]:
    means = [row[size - 1] for row in found.find("angular", "all").mean if len(row) >= size]
    start = min(range(len(means)), key=means.__getitem__)
    return ((start, start + size),)
