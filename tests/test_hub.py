"""Fetching from a hub, against a stub of it on loopback, as a user does it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from depthcut.records import Survey, read_record
from tests.hub_stub import BRANCH, COMMIT, address, hub

TOKEN = "hf_" + "x" * 34


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    folder = tmp_path / "dataset"
    folder.mkdir()
    for split, word in (("train", "seen"), ("test", "unseen")):
        rows = [{"text": f"Row {n} holds words that were {word} before."} for n in range(60)]
        path = folder / f"{split}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def survey(endpoint: str, tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "HF_ENDPOINT": endpoint,
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": "1",
    }
    environment.pop("HF_TOKEN", None)
    out = str(tmp_path / "survey.json")
    command = [sys.executable, "-m", "depthcut", "survey", "team/tiny", *arguments]
    return subprocess.run(
        [*command, "--context", "64", "--out", out],
        env=environment, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


def test_a_private_model_at_a_revision_is_surveyed_on_a_streamed_data_set(
    tiny_llama: Path, dataset: Path, tmp_path: Path
) -> None:
    served = {"models/team/tiny": tiny_llama, "datasets/team/words": dataset}
    with hub(served, token=TOKEN) as server:
        done = survey(
            address(server), tmp_path, "--text", "team/words", "--split", "test",
            "--token", TOKEN, "--revision", BRANCH,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = read_record(tmp_path / "survey.json", Survey)
    assert (record.model.source, record.model.layers) == ("team/tiny", 6)
    assert record.text.source == "team/words"
    assert record.load.revision == BRANCH
    assert TOKEN not in (tmp_path / "survey.json").read_text()
    assert f"GET /team/tiny/resolve/{COMMIT}/model.safetensors" in server.seen
    rows = (dataset / "test.jsonl").read_text().splitlines()
    tokens = sum(len(json.loads(row)["text"]) + 1 for row in rows) - 1  # bytes, and ends between
    assert record.text.tokens == tokens


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--token", "hf_wrong"], "HF_TOKEN"),
        (["--token", TOKEN, "--revision", "nowhere"], "no revision 'nowhere'"),
        (["--token", TOKEN, "--text", "team/words", "--split", "tset"], "did you mean test?"),
        (["--token", TOKEN, "--text", "team/none"], "team/none"),
    ],
)
def test_what_the_hub_refuses_is_said_in_one_line(
    tiny_llama: Path, dataset: Path, tmp_path: Path, arguments: list[str], says: str
) -> None:
    served = {"models/team/tiny": tiny_llama, "datasets/team/words": dataset}
    with hub(served, token=TOKEN) as server:
        done = survey(address(server), tmp_path, *arguments)
    lines = [line for line in done.stderr.splitlines() if line.startswith("depthcut: ")]
    assert done.returncode == 2, done.stderr
    assert len(lines) == 1
    assert says in lines[0]
    assert "Traceback" not in done.stderr
