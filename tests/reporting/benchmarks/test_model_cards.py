"""Model cards: the hub's own library reads the numbers back."""

import msgspec
import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData

from depthcut.records import Evaluation
from depthcut.reporting.benchmarks.model_cards import model_cards
from tests.reporting.ladder_for_tests import make_ladder


def test_each_model_after_the_first_has_a_card() -> None:
    assert list(model_cards(make_ladder((0, 1, 7)))) == [
        "model-card-smollm2-minus-1.md",
        "model-card-smollm2-minus-7.md",
    ]
    assert list(model_cards(make_ladder((0, 1)))) == ["model-card.md"]
    assert list(model_cards(make_ladder((0,)))) == ["model-card.md"]
    assert model_cards(msgspec.structs.replace(make_ladder((0, 1)), tasks=None)) == {}


def test_the_hub_reads_every_number_back() -> None:
    evaluation = make_ladder((0, 7))
    assert evaluation.tasks
    card = ModelCard(model_cards(evaluation)["model-card.md"])
    assert isinstance(card.data, ModelCardData)
    assert card.data.model_name == "smollm2-minus-7"
    found = {
        (each.dataset_name, each.metric_name): each for each in card.data.eval_results or ()
    }  # fmt: skip
    own = [each for each in evaluation.tasks.scores if each.model == "smollm2-minus-7"]
    assert len(found) == len(own)
    for score in own:
        result = found[score.task, score.metric]
        assert result.task_type == "text-generation"
        assert result.metric_type == score.metric.partition("/")[0]
        assert result.metric_value == pytest.approx(score.value, abs=1e-6)
        assert result.metric_args is not None
        assert result.metric_args["stderr"] == pytest.approx(score.stderr, abs=1e-6)
    # Written again by the hub's library it says the same.
    again = ModelCardData(**yaml.safe_load(card.data.to_yaml()))
    assert len(again.eval_results or ()) == len(own)


def test_tasks_of_one_data_set_stay_apart() -> None:
    evaluation = make_ladder((0, 7))
    assert evaluation.tasks
    same = msgspec.structs.replace(
        evaluation.tasks,
        tasks=tuple(
            msgspec.structs.replace(each, source="cais/mmlu") if each.group else each
            for each in evaluation.tasks.tasks
        ),
    )
    card = ModelCard(
        model_cards(msgspec.structs.replace(evaluation, tasks=same))["model-card.md"]
    )  # fmt: skip
    inside = [each for each in card.data.eval_results if each.dataset_type == "cais/mmlu"]
    assert {each.dataset_config for each in inside} == {
        task.name for task in same.tasks if task.group
    }
    back = ModelCardData(**yaml.safe_load(card.data.to_yaml()))
    names = [each.dataset_name for each in back.eval_results or ()]
    assert {name for name in names if name.startswith("mmlu_")} == {
        each.dataset_name for each in inside
    }


def test_the_table_says_what_is_not_significant() -> None:
    text = model_cards(make_ladder((0, 1)))["model-card.md"].partition("## Evaluation")[2]
    row = next(line for line in text.splitlines() if line.startswith("| hellaswag"))
    assert row == (
        "| hellaswag | acc\\_norm, 0-shot | 240 of 2,400 | 55.8 ± 3.2 % | 55.8 ± 3.2 % | "
        "0.0 ± 1.2 points | not significant |"
    )
    widths = {line.count(" |") for line in text.splitlines() if line.startswith("| ")}
    assert widths == {7}
    assert "| **average** | 10 tasks |" in text


@pytest.mark.parametrize("name", ["../../x", "a/b|c<script>", "é: - [x]\n---"])
def test_names_from_outside_harm_neither_the_file_nor_the_card(name: str) -> None:
    evaluation = renamed(make_ladder((0, 1)), name)
    third = make_ladder((0, 1, 7))
    assert third.tasks
    (card,) = model_cards(evaluation).values()
    assert ModelCard(card).data.model_name == name
    assert "<script>" not in card.partition("## Evaluation")[2]
    two = msgspec.structs.replace(
        third,
        models=(
            third.models[0],
            *(msgspec.structs.replace(m, name=name) for m in third.models[1:]),
        ),
    )
    files = model_cards(two)
    assert len(files) == 2
    assert not any(set(file) & set("/\\:<>|\n") for file in files)


def renamed(evaluation: Evaluation, name: str) -> Evaluation:
    first, second = evaluation.models
    return msgspec.structs.replace(
        evaluation, models=(first, msgspec.structs.replace(second, name=name))
    )
