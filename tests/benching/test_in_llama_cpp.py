"""llama.cpp computes what it computes elsewhere, and says how long that takes."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

import depthcut
from depthcut.benching import in_llama_cpp
from depthcut.benching.in_llama_cpp import InLlamaCpp, open_model
from depthcut.errors import CheckpointError, MissingExtraError, SettingsError, SourceError
from depthcut.settings import BenchSettings, LoadSettings
from tests.llama_cpp_logits import llama_cpp_logits
from tests.tiny import build_tiny
from tests.tiny_gguf import HEAD, KEY_HEADS, VOCABULARY, WIDTH, write_gguf

SETTINGS = BenchSettings(
    engine="llama.cpp", prompt_tokens=9, new_tokens=4, batch_sizes=(1, 3), rounds=2, threads=1
)
PROMPTS = [[3, 4, 5, 6, 7], [9, 8, 7, 6, 5], [1, 2, 1, 2, 1]]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six layers of float32, without a head of its own: read only."""
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture
def engine(file: Path) -> Iterator[InLlamaCpp]:
    with closing(open_model(file, SETTINGS, LoadSettings(device="cpu"))) as opened:
        yield opened


def greedy(file: Path, prompt: list[int], new_tokens: int) -> list[int]:
    """By whole passes, each in a process of its own."""
    tokens = list(prompt)
    for _ in range(new_tokens):
        logits = llama_cpp_logits(file, tokens)
        assert logits is not None
        tokens.append(int(logits[-1].argmax()))
    return tokens[len(prompt) :]


def test_batches_write_what_each_sequence_alone_would(
    engine: InLlamaCpp, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[list[int]] = []
    decoded = InLlamaCpp._decoded

    def note(self: InLlamaCpp, *args: object) -> list[int]:
        steps.append(decoded(self, *args))  # type: ignore[arg-type]
        return steps[-1]

    monkeypatch.setattr(InLlamaCpp, "_decoded", note)
    run = engine.once(PROMPTS, 3)
    assert min(run.prefill_seconds, run.decode_seconds) > 0
    written = [list(each) for each in zip(*steps, strict=True)]
    assert written == [greedy(file, prompt, 3) for prompt in PROMPTS]
    steps.clear()
    engine.once(PROMPTS[:1], 3)  # nothing is left of the run before
    assert steps == [[token] for token in written[0]]


def test_prompts_longer_than_a_call_may_bring_are_read_in_parts(
    engine: InLlamaCpp, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole: list[list[int]] = []
    decoded = InLlamaCpp._decoded

    def note(self: InLlamaCpp, *args: object) -> list[int]:
        whole.append(decoded(self, *args))  # type: ignore[arg-type]
        return whole[-1]

    monkeypatch.setattr(InLlamaCpp, "_decoded", note)
    engine.once(PROMPTS, 2)
    monkeypatch.setattr(in_llama_cpp, "_BATCH_TOKENS", 4)
    engine.once(PROMPTS, 2)
    assert whole[:2] == whole[2:]


def test_the_cache_is_that_of_the_tokens_that_were_read(engine: InLlamaCpp) -> None:
    cache_bytes = engine.once(PROMPTS, 4).cache_bytes
    by_shape = 3 * (5 + 4 - 1) * 6 * 2 * KEY_HEADS * HEAD * 2  # float16
    assert cache_bytes is not None
    assert by_shape <= cache_bytes < 1.2 * by_shape + 1000


def test_what_a_file_says_of_itself_is_in_the_record(engine: InLlamaCpp) -> None:
    assert engine.facts.layers == 6
    assert (engine.vocabulary, engine.positions, engine.gpus) == (VOCABULARY, None, ())
    assert (engine.device, engine.threads) == ("cpu", 1)
    assert engine.versions["llama-cpp-python"]
    assert engine.work.head_parameters == VOCABULARY * WIDTH
    assert engine.work.read_bytes == engine.weight_bytes == engine.facts.weight_bytes


def test_a_head_of_its_own_is_read_instead_of_the_table(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "x.gguf", outside={"output.weight": (VOCABULARY, WIDTH)})
    with closing(open_model(file, SETTINGS, LoadSettings(device="cpu"))) as engine:
        assert engine.weight_bytes - engine.work.read_bytes == VOCABULARY * WIDTH * 4


def test_the_whole_stage_in_llama_cpp(file: Path, tmp_path: Path) -> None:
    plan = depthcut.plan(file, depthcut.PlanSettings(remove="2-3"))
    depthcut.slice(file, plan, tmp_path / "cut.gguf")
    record = depthcut.bench(
        {"whole": file, "cut": tmp_path / "cut.gguf"}, SETTINGS, out=tmp_path / "bench.json"
    )
    assert [each.model.layers for each in record.models] == [6, 4]
    assert [(each.name, each.batch_size) for each in record.ratios] == [("cut", 1), ("cut", 3)]
    assert 1 < record.ratios[0].ideal_decode < 6 / 4
    assert all(each.peak_memory_bytes for each in record.models)
    assert depthcut.read_record(tmp_path / "bench.json", depthcut.Bench) == record


def test_a_checkpoint_folder_is_refused_with_what_to_do(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"depthcut slice model\.gguf .*convert_hf_to_gguf"):
        open_model(tiny_llama, SETTINGS, LoadSettings())
    with pytest.raises(SettingsError, match="convert_hf_to_gguf"):
        open_model(build_tiny("llama"), SETTINGS, LoadSettings())
    with pytest.raises(SourceError, match=r"no file .*none\.gguf"):
        open_model(tmp_path / "none.gguf", SETTINGS, LoadSettings())


def test_what_llama_cpp_cannot_load_is_refused_with_its_reason(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "x.gguf", extra={"ffn_up.weight": ()})
    with pytest.raises(CheckpointError, match=r"llama\.cpp cannot load .*ffn_up"):
        open_model(file, SETTINGS, LoadSettings(device="cpu"))


@pytest.mark.parametrize(
    ("load", "message"),
    [
        (LoadSettings(dtype="float32"), "--dtype means nothing to --engine llama.cpp"),
        (LoadSettings(load_in_4bit=True), "--load-in-4bit means nothing"),
        (LoadSettings(device="cuda:1"), "--device cuda:1 means nothing .*CUDA_VISIBLE_DEVICES"),
    ],
)
def test_options_that_mean_nothing_to_it_are_refused(
    file: Path, load: LoadSettings, message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        open_model(file, SETTINGS, load)


def test_a_gpu_that_its_build_has_not_is_refused(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = in_llama_cpp._library()
    monkeypatch.setattr(library, "llama_supports_gpu_offload", lambda: False)
    with pytest.raises(SettingsError, match="built without a GPU"):
        open_model(file, SETTINGS, LoadSettings(device="cuda"))


def test_a_missing_package_says_how_to_install_it(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(in_llama_cpp, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'depthcut\[bench\]'"):
        open_model(file, SETTINGS, LoadSettings())
