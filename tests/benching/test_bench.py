from pathlib import Path

import msgspec
import pytest

from depthcut.benching import bench
from depthcut.benching.bench import bench_models, measure, spread
from depthcut.benching.engine import random_prompts
from depthcut.benching.inputs import bench_inputs
from depthcut.benching.meters import Meter
from depthcut.errors import SettingsError
from depthcut.records import Bench
from depthcut.settings import BenchSettings, LoadSettings
from tests.benching.engines_for_tests import FakeEngine

SETTINGS = BenchSettings(rounds=4, prompt_tokens=10, new_tokens=6)
LOAD = LoadSettings()
WARM_UP = (9.0, 9.0)


def test_models_take_turns_at_each_batch_size() -> None:
    calls: list[tuple[str, int, int, int]] = []
    models = {name: FakeEngine(name=name, calls=calls) for name in "abc"}
    settings = msgspec.structs.replace(SETTINGS, rounds=2, batch_sizes=(1, 3))
    found = measure(models, settings)
    assert "".join(name for name, *_ in calls) == "abc" * 3 * 2
    assert [size for _, size, _, _ in calls] == [1] * 9 + [3] * 9
    assert {(read, new) for _, _, read, new in calls} == {(10, 6)}
    assert all(len(found[size][name].runs) == 2 for size in (1, 3) for name in "abc")


def test_the_first_round_does_not_count() -> None:
    seconds = [WARM_UP, (1.0, 2.0), (3.0, 4.0)]
    laps = measure({"a": FakeEngine(seconds)}, msgspec.structs.replace(SETTINGS, rounds=2))
    runs = laps[1]["a"].runs
    assert [(run.prefill_seconds, run.decode_seconds) for run in runs] == seconds[1:]


def test_ratios_are_taken_within_rounds() -> None:
    # The machine slows down fourfold; the second model is 1.25 and 2 times as fast all along.
    slowing = (1.0, 2.0, 3.0, 4.0)
    first = FakeEngine([WARM_UP, *((slow, 2 * slow) for slow in slowing)])
    second = FakeEngine([WARM_UP, *((slow / 1.25, slow) for slow in slowing)], name="b", layers=2)
    record = bench_models({"a": first, "b": second}, SETTINGS, LOAD)
    (ratio,) = record.ratios
    assert (ratio.name, ratio.batch_size) == ("b", 1)
    assert ratio.first_token.rounds == pytest.approx((1.25,) * 4)
    assert ratio.decode.low == ratio.decode.median == ratio.decode.high == 2.0
    assert ratio.throughput.median == pytest.approx(3 / 1.8)
    assert ratio.ideal_decode == 2.0
    assert ratio.ideal_prefill == pytest.approx((10 * 40 + 10) / (10 * 20 + 10))
    assert record.ratio("b") == ratio
    assert record.ratio("a") is None


def test_rates_count_the_tokens_of_all_sequences() -> None:
    settings = msgspec.structs.replace(SETTINGS, batch_sizes=(4,))
    engine = FakeEngine([(0.5, 2.0)] * 5, cache_bytes=70)
    record = bench_models({"a": engine}, settings, LOAD)
    timing = record.timing("a")
    assert timing is not None
    assert timing.first_token.median == 0.5
    assert timing.prefill.median == 4 * 10 / 0.5
    assert timing.decode.median == 4 * 5 / 2.0  # the first of the six comes with the prefill
    assert timing.throughput.median == 4 * 6 / 2.5
    assert timing.cache_bytes == 70
    assert timing.energy == ()
    assert record.ratios == ()
    assert record.timing("a", 1) is record.timing("b") is None


def test_the_record_says_where_and_by_what_and_survives_json() -> None:
    record = bench_models({"a": FakeEngine()}, SETTINGS, LOAD)
    assert (record.versions, record.device, record.threads) == ({"fake": "1"}, "cpu", 1)
    assert record.cpu
    assert record.models[0].read_bytes == 400
    assert record.origin.inputs == bench_inputs([FakeEngine().facts.digest], SETTINGS, LOAD)
    assert msgspec.json.decode(msgspec.json.encode(record), type=Bench) == record
    assert "fake" not in record._repr_html_()
    assert list(record.to_frame()["decode tokens/s"]) == [5 / 0.25]


def test_inputs_are_models_settings_and_loading() -> None:
    same = bench_inputs(["d"], SETTINGS, LOAD)
    assert same == bench_inputs(["d"], SETTINGS, LOAD)
    others = {
        bench_inputs(["e"], SETTINGS, LOAD),
        bench_inputs(["d"], msgspec.structs.replace(SETTINGS, threads=2), LOAD),
        bench_inputs(["d"], SETTINGS, LoadSettings(dtype="float32")),
    }
    assert same not in others
    assert len(others) == 3


def test_energy_is_of_a_run_and_shared_among_its_new_tokens() -> None:
    readings = iter((float(n),) for n in range(0, 1000, 30))  # 30 joules between two readings
    meter = Meter("CPU (RAPL)", lambda: next(readings), (None,))
    laps = measure({"a": FakeEngine()}, msgspec.structs.replace(SETTINGS, rounds=2), [meter])
    assert laps[1]["a"].joules == {"CPU (RAPL)": [30.0, 30.0]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "meters", lambda _: (meter,))
        record = bench_models({"a": FakeEngine()}, SETTINGS, LOAD)
    (energy,) = record.models[0].timings[0].energy
    assert energy.meter == "CPU (RAPL)"
    assert energy.joules_per_token.median == 30 / 6


def test_peak_memory_is_the_engines_on_a_gpu_and_a_fresh_process_s_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str | Path] = []
    monkeypatch.setattr(bench, "measure_footprint", lambda source, *_: asked.append(source) or 99)
    models = {
        "gpu": FakeEngine(device="A GPU", device_bytes=7),
        "cpu": FakeEngine(name="b"),
        "in memory": FakeEngine(name="c"),
    }
    record = bench_models(models, SETTINGS, LOAD, sources={"gpu": "g", "cpu": "somewhere"})
    assert [each.peak_memory_bytes for each in record.models] == [7, 99, None]
    assert asked == ["somewhere"]


def test_prompts_are_the_same_each_time_and_known_to_all() -> None:
    prompts = random_prompts(50, 500, 3)
    assert prompts == random_prompts(50, 500, 3)
    assert random_prompts(50, 500, 1) == prompts[:1]
    assert len({tuple(prompt) for prompt in prompts}) == 3
    assert {token for prompt in prompts for token in prompt} == set(range(50))
    small, large = FakeEngine(vocabulary=7), FakeEngine(name="b", vocabulary=900)
    measure({"a": small, "b": large}, SETTINGS)
    assert small.prompts == large.prompts
    assert max(token for prompts in large.prompts for token in prompts[0]) <= 6


def test_summary_is_median_and_quartiles() -> None:
    found = spread([4.0, 1.0, 3.0, 2.0, 5.0])
    assert (found.low, found.median, found.high) == (2.0, 3.0, 4.0)
    assert found.rounds == (4.0, 1.0, 3.0, 2.0, 5.0)
    once = spread([7.0])
    assert (once.low, once.median, once.high) == (7.0, 7.0, 7.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rounds": 0}, "--rounds 0: expected a number of at least 1"),
        ({"prompt_tokens": 0}, "--prompt-tokens 0"),
        ({"new_tokens": 1}, "--new-tokens 1: expected a number of at least 2"),
        ({"threads": 0}, "--threads 0"),
        ({"batch_sizes": ()}, "expected numbers of at least 1, such as 1,8"),
        ({"batch_sizes": (1, 0)}, "--batch-sizes 1,0: expected numbers of at least 1"),
        ({"batch_sizes": (1, 8, 1)}, "--batch-sizes 1,8,1: one comes twice"),
    ],
)
def test_numbers_that_cannot_be_meant_are_refused(change: dict[str, object], message: str) -> None:
    settings = msgspec.structs.replace(SETTINGS, **change)
    with pytest.raises(SettingsError, match=message):
        bench_models({"a": FakeEngine()}, settings, LOAD)


def test_more_tokens_than_positions_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"16 tokens are timed .* but b has 15 positions"):
        bench_models({"a": FakeEngine(), "b": FakeEngine(positions=15)}, SETTINGS, LOAD)
    bench_models({"b": FakeEngine(positions=16)}, SETTINGS, LOAD)


def test_no_model_is_refused() -> None:
    with pytest.raises(SettingsError, match="no model"):
        bench_models({}, SETTINGS, LOAD)
