"""Changes of bytes and of JSON that a reader must survive, each drawn from a seeded generator."""

import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

Draw = Callable[[bytes, Random], bytes]


@dataclass(frozen=True)
class Raw:
    """JSON text as it stands: what no Python value is written as."""

    text: str


@dataclass(frozen=True)
class Pairs:
    """An object as its pairs, so that a key can come twice."""

    pairs: list[tuple[str, object]]


NUMBERS = (
    *(0, -1, 1, 2, 3, 4, 5, 6, 7, 8, 12, 255, 256, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63),
    *(2**64, -(2**63), 10**12, 10**400),
)
ODD_NUMBERS = (
    *(0.0, -0.0, 0.5, 6.0, -1.5, 1e308, 5e-324),
    *map(Raw, ("1e400", "-1e400", "NaN", "Infinity", "1E5", "-", "01", "1" * 4299, "1" * 100_000)),
)
STRINGS = (
    *("", "a", "0", "6", "\0", "\n", "é", "../x", "/etc/passwd", ".", "F32", "full_attention"),
    *("model.layers.3", "model.layers.3.attn", "model.layers.", "layers.1.layers.2", "h.99"),
    *(
        "re:.*layers\\.3\\..*",
        "re:.*layers\\.(1|3)\\..*",
        "layers.[0-9].x",
        "layers.(?:2)",
        "(",
        "*",
    ),
    *("M*M-M*", "MMMMMM", "config.json", "model.safetensors", "llama", "gpt2", "gemma3n_text"),
    Raw('"\\ud800"'),
    Raw('"\\udc00\\ud800"'),
)
LONG = (
    "x" * 100_000,
    "layers." * 15_000,
    "model.layers.3." * 7_000,
    "layers.(0|" * 10_000,
    Raw('"' + "\\u0000" * 10_000 + '"'),
    Raw("[" * 100_000),
    Raw('{"a":' * 100_000),
    Raw("[" + "0," * 50_000 + "0]"),
    *(Raw("[" * depth + "]" * depth) for depth in (60, 200, 400, 900, 950, 980)),
    *(Raw('{"a":' * depth + "1" + "}" * depth) for depth in (60, 200, 330, 480, 900, 970)),
)
CONTAINERS = (
    *([], {}, [0], [[]], [{}], [None] * 6, [0] * 6, [1] * 6, [True] * 6, [[]] * 6, [{}] * 6),
    *(
        [1.5] * 6,
        [-1] * 6,
        [10**12] * 6,
        ["full_attention"] * 6,
        ["a"] * 6,
        list(range(6)),
        [0] * 7,
    ),
    *({"0": 1}, {"99999999999": 1}, {"-1": 1}, {"6": 1}, {"٣": 1}, {"": {}}, [[["a"], 10**12]]),
    *([[["a", "b"], 3]], [["global", 6]], [6, 6], {"model_type": "llama"}, [[0, 1]], ["M"] * 6),
)


def any_value(random: Random) -> object:
    """A value that a field hardly expects; one in fifty is long."""
    drawn = random.random()
    if drawn < 0.02:
        return random.choice(LONG)
    if drawn < 0.32:
        return random.choice(NUMBERS)
    if drawn < 0.45:
        return random.choice(ODD_NUMBERS)
    if drawn < 0.65:
        return random.choice(STRINGS)
    return random.choice(CONTAINERS) if drawn < 0.92 else random.choice((None, True, False))


def mutated_bytes(content: bytes, random: Random) -> bytes:
    """One to three changes of bytes."""
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        content = random.choice(_BYTE_CHANGES)(content, random)
    return content


def mutated_json(text: bytes, random: Random) -> bytes:
    """One to three changes of values, keys and structure."""
    value: object = json.loads(text)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        value = _changed(value, random)
    return encode(value)


def mutated_header(content: bytes, random: Random) -> bytes:
    """A safetensors file with another JSON in its header, the length put right or not."""
    length = int.from_bytes(content[:8], "little")
    header = mutated_json(content[8 : 8 + length], random)
    announced = len(header) + (random.choice((-1, 1, 8)) if random.random() < 0.05 else 0)
    return max(announced, 0).to_bytes(8, "little") + header + content[8 + length :]


def encode(value: object) -> bytes:
    """JSON in UTF-8, with what `Raw` and `Pairs` stand for."""
    return "".join(_encoded(value)).encode(errors="surrogatepass")


def _encoded(value: object) -> Iterator[str]:
    if isinstance(value, Raw):
        yield value.text
    elif isinstance(value, list):
        yield "["
        for place, entry in enumerate(value):
            yield "," if place else ""
            yield from _encoded(entry)
        yield "]"
    elif isinstance(value, dict | Pairs):
        yield "{"
        pairs = value.pairs if isinstance(value, Pairs) else value.items()
        for place, (key, entry) in enumerate(pairs):
            yield "," if place else ""
            yield f"{json.dumps(key, ensure_ascii=False)}:"
            yield from _encoded(entry)
        yield "}"
    else:
        yield json.dumps(value, ensure_ascii=False)


def _changed(value: object, random: Random) -> object:
    """The same tree with one place changed; a walk from the root stops at random."""
    deeper = isinstance(value, dict | list) and len(value) > 0 and random.random() < 0.75
    if isinstance(value, dict) and deeper:
        key = random.choice(list(value))
        return {**value, key: _changed(value[key], random)}
    if isinstance(value, list) and deeper:
        place = random.randrange(len(value))
        return [*value[:place], _changed(value[place], random), *value[place + 1 :]]
    if isinstance(value, dict) and value:
        return _changed_object(value, random)
    if isinstance(value, list) and value:
        return _changed_list(value, random)
    if type(value) is int and random.random() < 0.4:
        return value + random.choice((-1, 1, 8, -8, value))
    return any_value(random)


def _changed_object(value: dict[str, object], random: Random) -> object:
    key = random.choice(list(value))
    match random.randrange(6):
        case 0:
            return {name: entry for name, entry in value.items() if name != key}
        case 1:
            return Pairs([*value.items(), (key, any_value(random))])
        case 2:
            other = random.choice(list(value))
            return {**value, key: value[other], other: value[key]}
        case 3:
            names = [*value, *filter(lambda text: isinstance(text, str), STRINGS)]
            return {**value, str(random.choice(names)): value[key]}
        case 4:
            return {**value, key: any_value(random)}
        case _:
            return any_value(random)


def _changed_list(value: list[object], random: Random) -> object:
    place = random.randrange(len(value))
    match random.randrange(6):
        case 0:
            return value[:place] + value[place + 1 :]
        case 1:
            return [*value, value[place]]
        case 2:
            return [*value[:place], any_value(random), *value[place:]]
        case 3:
            return value * random.choice((0, 2, 3))
        case 4:
            return random.sample(value, len(value))
        case _:
            return any_value(random)


def _flip(content: bytes, random: Random) -> bytes:
    at = _place(content, random)
    return content[:at] + bytes([content[at] ^ 1 << random.randrange(8)]) + content[at + 1 :]


def _replace(content: bytes, random: Random) -> bytes:
    at = _place(content, random)
    return (
        content[:at] + random.choice((b"\0", b"\xff", b'"', b"[", b"{", b"9")) + content[at + 1 :]
    )


def _insert(content: bytes, random: Random) -> bytes:
    at = _place(content, random)
    return content[:at] + random.randbytes(random.choice((1, 1, 4, 8))) + content[at:]


def _delete(content: bytes, random: Random) -> bytes:
    at = _place(content, random)
    return content[:at] + content[at + random.choice((1, 1, 2, 8, 64)) :]


def _duplicate(content: bytes, random: Random) -> bytes:
    at = _place(content, random)
    return content[: at + random.choice((1, 8, 64))] + content[at:]


def _truncate(content: bytes, random: Random) -> bytes:
    return content[: _place(content, random)]


def _splice(content: bytes, random: Random) -> bytes:
    one, other, size = _place(content, random), _place(content, random), random.choice((4, 16, 64))
    return content[:one] + content[other : other + size] + content[one + size :]


def _number(content: bytes, random: Random) -> bytes:
    at = 0 if random.random() < 0.2 else _place(content, random)
    form = random.choice(("<Q", "<I"))
    number = random.choice(NUMBERS[:-1]) % (1 << 8 * struct.calcsize(form))
    return content[:at] + struct.pack(form, number) + content[at + struct.calcsize(form) :]


def _place(content: bytes, random: Random) -> int:
    """More often near the start, where headers lie; a place of an existing byte."""
    size = max(len(content), 1)
    return random.randrange(min(size, 200)) if random.random() < 0.3 else random.randrange(size)


def _guarded(change: Draw) -> Draw:
    return lambda content, random: change(content or b"\0", random)


_BYTE_CHANGES: tuple[Draw, ...] = tuple(
    map(_guarded, (_flip, _replace, _insert, _delete, _duplicate, _truncate, _splice, _number))
)
