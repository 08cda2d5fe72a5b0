from pathlib import Path

import msgspec
import pytest

from depthcut import api, cli
from depthcut.errors import RecordError, SettingsError
from depthcut.healing.inputs import check
from depthcut.healing.losses.table import loss_weights
from depthcut.options import with_preset
from depthcut.presets import HEAL_PRESETS, heal_preset
from depthcut.recipes import read_recipe
from depthcut.settings import HealSettings


@pytest.mark.parametrize("name", list(HEAL_PRESETS))
def test_presets_are_settings_that_can_be_meant(name: str) -> None:
    settings = heal_preset(name)
    check(settings)
    loss_weights(settings)
    assert settings != HealSettings()


def test_what_is_said_itself_stands_above_the_preset() -> None:
    settings = heal_preset("gromov", steps=200)
    assert (settings.steps, settings.rank, settings.modules) == (200, 64, "mlp")


def test_a_text_of_ones_own_is_not_read_by_the_presets_configuration() -> None:
    assert heal_preset("gromov").text_config == "en"
    assert heal_preset("gromov", text="mine.txt").text_config is None
    own = with_preset(["heal", "m", "--preset", "gromov", "--text", "mine.txt"])
    assert "--text-config" not in own
    assert own.count("--text") == 1


def test_on_the_command_line_an_option_stands_above_the_preset(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[HealSettings] = []

    def stage(_: object, __: object, settings: HealSettings, **___: object) -> None:
        asked.append(settings)
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "heal", stage)
    arguments = ["heal", "model", "--preset", "gromov", "--steps", "200", "--out", str(tmp_path)]
    with pytest.raises(SystemExit):
        cli.main(arguments)
    assert asked == [heal_preset("gromov", steps=200)]
    assert with_preset(["heal", "model", "--steps", "3"]) == ["heal", "model", "--steps", "3"]


def test_in_a_recipe_a_key_stands_above_the_preset(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("heal:\n  preset: quick\n  steps: 7\n")
    assert read_recipe(path).heal == heal_preset("quick", steps=7)
    path.write_text("heal:\n  preset: quik\n")
    with pytest.raises((RecordError, SettingsError), match="did you mean quick"):
        read_recipe(path)


def test_an_unknown_preset_is_refused_with_the_nearest(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["heal", "model", "--preset", "gromow", "--out", str(tmp_path / "out")])
    assert caught.value.code == 2
    assert "did you mean gromov" in capsys.readouterr().err


def test_presets_hold_only_settings() -> None:
    fields = {field.name for field in msgspec.structs.fields(HealSettings)}
    assert all(set(values) <= fields for values in HEAL_PRESETS.values())
