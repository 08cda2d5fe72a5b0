"""The page: from any set of records, without network, with all text escaped."""

import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest

from depthcut.errors import OutputError
from depthcut.records import Estimate, Stopping
from depthcut.reporting.page import write_report
from depthcut.settings import PlanSettings
from tests.reporting.run_for_tests import (
    Run,
    make_evaluation,
    make_facts,
    make_run,
    make_survey,
    on_two_texts,
)

VOID = {"meta", "br", "wbr", "img", "link", "hr", "input"}
EVIL = "<script>alert(1)</script><img src=x onerror=\"alert(2)\">{{ 7*7 }}' onload='x"


class Page(HTMLParser):
    """What a browser would see: elements, their attributes, text; refuses unbalanced tags."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))

    def headings(self) -> list[str]:
        return [attributes.get("id") or "" for tag, attributes in self.elements if tag == "h2"]


def page_of(run: Run, folder: Path) -> Page:
    return Page(write_report(run.write(folder)))


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return page_of(make_run(), tmp_path_factory.mktemp("run"))


def test_a_whole_run_has_every_section(full: Page) -> None:
    sections = ("choice", "cost", "recovery", "text", "load", "repeat", "terms")
    assert full.headings() == [f"{name}-title" for name in sections]


def test_the_criteria_stand_side_by_side(full: Page) -> None:
    for words in (
        "What each criterion would take",
        "How alike the criteria rank single layers",
        "Each single layer by each criterion",
        "What block-influence says: 0 nothing happens.",
    ):
        assert words in full.text
    headings = [attributes.get("id") for tag, attributes in full.elements if tag == "h3"]
    assert {"takes", "ranks", "layers"} <= set(headings)


def test_one_criterion_has_nothing_to_stand_beside(tmp_path: Path) -> None:
    run = make_run(layers=6)
    assert run.survey
    alone = tuple(each for each in run.survey.scores if each.criterion == "angular")
    survey = msgspec.structs.replace(run.survey, scores=alone)
    assert "How alike the criteria" not in page_of(run._replace(survey=survey), tmp_path).text


def test_the_headline_says_what_changed_and_how_sure_it_is(full: Page) -> None:
    for words in (
        "30 → 23 layers, without layers 13–19 (7 layers)",
        "134.5 M",
        "109.7 M",
        "219.5 MB",
        "significantly worse",
        "2.69× the perplexity of the original",
        "reads at 1.30× and writes at 1.30× the speed of the original",
        "no other block of that size has a lower angular distance at all tokens",
    ):
        assert words in full.text


def test_the_snippets_name_the_real_folder(tmp_path: Path) -> None:
    folder = tmp_path / "a run"
    text = page_of(make_run(layers=6), folder).text
    assert f"folder = '{folder / 'healed'}'" in text
    assert f"vllm serve '{folder / 'healed'}'" in text
    assert f"convert_hf_to_gguf.py '{folder / 'healed'}' --outfile smollm2-" in text


def test_the_page_holds_the_recipe_and_the_versions(full: Page) -> None:
    assert "method: refit" in full.source
    assert "teacher: parent" in full.source
    assert "transformers 5.24.0" in full.text
    assert "layer_range: [20, 30]" in full.text


def test_nothing_is_loaded_from_anywhere(full: Page) -> None:
    for tag, attributes in full.elements:
        assert tag not in ("link", "iframe", "object", "embed", "img", "use", "image", "base")
        assert "src" not in attributes
        if href := attributes.get("href"):
            assert href.startswith(("#", "plots/")), href
    style = re.findall(r"<style>(.*?)</style>", full.source, re.DOTALL)[0]
    assert "@import" not in style
    assert "url(" not in style
    policies = [
        attributes["content"] for _, attributes in full.elements if "http-equiv" in attributes
    ]
    assert [str(policy).split(";")[0] for policy in policies] == ["default-src 'none'"]


def test_links_lead_to_files_and_sections_that_are_there(tmp_path: Path) -> None:
    page = page_of(make_run(layers=6), tmp_path)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in page.elements:
        target = attributes.get("href") if tag == "a" else None
        if target:
            assert target[1:] in ids if target[0] == "#" else (tmp_path / target).is_file()


@pytest.mark.parametrize(("layers", "drop"), [(30, 7), (80, 24)])
def test_the_page_is_light(layers: int, drop: int, tmp_path: Path) -> None:
    long = "word " * 400
    run = make_run(layers, PlanSettings(drop=drop), generations=[long] * 4)
    assert write_report(run.write(tmp_path)).stat().st_size < 600_000


def test_a_very_deep_model_still_fits(tmp_path: Path) -> None:
    run = make_run(126, sequences=2)
    assert write_report(run.write(tmp_path)).stat().st_size < 600_000


def test_all_text_from_outside_is_escaped(tmp_path: Path) -> None:
    run = make_run(layers=6, source=EVIL, generations=[EVIL] * 4)
    assert run.slice
    models = [(EVIL, make_facts(6, source=EVIL), 3.0), (f"{EVIL}2", run.slice.result, 3.5)]
    run = run._replace(evaluation=make_evaluation(models, generations=[EVIL] * 2))
    page = page_of(run, tmp_path / "<b>run")
    assert EVIL in page.text
    assert [tag for tag, _ in page.elements if tag in ("script", "img", "b")].count("script") == 1
    assert not any(tag == "img" for tag, _ in page.elements)
    assert not any(name.startswith("on") for _, a in page.elements for name in a)
    assert "49" not in {word.strip() for word in page.words}


def test_a_script_that_slipped_in_could_not_run(full: Page) -> None:
    import base64
    import hashlib

    script = re.findall(r"<script>(.*?)</script>", full.source, re.DOTALL)[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in full.source


@pytest.mark.parametrize("kept", ["survey", "plan", "slice", "repair", "heal", "evaluation"])
def test_every_record_alone_makes_a_page(kept: str, tmp_path: Path) -> None:
    run = make_run(layers=4)
    alone = run._replace(**{name: None for name in run._fields if name != kept})
    page = page_of(alone, tmp_path)
    assert "smollm2" in page.text or kept == "heal"


def by_hand() -> Run:
    return make_run(30, PlanSettings(remove="1,12-15,29"))


def one_model() -> Run:
    alone = make_evaluation([("only", make_facts(6), 3.0)])
    return Run(make_survey(6), None, None, None, None, alone)


def without_the_cut() -> Run:
    run = make_run(6)
    assert run.evaluation
    first, _, *others = run.evaluation.models
    compared = run.evaluation.comparisons[1:]
    return run._replace(
        evaluation=msgspec.structs.replace(
            run.evaluation, models=(first, *others), comparisons=compared
        )
    )


ODD_RUNS: dict[str, Callable[[], Run]] = {
    "by hand, no survey": lambda: by_hand()._replace(survey=None),
    "by hand beside a survey": by_hand,
    "one model": one_model,
    "no healing, no speed": lambda: make_run(30, repair=False, heal=False, speed=False),
    "repaired, not healed": lambda: make_run(30, heal=False),
    "healed, not repaired": lambda: make_run(30, repair=False),
    "the cut was not judged": without_the_cut,
    "speed alone": lambda: Run(None, None, None, None, None, None, make_run(6).bench),
    "one sequence": lambda: make_run(6, sequences=1),
    "scattered layers": lambda: make_run(30, PlanSettings(drop=7, criterion="block-influence")),
    "two blocks": lambda: make_run(30, PlanSettings(drop=7, blocks=2)),
    "two layers": lambda: make_run(2, PlanSettings(drop=1)),
    "80 layers": lambda: make_run(80, PlanSettings(drop="30%"), sequences=3),
    "not cut yet": lambda: make_run(6)._replace(
        slice=None, repair=None, heal=None, evaluation=None
    ),
}


@pytest.mark.parametrize("name", ODD_RUNS)
def test_odd_sets_of_records_make_a_page(name: str, tmp_path: Path) -> None:
    page = page_of(ODD_RUNS[name](), tmp_path)
    words = set(re.findall(r"\w+", page.text))
    assert not words & {"nan", "NaN", "None", "inf", "Infinity", "undefined"}


def test_warnings_of_the_plan_are_shown(tmp_path: Path) -> None:
    text = page_of(ODD_RUNS["by hand, no survey"](), tmp_path).text
    assert "Take care: it removes the last layer (29), which is known to hurt" in text
    assert "chosen by hand" in text


def test_a_survey_that_stopped_says_so(tmp_path: Path) -> None:
    run = make_run(6)
    assert run.survey is not None
    stopping = Stopping(
        settled=True, confidence=0.9, criterion="cka", removed=((2, 3),), tokens=10, of_tokens=30
    )
    run = run._replace(survey=msgspec.structs.replace(run.survey, stopping=stopping))
    assert (
        "Settled after 10 of 30 tokens, with confidence 0.9: layer 2" in page_of(run, tmp_path).text
    )


def test_one_sequence_claims_no_significance(tmp_path: Path) -> None:
    text = page_of(ODD_RUNS["one sequence"](), tmp_path).text
    assert "error unknown" in text
    assert "clearly" not in text


def test_writing_again_replaces_and_can_be_refused(tmp_path: Path) -> None:
    run = make_run(layers=4)
    first = write_report(run.write(tmp_path)).read_bytes()
    assert write_report(tmp_path).read_bytes() == first
    with pytest.raises(OutputError, match="exists already"):
        write_report(tmp_path, overwrite=False)


def test_the_report_starts_without_its_libraries() -> None:
    code = (
        "import sys, depthcut.reporting.page, depthcut.reporting.headline;"
        "heavy = {'torch', 'numpy', 'transformers', 'jinja2', 'vl_convert', 'pandas', 'yaml'};"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_healed_model_that_beats_its_parent_comes_with_the_reason(tmp_path: Path) -> None:
    run = make_run()
    assert run.evaluation
    *others, healed = run.evaluation.comparisons
    better = msgspec.structs.replace(healed, loss_difference=Estimate(value=-0.2, stderr=0.01))
    evaluation = msgspec.structs.replace(run.evaluation, comparisons=(*others, better))
    found = page_of(run._replace(evaluation=evaluation), tmp_path).text
    assert "Healing trained it on builtin, and the original was not" in found
    assert "the original was not" not in page_of(make_run(), tmp_path / "other").text


@pytest.mark.parametrize("repaired", [True, False])
def test_several_texts_are_told_apart(repaired: bool, tmp_path: Path) -> None:
    run = make_run(6, repair=repaired, heal=repaired)
    assert run.evaluation
    evaluation = on_two_texts(run.evaluation)
    page = page_of(run._replace(evaluation=evaluation), tmp_path)
    assert "texts" in {attributes.get("id") for _, attributes in page.elements}
    assert "support.txt original 28.8 ± 1.3 1.084 ± 0.014 – – – the reference pruned" in page.text
    shares = "support.txt perplexity 28.8 ± 1.3 47.2 ± 2.1 37.7 ± 1.7 45.5 ± 3.9 %"
    assert (shares in page.text) == repaired
    alone = page_of(make_run(6), tmp_path / "alone")
    assert "texts" not in {attributes.get("id") for _, attributes in alone.elements}


def test_an_evaluation_without_a_text_shows_no_quality_on_one(tmp_path: Path) -> None:
    run = make_run(6)
    assert run.evaluation
    bare = msgspec.structs.replace(
        run.evaluation,
        text=None,
        comparisons=(),
        models=tuple(
            msgspec.structs.replace(each, loss=None, perplexity=None, bits_per_byte=None)
            for each in run.evaluation.models
        ),
    )
    page = page_of(run._replace(evaluation=bare), tmp_path)
    assert "quality" not in {attributes.get("id") for _, attributes in page.elements}
    assert "Judged on" not in page.text
    assert "An answer by healed." in page.text
