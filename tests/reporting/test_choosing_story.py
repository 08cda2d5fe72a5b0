"""Searches and sweeps on the page."""

from pathlib import Path

import msgspec
import pytest

from depthcut.planning import plan_from_search
from depthcut.records import write_record
from depthcut.reporting.choosing_story import search_rows, search_story, sweep_story
from depthcut.reporting.page import write_report
from depthcut.settings import PlanSettings
from tests.reporting.run_for_tests import make_survey
from tests.reporting.sweeps_for_tests import make_search, make_sweep
from tests.reporting.test_page import EVIL, Page


def test_a_sweep_says_which_way_is_best_and_what_it_took() -> None:
    story = " ".join(sweep_story(make_sweep()))
    assert "7 ways chose 1 to 7 of 30 layers on wikitext2/train.txt" in story
    assert "Closest to the best at every number of layers came greedy: 0.0 % more" in story
    assert "for 4 min 40 s and 280 forward passes over its text" in story


def test_a_sweep_names_the_cheapest_that_comes_close() -> None:
    sweep = make_sweep()
    first, second, *others = sweep.ways
    near = msgspec.structs.replace(second, choices=first.choices[:2] + second.choices[2:])
    story = sweep_story(msgspec.structs.replace(sweep, ways=(first, near, *others)))
    assert "The cheapest that is less than 2.0 % behind in the mean is kl-block" not in story[-1]
    same = msgspec.structs.replace(second, choices=first.choices)
    story = sweep_story(msgspec.structs.replace(sweep, ways=(first, same, *others)))
    assert "is kl-block: 0.0 %, for 0.8 s and 0.8 forward passes" in story[-1]


def test_a_search_says_what_it_took_and_that_it_stopped() -> None:
    story = " ".join(search_story(make_search()))
    assert "makes the KL divergence from the untouched model least" in story
    assert "1 min 28 s and the work of 99 forward passes" in story
    assert "stopped at its budget" not in story
    assert "stopped at its budget" in " ".join(search_story(make_search(complete=False)))


def test_the_next_best_is_told_apart_by_paired_errors() -> None:
    rows = search_rows(make_search())
    assert rows[0].second == "layer 29: not distinguishable"
    assert rows[6].second == "layers 23–29: worse"
    assert rows[6].forwards == "99"


def test_a_sweep_alone_makes_a_page(tmp_path: Path) -> None:
    write_record(make_sweep(), tmp_path / "sweep.json")
    page = Page(write_report(tmp_path))
    assert page.headings() == ["ways-title", "repeat-title", "terms-title"]
    assert "smollm2 7 ways of choosing among its layers" in page.text
    assert "perplexity on code/codealpaca.jsonl[instruction,output]" in page.text
    assert (tmp_path / "plots" / "frontier-1-wikitext2-valid-txt-kl.svg").is_file()


def test_a_search_alone_makes_a_page(tmp_path: Path) -> None:
    write_record(make_search(), tmp_path / "search.json")
    page = Page(write_report(tmp_path))
    assert page.headings() == ["search-title", "repeat-title", "terms-title"]
    assert "a search among its 30 layers" in page.text


def test_the_plan_is_marked_in_the_table_of_its_search(tmp_path: Path) -> None:
    search = make_search()
    write_record(search, tmp_path / "search.json")
    write_record(make_survey(), tmp_path / "survey.json")
    write_record(plan_from_search(search, PlanSettings(drop=3)), tmp_path / "plan.json")
    page = Page(write_report(tmp_path))
    picked = [a for tag, a in page.elements if tag == "tr" and a.get("class") == "picked"]
    assert len(picked) >= 2  # in the table of the search and in that of the runners-up
    assert "a greedy search found no other choice with less KL divergence" in page.text


def test_an_empty_search_makes_a_page_too(tmp_path: Path) -> None:
    empty = msgspec.structs.replace(make_search(complete=False), frontier=())
    write_record(empty, tmp_path / "search.json")
    assert "stopped at its budget" in Page(write_report(tmp_path)).text


@pytest.mark.parametrize("record", ["sweep", "search"])
def test_text_from_outside_is_escaped(record: str, tmp_path: Path) -> None:
    if record == "sweep":
        write_record(make_sweep(source=EVIL, texts=(EVIL,)), tmp_path / "sweep.json")
    else:
        write_record(make_search(source=EVIL), tmp_path / "search.json")
    page = Page(write_report(tmp_path))
    assert EVIL in page.text
    assert not any(tag == "img" for tag, _ in page.elements)
    assert not any(name.startswith("on") for _, a in page.elements for name in a)
