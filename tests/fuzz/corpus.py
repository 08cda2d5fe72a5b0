"""Cases that failed once, kept as small files: JSON, with the mutated file's bytes as Latin-1, or
packed where that is shorter."""

import base64
import json
import zlib
from pathlib import Path

from tests.fuzz.cases import Case

FOLDER = Path(__file__).parent / "corpus"


def write_case(folder: Path, name: str, case: Case) -> Path:
    """NAME.json in a folder."""
    text, packed = case.content.decode("latin-1"), zlib.compress(case.content, 9)
    small = len(json.dumps(text)) <= 2 * len(packed) + 1000
    content = {"text": text} if small else {"packed": base64.b64encode(packed).decode()}
    fields = {"kind": case.kind, "base": case.base, "file": case.file, "kept": case.kept}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(fields | content, indent=1) + "\n", encoding="utf-8")
    return path


def read_case(path: Path) -> Case:
    """What `write_case` wrote."""
    fields = json.loads(path.read_text(encoding="utf-8"))
    if "text" in fields:
        content = fields["text"].encode("latin-1")
    else:
        content = zlib.decompress(base64.b64decode(fields["packed"]))
    kept = tuple(fields["kept"])
    return Case(fields["kind"], fields["base"], fields["file"], content, kept)
