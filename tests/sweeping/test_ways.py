import pytest

from depthcut.errors import SettingsError
from depthcut.sweeping.ways import ByCriterion, BySearch, asked_ways


def test_names_come_between_commas_and_spaces_each_once() -> None:
    found = asked_ways(("angular,greedy", "greedy angular/all", "last"), "kl")
    assert [way.name for way in found] == ["angular", "greedy", "last"]


def test_a_criterion_may_say_its_tokens_and_blocks() -> None:
    ways = asked_ways(("angular", "angular/last", "kl-block:3", "angular/last:2", "pruneme"), "kl")
    assert ways == (
        ByCriterion("angular", "angular", "all", 1),
        ByCriterion("angular/last", "angular", "last", 1),
        ByCriterion("kl-block:3", "kl-block", "all", 3),
        ByCriterion("angular/last:2", "angular", "last", 2),
        ByCriterion("pruneme", "pruneme", "last", 1),
    )


def test_a_search_may_say_its_objective_and_seed() -> None:
    assert asked_ways(("greedy", "greedy/loss", "random:3", "random/kl"), "loss") == (
        BySearch("greedy", "greedy", "loss", 0),
        BySearch("greedy/loss", "greedy", "loss", 0),
        BySearch("random:3", "random", "loss", 3),
        BySearch("random/kl", "random", "kl", 0),
    )


def test_all_is_every_criterion_that_needs_no_more_than_the_states() -> None:
    names = [way.name for way in asked_ways(("all",), "kl")]
    assert "angular" in names
    assert "block-influence" in names
    assert not {"kl-block", "taylor", "linear-map", "weight-magnitude", "greedy"} & set(names)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("anglar", r"no way of choosing 'anglar' \(did you mean angular\?\)"),
        ("gredy:1", r"did you mean greedy"),
        ("angular/first", "/first means nothing here, /last or /all does"),
        ("taylor/last", "/last means nothing here, /all does"),
        ("greedy/last", "/last means nothing here, /kl or /loss does"),
        ("block-influence:2", "block-influence scores single layers; leave :2 out"),
        ("angular:0", "needs one block at least"),
        ("angular:", "no way of choosing 'angular:'"),
        (",", "no way of choosing: give --criteria some of angular"),
    ],
)
def test_what_is_no_way_is_refused_with_the_nearest(name: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        asked_ways((name,), "kl")
