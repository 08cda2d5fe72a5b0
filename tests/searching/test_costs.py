"""What a search says of its own cost, whole and after a kill."""

from pathlib import Path

import pytest

import depthcut
from depthcut.searching.journal import Journal
from depthcut.settings import SearchSettings
from tests.tiny import build_tiny, save_tiny, tiny_tokenizer

SETTINGS = SearchSettings(method="greedy", tokens=4096, context=32, drop="1:3", error_rate=0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_tiny(build_tiny("llama"), tmp_path_factory.mktemp("model"))
    tiny_tokenizer(folder)
    return folder


def test_each_choice_says_what_the_search_had_taken_until_then(model: Path) -> None:
    found = depthcut.search(model, SETTINGS)
    costs = [point.cost for point in found.frontier]
    assert all(costs)
    passes = [cost.layer_passes for cost in costs if cost]
    # 128 sequences: the untouched model, and each of six candidates from where its layer is left
    # out on.
    assert passes[0] == 128 * (6 + sum(range(6)))
    assert passes == sorted(set(passes))
    assert costs[-1] == found.cost


def test_a_search_begun_again_says_the_same_cost(model: Path, tmp_path: Path) -> None:
    whole = depthcut.search(model, SETTINGS, out=tmp_path / "whole.json")
    journal = tmp_path / "killed.json.journal"
    with pytest.raises(KeyboardInterrupt):
        kill_after(40, model, tmp_path / "killed.json")  # 28 make the first choice
    assert journal.exists()
    again = depthcut.search(model, SETTINGS, out=tmp_path / "killed.json")
    assert [point.removed for point in again.frontier] == [p.removed for p in whole.frontier]
    first, second = again.frontier[0].cost, whole.frontier[0].cost
    assert first
    assert second
    assert first.layer_passes == second.layer_passes


def test_a_search_goes_on_with_batches_of_the_size_that_it_began_with(
    model: Path, tmp_path: Path
) -> None:
    whole = depthcut.search(model, SETTINGS)
    path = tmp_path / "killed.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("depthcut.model.skipping._CPU_BATCH_TOKENS", 96)
        with pytest.raises(KeyboardInterrupt):
            kill_after(20, model, path)
    again = depthcut.search(model, SETTINGS, out=path)
    for one, other in zip(again.frontier, whole.frontier, strict=True):
        assert one.removed == other.removed
        assert one.loss.value == pytest.approx(other.loss.value, abs=1e-6)


def kill_after(entries: int, model: Path, out: Path) -> None:
    """A search that dies once so much is measured."""
    add, written = Journal.add, []

    def dying(self: Journal, entry: object) -> None:
        add(self, entry)  # type: ignore[arg-type]
        written.append(entry)
        if len(written) == entries:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "add", dying)
        depthcut.search(model, SETTINGS, out=out)
