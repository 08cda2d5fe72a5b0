import itertools
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from depthcut.errors import RecordError
from depthcut.recipes import (
    commented_recipe,
    common_recipe,
    demo_recipe,
    read_recipe,
    write_recipe,
)
from depthcut.settings import (
    BenchSettings,
    EvaluateSettings,
    HealSettings,
    LoadSettings,
    PlanSettings,
    Recipe,
    RepairSettings,
    SearchSettings,
    Settings,
    SurveySettings,
)

EXAMPLES = Path(__file__).parent.parent / "examples"


def saved(tmp_path: Path, content: str) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(content, encoding="utf-8")
    return path


def test_the_commented_recipe_is_the_default_recipe(tmp_path: Path) -> None:
    assert read_recipe(saved(tmp_path, commented_recipe())) == Recipe()


def test_every_key_of_the_commented_recipe_has_a_comment_above_it() -> None:
    lines = commented_recipe().splitlines()
    for above, line in itertools.pairwise(lines):
        if ":" in line and not line.lstrip().startswith("#") and not line.endswith(":"):
            assert above.lstrip().startswith("#"), line


@given(
    st.builds(
        Recipe,
        model=st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1),
        load=st.builds(LoadSettings, dtype=st.sampled_from(["auto", "float32"])),
        survey=st.builds(SurveySettings, tokens=st.integers(1, 10**9)),
        search=st.none() | st.builds(SearchSettings, seed=st.integers(0, 9)),
        plan=st.builds(PlanSettings, drop=st.sampled_from([None, 7, "25%", "7"])),
        repair=st.none() | st.builds(RepairSettings, method=st.sampled_from(["refit", "scale"])),
        heal=st.none() | st.builds(HealSettings, learning_rate=st.floats(1e-9, 1.0)),
        evaluate=st.builds(EvaluateSettings, new_tokens=st.integers(0, 9)),
        bench=st.none() | st.builds(BenchSettings, rounds=st.integers(1, 9)),
    )
)
def test_recipes_survive_writing_and_reading(recipe: Recipe) -> None:
    assert msgspec.yaml.decode(write_recipe(recipe), type=Recipe) == recipe


@pytest.mark.parametrize(
    ("content", "advice"),
    [
        ("modle: x", "unknown key 'modle' (did you mean model?)"),
        ("survey: {tokns: 3}", "unknown key 'tokns' in survey (did you mean tokens?)"),
        ("search: {metod: greedy}", "unknown key 'metod' in search (did you mean method?)"),
        ("repair: {metod: refit}", "unknown key 'metod' in repair (did you mean method?)"),
        ("heal: {step: 3}", "unknown key 'step' in heal (did you mean steps?)"),
        ("survey: {tokens: many}", "Expected `int`, got `str` - at `$.survey.tokens`"),
        ("plan: [1", "recipe"),
        ("", "Expected `object`"),
    ],
)
def test_a_wrong_recipe_says_where_and_what_it_could_be(
    tmp_path: Path, content: str, advice: str
) -> None:
    with pytest.raises(RecordError) as caught:
        read_recipe(saved(tmp_path, content))
    assert advice in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"none\.yaml: No such file"):
        read_recipe(tmp_path / "none.yaml")


def test_one_text_serves_both_sides_without_overlap() -> None:
    one = common_recipe("m", text="t.txt", repair="refit", heal_steps=3)
    assert one.repair is not None
    assert one.heal is not None
    trained = (one.survey, one.repair, one.heal)
    assert {(each.text, each.part) for each in trained} == {("t.txt", "train")}
    assert one.evaluate.part == "held-out"
    two = common_recipe("m", text="t.txt", eval_text="v.txt")
    assert (two.survey.part, two.evaluate.part, two.evaluate.text) == ("all", "all", "v.txt")


def test_texts_are_one_or_a_list_with_weights(tmp_path: Path) -> None:
    found = read_recipe(
        saved(
            tmp_path,
            "survey: {text: [wiki.txt:2, chat.jsonl:1]}\n"
            "heal: {text: wiki.txt}\n"
            "evaluate: {text: [wiki.txt:2]}\n",
        )
    )
    assert found.heal is not None
    assert found.survey.text == ("wiki.txt:2", "chat.jsonl:1")
    assert (found.heal.text, found.evaluate.text) == ("wiki.txt", "wiki.txt:2")
    assert msgspec.yaml.decode(write_recipe(found), type=Recipe) == found
    several = common_recipe("m", text=("a:2", "b"), eval_text=("c", "d"))
    assert (several.survey.text, several.evaluate.text) == (("a:2", "b"), ("c", "d"))


@pytest.mark.parametrize("text", ["[a, 3]", "{a: 2}", "3"])
def test_what_is_no_name_of_a_text_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(RecordError, match=r"Expected `str.* - at `\$\.survey\.text"):
        read_recipe(saved(tmp_path, f"survey: {{text: {text}}}"))


def test_the_quick_demo_reads_less() -> None:
    quick, usual = demo_recipe(quick=True), demo_recipe()
    assert quick.survey.tokens < usual.survey.tokens
    assert quick.repair is not None
    assert usual.repair is not None
    assert quick.repair.tokens < usual.repair.tokens


def test_the_demo_repairs_and_heals_where_it_is_asked_to() -> None:
    assert demo_recipe().heal is None
    healing = demo_recipe(heal=True)
    assert healing.repair is not None
    assert healing.heal is not None
    assert healing.heal.teacher == "parent"


def test_healing_is_asked_for_by_its_method_or_its_steps() -> None:
    plain, steps, method = (
        common_recipe("m"), common_recipe("m", heal_steps=7), common_recipe("m", heal="full")
    )  # fmt: skip
    assert plain.heal is None
    assert steps.heal == HealSettings(part="train", teacher="parent", method="lora", steps=7)
    assert method.heal == HealSettings(part="train", teacher="parent", method="full")


def test_a_common_repair_keeps_the_layer_that_makes_up_for_the_first_cut() -> None:
    repaired = common_recipe("m", repair="linear")
    assert repaired.repair == RepairSettings(part="train", method="linear")
    assert repaired.search is not None
    assert repaired.plan.protect == repaired.search.protect == "0"
    assert common_recipe("m").plan.protect is None


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.name)
def test_the_examples_are_valid_recipes(path: Path) -> None:
    assert read_recipe(path).plan != PlanSettings()


@pytest.mark.parametrize(
    ("stage", "settings"),
    [
        ("search", SearchSettings(part="train")),
        ("repair", RepairSettings(part="train")),
        ("heal", HealSettings(part="train", teacher="parent")),
    ],
)
def test_the_commented_recipe_shows_what_can_be_switched_on(
    tmp_path: Path, stage: str, settings: Settings
) -> None:
    text = commented_recipe()
    start = text.index(f"{stage}: null\n# {stage}:")
    stop = text.index("\n\n", start)
    lines = text[start:stop].splitlines()[1:]
    switched = "\n".join(line.removeprefix("# ") for line in lines)
    found = read_recipe(saved(tmp_path, text[:start] + switched + text[stop:]))
    assert getattr(found, stage) == settings


def test_a_common_search_is_on_the_same_text_for_as_many_layers() -> None:
    recipe = common_recipe("m", text="a.txt", drop=3)
    assert recipe.search == SearchSettings(text="a.txt", part="train", drop=3)


def test_quick_takes_a_survey_s_word_and_best_searches_on_more() -> None:
    quick, best = common_recipe("m", effort="quick"), common_recipe("m", effort="best").search
    assert quick.search is None
    assert quick.plan.criterion in quick.survey.criteria
    assert best is not None
    assert best.tokens > SearchSettings().tokens


def test_speed_is_measured_unless_a_recipe_says_null(tmp_path: Path) -> None:
    assert read_recipe(saved(tmp_path, "model: m")).bench == BenchSettings()
    assert read_recipe(saved(tmp_path, "bench: null")).bench is None
    found = read_recipe(saved(tmp_path, "bench: {batch_sizes: [1, 8]}")).bench
    assert found == BenchSettings(batch_sizes=(1, 8))
    quick, usual = demo_recipe(quick=True).bench, demo_recipe().bench
    assert quick is not None
    assert usual is not None
    assert quick.rounds < usual.rounds
