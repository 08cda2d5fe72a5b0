from pathlib import Path

import pytest

from depthcut.architectures.table import ARCHITECTURES
from depthcut.cli import COMMANDS
from depthcut.repairing.methods import METHODS as REPAIRS
from depthcut.searching.methods import METHODS
from depthcut.surveying.criteria import CRITERIA

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "depthcut"


@pytest.mark.parametrize(
    "path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE))
)
def test_the_architecture_page_has_every_file(path: Path) -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    name = path.parent.name if path.name == "__init__.py" else path.name
    assert f"  {name}" in page


@pytest.mark.parametrize("command", COMMANDS)
def test_the_readme_has_every_command(command: str) -> None:
    assert f"| `depthcut {command}" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_the_page_of_architectures_has_every_model_type(model_type: str) -> None:
    page = ROOT / "docs" / "architectures.md"
    assert f"`{model_type}`" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("criterion", CRITERIA)
def test_the_method_page_has_every_criterion(criterion: str) -> None:
    assert f"| `{criterion}`" in (ROOT / "docs" / "method.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("method", METHODS)
def test_the_method_page_has_every_search(method: str) -> None:
    assert f"| `{method}` |" in (ROOT / "docs" / "method.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("method", REPAIRS)
def test_the_method_page_has_every_repair(method: str) -> None:
    assert f"| `{method}` |" in (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
