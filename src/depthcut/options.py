"""How the command line takes several values: --text a.txt:2 b.txt, --batch-sizes 1,8,32."""

from collections.abc import Sequence
from typing import Any

from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from depthcut.presets import preset_values
from depthcut.settings import Texts

TEXT_OPTIONS = ("--text", "--eval-text", "--judge", "--prompts")


def options_registry() -> ConstructorRegistry:
    """A tyro registry (a context) of what options of these types take.

    Texts take one name or several; several numbers stand between spaces or commas.
    """
    registry = ConstructorRegistry()

    @registry.primitive_rule
    def texts(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
        if info.type not in (Texts, Texts | None):
            return None
        return PrimitiveConstructorSpec(
            nargs="*",
            metavar="TEXT[:WEIGHT] …",
            instance_from_str=_texts,
            is_instance=lambda value: value is None or isinstance(value, str | tuple),
            str_from_instance=_as_arguments,
        )

    @registry.primitive_rule
    def numbers(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
        if info.type != tuple[int, ...]:
            return None
        return PrimitiveConstructorSpec(
            nargs="*",
            metavar="INT,…",
            instance_from_str=_numbers,
            is_instance=lambda value: isinstance(value, tuple),
            str_from_instance=lambda value: [",".join(map(str, value))],
        )

    return registry


def with_texts_joined(arguments: Sequence[str]) -> list[str]:
    """The arguments with --text a … --text b as --text a b at their end, where nothing follows.

    tyro would take the last of them only, and what follows a list as part of it. So an option
    takes several names only if the command's own arguments stand before the options; else one.
    """
    joined = list(arguments)
    several = len(joined) > 1 and not joined[1].startswith("-")
    for option in TEXT_OPTIONS:
        joined = _joined(joined, option, several=several)
    return joined


def with_preset(arguments: Sequence[str]) -> list[str]:
    """The arguments with the options of --preset NAME, where they are not given themselves.

    Raises:
        SettingsError: There is no such preset.
    """
    given = {
        each.partition("=")[0][2:].replace("-", "_") for each in arguments if each.startswith("--")
    }
    name: str | None = None
    for number, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        if option == "--preset":
            name = value if equals else next(iter(arguments[number + 1 :]), None)
    if name is None:
        return list(arguments)
    added = []
    for field, value in preset_values(name, given).items():
        added += [f"--{field.replace('_', '-')}", str(value)]
    return [*arguments, *added]


def _joined(arguments: list[str], option: str, *, several: bool) -> list[str]:
    others: list[str] = []
    names: list[str] = []
    found = listing = False
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name.replace("_", "-") == option:
            found = True
            listing = not equals
            names += [value] if equals else []
        elif listing and not argument.startswith("--"):
            names.append(argument)
            listing = several
        else:
            listing = False
            others.append(argument)
    return [*others, option, *names] if found else others


def _texts(arguments: list[str]) -> Texts:
    if not arguments:
        raise ValueError("expected the name of a text, or several")
    return arguments[0] if len(arguments) == 1 else tuple(arguments)


def _numbers(arguments: list[str]) -> tuple[int, ...]:
    parts = [part for argument in arguments for part in argument.split(",") if part.strip()]
    try:
        return tuple(map(int, parts))
    except ValueError:
        raise ValueError(f"{' '.join(arguments)}: expected whole numbers such as 1,8,32") from None


def _as_arguments(value: Texts | None) -> list[str]:
    if value is None:
        return ["None"]
    return [value] if isinstance(value, str) else list(value)
