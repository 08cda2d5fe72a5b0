"""A folder with evaluation.json and bench.json and nothing else."""

import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import vl_convert

from depthcut.records import Evaluation, write_record
from depthcut.reporting.headline import headline_lines
from depthcut.reporting.page import write_report
from depthcut.reporting.results import read_results
from tests.reporting.ladder_for_tests import make_ladder, make_tasks, write_ladder
from tests.reporting.run_for_tests import make_bench, make_run
from tests.reporting.test_page import EVIL, Page


def page_of(evaluation: Evaluation, folder: Path, *, bench: bool = True) -> Page:
    write_ladder(folder, evaluation)
    if bench:
        timed = [(each.name, each.model) for each in evaluation.models]
        write_record(make_bench(timed, batch_sizes=(1, 8)), folder / "bench.json")
    return Page(write_report(folder))


@pytest.fixture(scope="module", autouse=True)
def _no_png() -> Iterator[None]:
    """Drawing pixels is most of a page's time, and other tests look at them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vl_convert, "svg_to_png", lambda svg, scale: b"png")
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ladder")


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return page_of(make_ladder(text=False), folder)


def test_a_ladder_has_the_sections_of_what_was_done(page: Page) -> None:
    sections = ("cost", "benchmarks", "models", "text", "repeat", "terms")
    assert page.headings() == [f"{name}-title" for name in sections]
    words = set(re.findall(r"\w+", page.text.lower()))
    assert not words & {"nan", "none", "inf", "undefined"}


def test_the_opening_says_how_far_down_the_models_hold(page: Page) -> None:
    for words in (
        "6 models of 20 to 30 layers on 11 benchmarks",
        "6 models answered 2,700 questions of 11 benchmarks.",
        "The smallest that does not differ significantly from it is smollm2-minus-3 with 27 layers",
        "The largest that is significantly worse is smollm2-minus-5 with 25 layers, by",
        "Not told apart down to 27 layers",
        "1.50×",
    ):
        assert words in page.text


def test_the_section_on_benchmarks_holds_all_of_them(page: Page) -> None:
    for words in (
        "Not significant on any task: hellaswag (0.0 ± 1.2 points)",
        "*: significant at 5 %; n.s.: not significant",
        "average of 10",
        "left above chance",
        "mmlu each of its 5 tasks",
        "mmlu_world_religions",
        "Of 55 differences that were tested at 5 %, about 3 would pass",
        "Which of these is a metal that is liquid at room temperature? (item",
        "right: mercury",
        "Not significant does not mean alike",
    ):
        assert words in page.text


def test_numbers_stand_in_the_page_once(page: Page) -> None:
    assert "__NEXT" not in page.source
    assert page.source.count('type="application/json"') == 0
    assert page.source.count("vega.github.io") == 0
    script = re.findall(r"<script>(.*?)</script>", page.source, re.DOTALL)
    assert len(script) == 1
    assert "hellaswag" not in script[0]


def test_speed_stands_beside_its_ideal(page: Page) -> None:
    assert "beside it the ideal" in page.text
    assert "1.50× (1.53)" in page.text
    batch = [word.strip() for word in page.words]
    assert batch.count("8") >= 6


def test_links_lead_to_files_that_are_there(page: Page, folder: Path) -> None:
    links = [attributes.get("href") or "" for tag, attributes in page.elements if tag == "a"]
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    files = [link for link in links if not link.startswith("#")]
    assert {"tasks.csv", "tasks.tex", "model-card-smollm2-minus-1.md"} <= set(files)
    for link in links:
        assert link[1:] in ids if link[0] == "#" else (folder / link).is_file()
        assert ":" not in link


def test_writing_again_changes_nothing(page: Page, folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    write_report(folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_seventy_tasks_of_six_models_fit(tmp_path: Path) -> None:
    evaluation = make_ladder(more=58, question="A rather long question. " * 60)
    assert evaluation.tasks
    assert len(evaluation.tasks.chief) >= 69
    page_of(evaluation, tmp_path, bench=False)
    assert (tmp_path / "report.html").stat().st_size < 6_000_000


def test_text_from_outside_is_escaped(tmp_path: Path) -> None:
    page = page_of(make_ladder((0, 1, 7), source=EVIL, question=EVIL), tmp_path)
    assert EVIL in page.text
    assert [tag for tag, _ in page.elements].count("script") == 1
    assert not any(tag == "img" for tag, _ in page.elements)
    assert not any(name.startswith("on") for _, names in page.elements for name in names)


def test_paths_become_short_names_everywhere(tmp_path: Path) -> None:
    evaluation = make_ladder((0, 3), source="/data/models/base")
    page = page_of(evaluation, tmp_path)
    assert "base-minus-3" in page.text
    found = read_results(tmp_path).evaluation
    assert found
    assert found.tasks
    assert found.tasks.score("base-minus-3", found.tasks.tasks[0])
    assert found.tasks.difference("base-minus-3", "hellaswag")
    assert found.tasks.average("base-minus-3")
    assert set(found.tasks.seconds) == {"base", "base-minus-3"}
    for place in ("report.html", "tasks.csv", "tasks.tex", "model-card.md"):
        text = (tmp_path / place).read_text(encoding="utf-8").partition('id="repeat"')[0]
        text = text.replace("An answer by /data/models/base-minus-3", "")
        assert "/data/models/base-minus-3" not in text, place


def test_models_that_cannot_be_told_apart_are_not_called_worse(tmp_path: Path) -> None:
    evaluation = make_ladder((0, 1))
    text = page_of(evaluation, tmp_path, bench=False).text
    assert "significantly worse is" not in text
    assert "2 models of 29 to 30 layers" in text


def test_one_model_alone_makes_a_page(tmp_path: Path) -> None:
    page = page_of(make_ladder((0,)), tmp_path, bench=False)
    assert "benchmarks-title" in page.headings()
    assert "models-title" not in page.headings()
    assert "n.s." not in page.text


def test_several_models_on_a_text_alone_are_a_ladder_too(tmp_path: Path) -> None:
    evaluation = msgspec.structs.replace(make_ladder((0, 1, 3, 7)), tasks=None)
    page = page_of(evaluation, tmp_path)
    assert page.headings()[:2] == ["cost-title", "models-title"]
    assert "4 models of 23 to 30 layers" in page.text


def test_a_whole_run_tells_its_benchmarks_too(tmp_path: Path) -> None:
    run = make_run()
    assert run.evaluation
    tasks = make_tasks([("original", 0), ("pruned", 7), ("repaired", 5), ("healed", 3)])
    run = run._replace(evaluation=msgspec.structs.replace(run.evaluation, tasks=tasks))
    page = Page(write_report(run.write(tmp_path)))
    assert "On 10 benchmarks the healed model scores 46.3 ± 0.9 % on average" in page.text
    assert "Average of 10 benchmarks, %" in page.text
    assert {"choice-title", "benchmarks-title", "models-title"} <= set(page.headings())
    lines = "\n".join(headline_lines(read_results(tmp_path)))
    assert "Average of 10 benchmarks, %" in lines
    assert "  loss back: " in lines


def test_degeneration_stands_below_the_texts(page: Page) -> None:
    for words in ("What is wrong with the texts", "rep-4, arXiv:1908.04319", "60 ± 10 %"):
        assert words in page.text
