"""Several processes evaluate as one does."""

from pathlib import Path

import msgspec
import pytest

from depthcut.errors import SettingsError
from depthcut.records import Evaluation, read_record
from depthcut.settings import EvaluateSettings
from tests.evaluation.benchmarks.task_folder import write_tasks
from tests.processes import together
from tests.tiny import build_tiny, save_tiny, tiny_tokenizer

pytest.importorskip("lm_eval", reason="needs lm-eval: pip install 'depthcut[eval]'")


def test_more_processes_than_questions_are_refused_by_all_of_them(tmp_path: Path) -> None:
    from depthcut.evaluation.benchmarks.asked import Asked
    from depthcut.evaluation.benchmarks.harness import Harness, _deal_out
    from depthcut.model.ranks import Ranks

    folder = write_tasks(tmp_path, items=3)
    for rank in (0, 3):
        tasks = Harness(EvaluateSettings(include=(str(folder),))).load(Asked("colours"))["tasks"]
        _deal_out(tasks, Ranks(rank, 4))
        with pytest.raises(SettingsError, match="3 questions for 4 processes; start fewer"):
            tasks["colours"].build_all_requests()


def test_processes_evaluate_as_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = save_tiny(build_tiny("llama"), tmp_path / "model")
    tiny_tokenizer(model)
    tasks = write_tasks(tmp_path / "tasks", items=9)
    found = []
    for count in (1, 2):
        monkeypatch.setenv("DEPTHCUT_CACHE", str(tmp_path / f"cache {count}"))
        out = tmp_path / f"{count}.json"
        command = ["evaluate", str(model), "--tasks", "endings:2,pair,sums"]
        command += ["--include", str(tasks), "--tokens", "900", "--context", "32"]
        # Fresh: the server that processes are copied from has the cache folder of its beginning.
        command += ["--batch-size", "1", "--new-tokens", "4", "--fresh"]
        for ended in together([*command, "--out", str(out)], count):
            assert ended.code == 0, ended.messages
        record = read_record(out, Evaluation)
        assert record.tasks is not None
        tasks_alone = msgspec.structs.replace(record.tasks, seconds={}, samples="")
        found.append((record.models, record.text, tasks_alone))
        assert out.with_name(f"{count}.samples.jsonl.gz").is_file()
    assert found[0] == found[1]
