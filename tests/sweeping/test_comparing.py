"""Every way of choosing on a tiny model: what it chose, what the judges say, going on."""

import random
from pathlib import Path
from typing import Any

import pytest

import depthcut
from depthcut.errors import OutputError, PlanError, SettingsError, SourceError
from depthcut.records import Judgement, Search, Survey, Sweep, read_record
from depthcut.searching.journal import Journal
from depthcut.settings import EvaluateSettings, PlanSettings, SweepSettings
from tests.tiny import build_tiny, save_tiny, tiny_tokenizer

WORDS = ("river", "stone", "the", "a", "runs", "under", "old", "bridge", "and", "sleeps")


def words(count: int, seed: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=count))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    save_tiny(build_tiny("llama"), folder / "model")
    tiny_tokenizer(folder / "model")
    (folder / "text.txt").write_text(words(600, 0))
    (folder / "first.txt").write_text(words(200, 1))
    (folder / "second.txt").write_text(words(150, 2)[::-1])
    return folder


def asked(place: Path, **changes: Any) -> SweepSettings:
    settings = {
        "criteria": ("angular,angular/last,loss-block:2", "taylor,greedy,last,random:1"),
        "drop": "1:3",
        "text": str(place / "text.txt"),
        "context": 64,
        "tokens": 1024,
        "judge": (str(place / "first.txt"), str(place / "second.txt")),
        "judge_context": 48,
        "search_context": 32,
        "search_tokens": 512,
    }
    return SweepSettings(**{**settings, **changes})


@pytest.fixture(scope="module")
def swept(place: Path) -> Sweep:
    return depthcut.sweep(place / "model", asked(place), out=place / "out")


def test_every_way_chooses_every_number_of_layers(swept: Sweep) -> None:
    names = ("angular", "angular/last", "loss-block:2", "taylor", "greedy", "last", "random:1")
    assert tuple(way.name for way in swept.ways) == names
    for way in swept.ways:
        assert [choice.count for choice in way.choices] == [1, 2, 3]
    assert swept.way("last").choices[1].removed == ((3, 5),)
    assert [way.kind for way in swept.ways[-3:]] == ["search", "baseline", "baseline"]


def test_ways_choose_what_their_stages_choose(place: Path, swept: Sweep) -> None:
    survey = read_record(place / "out" / "survey.json", Survey)
    for choice in swept.way("loss-block:2").choices:
        settings = PlanSettings(drop=choice.count, criterion="loss-block", blocks=2)
        assert choice.removed == depthcut.plan(survey, settings).removed
    assert any(len(choice.removed) == 2 for choice in swept.way("loss-block:2").choices)
    search = read_record(place / "out" / "searches" / "greedy.json", Search)
    chosen = swept.way("greedy").find(3)
    assert chosen
    assert chosen.removed == search.find(3).removed


def test_judges_say_what_the_evaluation_says_of_sliced_models(
    place: Path, swept: Sweep, tmp_path: Path
) -> None:
    for number, name in enumerate(("angular", "greedy", "last")):
        judged = swept.judged[number % 2]
        choice = swept.way(name).find(number + 1)
        assert choice
        remove = ",".join(f"{start}-{stop - 1}" for start, stop in choice.removed)
        plan = depthcut.plan(str(place / "model"), PlanSettings(remove=remove))
        depthcut.slice(place / "model", plan, tmp_path / name)
        evaluation = depthcut.evaluate(
            [place / "model", tmp_path / name],
            EvaluateSettings(text=judged.text.source, context=48, new_tokens=1),
        )
        said, compared = judged.find(choice.removed), evaluation.comparisons[0]
        for found, expected in (
            (said.loss, evaluation.models[1].loss),
            (judged.untouched.loss, evaluation.models[0].loss),
            (said.perplexity, evaluation.models[1].perplexity),
            (said.loss_difference, compared.loss_difference),
        ):
            assert found.value == pytest.approx(expected.value, rel=1e-6)
            assert found.stderr == pytest.approx(expected.stderr, rel=1e-4)
        assert said.kl_divergence.value == pytest.approx(compared.kl_divergence.value, rel=1e-3)


def test_two_choices_differ_by_what_their_sequences_say(swept: Sweep) -> None:
    judged = swept.judged[0]
    first, second = judged.judgements[1], judged.judgements[2]
    difference = judged.difference(first, second)
    assert difference.value == pytest.approx(first.loss.value - second.loss.value, abs=1e-6)
    against = judged.difference(first, judged.untouched)
    assert against.value == pytest.approx(first.loss_difference.value, abs=1e-6)
    assert against.stderr == pytest.approx(first.loss_difference.stderr, rel=1e-4)
    divergence = judged.difference(first, judged.untouched, "kl")
    assert divergence.value == pytest.approx(first.kl_divergence.value, rel=1e-4)


def test_baselines_cost_nothing_and_searches_more_with_depth(swept: Sweep) -> None:
    assert swept.way("last").forwards == swept.way("random:1").seconds == 0
    costs = [choice.forwards for choice in swept.way("greedy").choices]
    assert costs == sorted(set(costs))
    assert costs[-1] == swept.way("greedy").forwards
    # Gradients take a forward and a backward pass beside the survey's pass.
    difference = swept.way("taylor").forwards - swept.way("angular").forwards
    assert difference == pytest.approx(3)


def test_the_same_command_finds_everything_there(place: Path, swept: Sweep) -> None:
    said: list[str] = []
    again = depthcut.sweep(place / "model", asked(place), out=place / "out", announce=said.append)
    assert again == swept
    assert said == ["sweep.json is there already"]


def test_a_further_way_takes_what_holds(place: Path, swept: Sweep) -> None:
    more = asked(place, criteria=("angular,angular/last,loss-block:2,taylor,greedy,last,random:2",))
    with pytest.raises(OutputError, match="--overwrite"):
        depthcut.sweep(place / "model", more, out=place / "out")
    said: list[str] = []
    again = depthcut.sweep(
        place / "model", more, out=place / "out", overwrite=True, announce=said.append
    )
    assert "searches/greedy.json is there already" in said
    assert "surveys/states.json is there already" in said
    assert again.ways[:-1] == swept.ways[:-1]
    shared = again.ways[0].choices[0].removed
    assert again.judged[0].find(shared) == swept.judged[0].find(shared)
    depthcut.sweep(place / "model", asked(place), out=place / "out", overwrite=True)


@pytest.mark.parametrize("dies_at", [3, 20, 45])
def test_a_killed_sweep_goes_on(place: Path, swept: Sweep, dies_at: int, tmp_path: Path) -> None:
    add, written = Journal.add, []

    def dying(self: Journal, entry: Any) -> None:
        add(self, entry)
        written.append(entry)
        if len(written) == dies_at:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "add", dying)
        with pytest.raises(KeyboardInterrupt):
            depthcut.sweep(place / "model", asked(place), out=tmp_path / "out")
        patch.setattr(Journal, "add", lambda *given: written.append(given) or add(*given))
        again = depthcut.sweep(place / "model", asked(place), out=tmp_path / "out")
        after = len(written)
        depthcut.sweep(place / "model", asked(place), out=tmp_path / "whole")
    assert after == len(written) - after  # nothing was measured twice
    assert removed(again) == removed(swept)
    for one, other in zip(again.judged, swept.judged, strict=True):
        assert [numbers(each) for each in one.judgements] == [
            pytest.approx(numbers(each), rel=1e-6) for each in other.judgements
        ]


def test_what_was_judged_goes_on_in_batches_of_the_same_size(
    place: Path, swept: Sweep, tmp_path: Path
) -> None:
    few = asked(place, criteria=("last",), batch_size=3)
    depthcut.sweep(place / "model", few, out=tmp_path)
    more = asked(place, criteria=("last,angular",), batch_size=2)
    found = depthcut.sweep(place / "model", more, out=tmp_path, overwrite=True)
    for one, other in zip(found.judged, swept.judged, strict=True):
        for judgement in one.judgements:
            expected = numbers(other.find(judgement.removed))
            assert numbers(judgement) == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_a_search_that_was_killed_with_other_settings_is_replaced_when_asked(
    place: Path, tmp_path: Path
) -> None:
    settings = asked(place, criteria=("greedy",))
    journal = tmp_path / "searches" / "greedy.json.journal"
    journal.parent.mkdir()
    journal.write_text('{"inputs":"of another"}\n')
    with pytest.raises(OutputError, match="begun with other settings"):
        depthcut.sweep(place / "model", settings, out=tmp_path)
    depthcut.sweep(place / "model", settings, out=tmp_path, overwrite=True)
    assert not journal.exists()


def removed(sweep: Sweep) -> list[object]:
    return [choice.removed for way in sweep.ways for choice in way.choices]


def numbers(judgement: Judgement) -> tuple[float, ...]:
    return judgement.loss.value, judgement.loss.stderr, judgement.kl_divergence.value


def test_without_a_judge_every_eighth_sequence_judges(place: Path) -> None:
    found = depthcut.sweep(
        place / "model", asked(place, judge=(), criteria=("last", "angular"), search_tokens=64)
    )
    (judged,) = found.judged
    assert found.settings.part == "all"
    assert judged.name == f"{place / 'text.txt'}, every eighth sequence"
    whole = depthcut.sweep(
        place / "model", asked(place, criteria=("last", "angular"), search_tokens=64)
    )
    assert judged.text.digest == whole.calibration_digest
    assert judged.text.sequences < whole.judged[0].text.sequences


def test_a_model_and_texts_in_memory(place: Path) -> None:
    model, tokenizer = build_tiny("llama"), tiny_tokenizer(place / "tokenizer")
    settings = asked(place, criteria=("angular,last",), drop=2)
    found = depthcut.sweep(
        model,
        settings,
        tokenizer=tokenizer,
        texts=[words(600, 0)],
        judges={"mine": [words(200, 1)]},
    )
    judged = found.judged[0].find(found.way("last").choices[0].removed)
    assert judged.loss.value > 0
    assert found.judged[0].name == "mine"
    assert found.calibration == "in memory"


def test_many_criteria_are_surveyed_by_what_they_share(place: Path, tmp_path: Path) -> None:
    settings = asked(place, criteria=("all", "kl-block"), drop="1", judge=str(place / "first.txt"))
    found = depthcut.sweep(place / "model", settings, out=tmp_path)
    assert sorted(path.name for path in (tmp_path / "surveys").iterdir()) == [
        "losses.json",
        "states.json",
    ]
    together = read_record(tmp_path / "survey.json", Survey)
    assert [each.criterion for each in together.scores] == [
        *("angular", "angular", "cosine", "cosine", "cosine-centred", "cosine-centred"),
        *("euclidean", "euclidean", "cka", "block-influence", "block-influence"),
        *("relative-magnitude", "relative-magnitude", "kl-block", "kl-block"),
    ]
    for way in found.ways:
        group = "losses" if way.name == "kl-block" else "states"
        survey = read_record(tmp_path / "surveys" / f"{group}.json", Survey)
        assert way.seconds == survey.origin.seconds


def test_each_criterion_can_have_a_time_of_its_own(place: Path, tmp_path: Path) -> None:
    settings = asked(place, criteria=("angular,cosine",), drop="1", time_each=True)
    found = depthcut.sweep(place / "model", settings, out=tmp_path)
    assert sorted(path.stem for path in (tmp_path / "surveys").iterdir()) == ["angular", "cosine"]
    for way in found.ways:
        survey = read_record(tmp_path / "surveys" / f"{way.name}.json", Survey)
        assert way.seconds == survey.origin.seconds


def test_a_survey_of_losses_takes_the_passes_that_are_counted(place: Path) -> None:
    from depthcut.model.loading import load
    from depthcut.model.skipping import Skipper
    from depthcut.settings import LoadSettings
    from depthcut.sweeping.choosing import survey_forwards

    loaded = load(place / "model", LoadSettings())
    counted = []
    forget = Skipper.forget

    def counting(self: Skipper, number: int) -> None:
        counted.append(self.work)
        forget(self, number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Skipper, "forget", counting)
        survey = depthcut.survey(
            place / "model",
            depthcut.SurveySettings(
                text=str(place / "text.txt"), criteria=("kl-block",), context=64, tokens=1024
            ),
        )
    of_states = survey_forwards(survey, ["angular"], loaded)
    expected = counted[-1].forwards(loaded, survey.text.sequences)
    assert survey_forwards(survey, ["kl-block"], loaded) - of_states == pytest.approx(expected)


def test_what_cannot_be_meant_is_refused_before_anything_is_measured(place: Path) -> None:
    with pytest.raises(SettingsError, match=r"no way of choosing 'greedi' \(did you mean greedy"):
        depthcut.sweep(place / "model", asked(place, criteria=("greedi",)))
    with pytest.raises(SourceError, match=r"no text .*missing\.txt"):
        depthcut.sweep(place / "model", asked(place, judge=(str(place / "missing.txt"),)))
    with pytest.raises(PlanError, match="removes 6 of 6 layers"):
        depthcut.sweep(place / "model", asked(place, drop="1:6"))
    with pytest.raises(PlanError, match="only 4 layers may go"):
        depthcut.sweep(place / "model", asked(place, drop="5", protect="0,5"))
    twice = (str(place / "first.txt"),) * 2
    with pytest.raises(SettingsError, match="stands there twice"):
        depthcut.sweep(place / "model", asked(place, judge=twice))
    with pytest.raises(SettingsError, match="name a --judge"):
        depthcut.sweep(place / "model", asked(place, judge=(), part="train"))


def test_a_text_that_chose_cannot_judge(place: Path) -> None:
    with pytest.raises(SettingsError, match="judges what was chosen on it"):
        depthcut.sweep(place / "model", asked(place, judge=(str(place / "text.txt"),)))
