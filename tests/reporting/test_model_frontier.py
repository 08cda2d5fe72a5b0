"""Which models no other one beats, and the figures of it."""

import csv
import io
import random

import msgspec
import pytest

from depthcut.reporting.figures.quality import quality_figures
from depthcut.reporting.model_frontier import model_frontier, pareto
from tests.reporting.ladder_for_tests import make_ladder
from tests.reporting.run_for_tests import make_bench

LADDER = make_ladder()


def test_the_pareto_set_is_what_no_other_place_beats() -> None:
    numbers = random.Random(1)
    for _ in range(50):
        good = [float(numbers.randrange(6)) for _ in range(8)]
        cheap = [float(numbers.randrange(6)) for _ in range(8)]
        places = list(zip(good, cheap, strict=True))
        expected = [
            not any(other != one and other[0] >= one[0] and other[1] >= one[1] for other in places)
            for one in places
        ]
        assert pareto(good, cheap) == expected


def test_a_place_without_a_value_beats_nobody() -> None:
    assert pareto([3.0, 1.0], [None, 1.0]) == [False, True]


def test_quality_is_the_average_else_perplexity_else_the_first_task() -> None:
    assert LADDER.tasks
    found = model_frontier(LADDER, None)
    assert found
    assert found.quality.name == "average of 10 benchmarks, %"
    bare = msgspec.structs.replace(LADDER.tasks, averages=())
    found = model_frontier(msgspec.structs.replace(LADDER, tasks=bare), None)
    assert found
    assert (found.quality.name, found.quality.higher_is_better) == ("perplexity", False)
    assert [each.leads_size for each in found.places] == [True] * 6
    some = msgspec.structs.replace(LADDER.tasks, averages=LADDER.tasks.averages[1:])
    found = model_frontier(msgspec.structs.replace(LADDER, tasks=some), None)
    assert found
    assert found.quality.name == "perplexity"
    no_text = make_ladder(text=False)
    found = model_frontier(msgspec.structs.replace(no_text, tasks=bare), None)
    assert found
    assert found.quality.name == "hellaswag, %"
    assert model_frontier(msgspec.structs.replace(no_text, tasks=None), None) is None
    assert model_frontier(make_ladder((0,)), None) is None


def test_speed_is_found_by_digest_whatever_the_names() -> None:
    timed = [(f"other-{each.name}", each.model) for each in LADDER.models[:4]]
    found = model_frontier(LADDER, make_bench(timed))
    assert found
    assert found.speed == "new tokens per second, transformers, batch 1"
    assert [each.speed for each in found.places] == pytest.approx(
        [900 / 30, 900 / 29, 900 / 27, 900 / 25, None, None]
    )
    assert found.places[3].leads_speed
    size, speed = quality_figures(found)
    assert (size.name, speed.name) == ("quality-and-size", "quality-and-measured-speed")
    rows = list(csv.DictReader(io.StringIO(speed.csv())))
    assert [each["model"] for each in rows] == [each.name for each in LADDER.models[:4]]
    for figure in (size, speed):
        assert figure.svg().startswith("<svg")


def test_a_bench_of_other_models_adds_no_figure() -> None:
    others = [
        (each.name, msgspec.structs.replace(each.model, digest="x")) for each in LADDER.models
    ]  # fmt: skip
    found = model_frontier(LADDER, make_bench(others))
    assert found
    assert [figure.name for figure in quality_figures(found)] == ["quality-and-size"]


def test_many_models_are_named_rather_than_coloured() -> None:
    found = model_frontier(make_ladder(tuple(range(12))), None)
    assert found
    (figure,) = quality_figures(found)
    assert '"name"' in str(figure.spec).replace("'", '"')
    assert "legend" not in str(figure.spec["layer"])
