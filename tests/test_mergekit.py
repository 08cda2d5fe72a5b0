"""A mergekit recipe becomes the same arrangement, or a line on what cannot be one."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from depthcut import api, cli
from depthcut.errors import DepthcutError, PlanError, SettingsError
from depthcut.mergekit import read_mergekit
from depthcut.planning import plan_by_hand, plan_by_mergekit
from depthcut.records import LayerSlice, Plan, read_record
from depthcut.reporting.exports import mergekit_yaml
from depthcut.settings import PlanSettings
from tests.records_for_tests import make_facts

LAYERS = 12
FACTS = msgspec.structs.replace(make_facts(LAYERS), dtype="bfloat16")
PLAIN = PlanSettings()


def source(start: int, stop: int, model: object = "tiny", **more: object) -> dict[str, object]:
    return {"model": model, "layer_range": [start, stop], **more}


def recipe_of(*sources: dict[str, object], **more: object) -> dict[str, object]:
    slices = [{"sources": [each]} for each in sources]
    return {"slices": slices, "merge_method": "passthrough", **more}


@pytest.fixture
def planned(tmp_path: Path) -> Callable[[object], Plan]:
    """The plan of a recipe for a model of twelve layers."""

    def plan(recipe: object) -> Plan:
        file = tmp_path / "recipe.yaml"
        file.write_text(recipe if isinstance(recipe, str) else yaml.safe_dump(recipe))
        return plan_by_mergekit(FACTS, read_mergekit(file), PLAIN)

    return plan


slices = st.integers(0, LAYERS - 1).flatmap(
    lambda start: st.tuples(st.just(start), st.integers(start + 1, LAYERS))
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(slices, min_size=1, max_size=6).filter(lambda spans: not is_whole(spans)))
def test_what_mergekit_yaml_writes_comes_back(
    planned: Callable[[object], Plan], spans: list[tuple[int, int]]
) -> None:
    arranged = tuple(LayerSlice(start=start, stop=stop) for start, stop in spans)
    plan = msgspec.structs.replace(plan_by_hand(FACTS, PlanSettings(remove="1")), slices=arranged)
    assert planned(mergekit_yaml(plan)).slices == arranged


def is_whole(spans: list[tuple[int, int]]) -> bool:
    return [layer for span in spans for layer in range(*span)] == list(range(LAYERS))


def test_the_recipe_that_plan_writes_is_one_that_plan_reads(
    planned: Callable[[object], Plan], tmp_path: Path
) -> None:
    first = planned(recipe_of(source(0, 8), source(4, 12), source(9, 10)))
    again = planned(mergekit_yaml(first))
    assert (again.slices, again.origin.inputs) == (first.slices, first.origin.inputs)
    assert again.rearranges


def test_the_command_plans_slices_and_proves_a_self_merge(
    tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = recipe_of(source(0, 4, "org/llama"), source(2, 6, "org/llama"), dtype="float32")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    recipe_file, out = str(tmp_path / "recipe.yaml"), str(tmp_path / "plan.json")
    with pytest.raises(SystemExit) as caught:
        cli.main(["plan", str(tiny_llama), "--from-mergekit", recipe_file, "--out", out])
    assert caught.value.code == 0
    assert f"the recipe's org/llama was taken to be {tiny_llama}" in "".join(
        capsys.readouterr().out.splitlines()
    )
    plan = read_record(tmp_path / "plan.json", Plan)
    assert plan.kept_layers == (0, 1, 2, 3, 2, 3, 4, 5)
    api.slice(tiny_llama, plan, tmp_path / "out")
    assert api.verify(tmp_path / "out").result.layers == 8


@pytest.mark.parametrize(
    ("model", "name"),
    [("tiny@main", "tiny"), ({"model": {"path": "tiny", "revision": "a"}}, "tiny")],
)
def test_every_form_of_a_model_s_name_is_read(
    planned: Callable[[object], Plan], model: object, name: str
) -> None:
    plan = planned(recipe_of(source(0, 3, model)))
    assert plan.slices == (LayerSlice(start=0, stop=3),)
    assert not any(name in each for each in plan.warnings)


@pytest.mark.parametrize(
    ("more", "note"),
    [
        ({"tokenizer_source": "union"}, "tokenizer_source is not followed"),
        ({"tokenizer": {"source": "base"}}, "tokenizer is not followed"),
        ({"chat_template": "auto"}, "chat_template is not followed"),
        ({"parameters": {"normalize": True, "scale": 1.0}}, "the parameter normalize is not"),
        ({"dtype": "bfloat16"}, ""),
        ({"base_model": "tiny"}, ""),
    ],
)
def test_what_changes_no_weight_is_noted(
    planned: Callable[[object], Plan], more: dict[str, object], note: str
) -> None:
    plan = planned(recipe_of(source(0, 3), source(6, 11), **more))
    found = [each for each in plan.warnings if "last layer" not in each]
    assert len(found) == bool(note)
    assert all(each.startswith(note) for each in found)


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        (recipe_of(source(0, 3)) | {"merge_method": "slerp"}, "'slerp' computes new weights"),
        (
            {"merge_method": "passthrough", "models": [{"model": "tiny"}]},
            "models names no layers; write slices",
        ),
        ({"merge_method": "passthrough"}, "slices must be a list, found None"),
        (recipe_of(source(0, 3), dtype="float16"), "wants float16, tiny is bfloat16"),
        (recipe_of(source(0, 3), out_dtype="float32"), "wants float32"),
        (recipe_of(source(0, 3), parameters={"scale": 0.5}), "scale 0.5 changes weights"),
        (
            recipe_of(source(0, 3, parameters={"scale": [{"filter": "o_proj", "value": 0.0}]})),
            "slice 1: parameters scale .*filter.* changes weights",
        ),
        (recipe_of(source(0, 3), tokenizer={"tokens": {}}), "tokens would change embeddings"),
        (recipe_of(source(0, 3, "a+lora")), "a\\+lora adds a lora"),
        (recipe_of(source(0, 3, {"model": "a", "lora": "b"})), "lora .* changes weights"),
        (recipe_of(source(0, 3), source(3, 6, "other")), "2 models \\(other, tiny\\)"),
        (recipe_of(source(0, 13)), r"takes layers \[0, 13\): tiny has 12, numbered 0 to 11"),
        (recipe_of(source(0, 12)), "keeps all 12 layers"),
        (recipe_of(source(0, 5), source(5, 12)), "keeps all 12 layers"),
        (recipe_of(source(3, 3)), "slice 1: layer_range must be"),
        (recipe_of(source(-1, 3)), "layer_range must be"),
        (recipe_of({"model": "tiny", "layer_range": [0]}), "layer_range must be"),
        (recipe_of({"layer_range": [0, 3]}), "model must be a path or hub id"),
        (recipe_of({"modle": "tiny", "layer_range": [0, 3]}), "'modle' .*did you mean model"),
        (
            recipe_of() | {"slices": [{"sources": [source(0, 3), source(3, 6)]}]},
            "slice 1 has 2 sources",
        ),
        (recipe_of() | {"slices": ["x"]}, "slice 1 must hold an object"),
        (
            recipe_of() | {"slices": [{"sources": [source(0, 3)], "residual_weight": 0.5}]},
            "residual_weight changes weights",
        ),
        ("[: broken", "is not YAML"),
        ("just text", "must hold an object"),
        ("", "must hold an object"),
    ],
)
def test_what_is_no_arrangement_of_one_model_is_refused(
    planned: Callable[[object], Plan], recipe: object, says: str
) -> None:
    with pytest.raises((SettingsError, PlanError), match=says):
        planned(recipe)


def test_a_recipe_and_a_budget_cannot_be_mixed(tiny_llama: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe_of(source(0, 3))))
    with pytest.raises(SettingsError, match="drop and a mergekit recipe"):
        api.plan(tiny_llama, PlanSettings(drop=2), mergekit=tmp_path / "recipe.yaml")
    with pytest.raises(SettingsError, match="cannot read the recipe"):
        api.plan(tiny_llama, mergekit=tmp_path / "none.yaml")


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-2, 13) | st.sampled_from(["tiny", "passthrough"]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["slices", "sources", "model", "layer_range", "parameters", "scale"]
                ),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    )
)
def test_no_recipe_ends_in_a_traceback(planned: Callable[[object], Plan], value: object) -> None:
    recipe = {**value, "merge_method": "passthrough"} if isinstance(value, dict) else value
    with contextlib.suppress(DepthcutError):
        planned(recipe)
