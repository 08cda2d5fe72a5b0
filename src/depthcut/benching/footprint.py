"""Memory that a model needs on the CPU, measured in a process of its own.

`python -m depthcut.benching.footprint SOURCE SETTINGS LOAD` opens the model in the engine, runs it
once at the largest batch size, and prints by how many bytes the peak resident size of the process
grew over what Python and the libraries took. It counts the pages of the weight files that loading
maps, as the operating system does.
"""

import contextlib
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import msgspec

from depthcut.settings import BenchSettings, LoadSettings

PROCESS = Path("/proc/self")


def measure_footprint(
    source: str | Path, settings: BenchSettings, load: LoadSettings
) -> int | None:
    """Bytes that loading a model and running it once add to a fresh process on the CPU.

    None where the platform does not tell, or the process fails: its reason is logged.
    """
    if sys.platform == "win32":
        return None
    here = msgspec.structs.replace(load, device="cpu")
    command = [sys.executable, "-m", __name__, str(source)]
    command += [msgspec.json.encode(each).decode() for each in (settings, here)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        logging.getLogger(__name__).warning("no memory measured for %s: %s", source, reason)
        return None
    return int(json.loads(done.stdout.splitlines()[-1]))


def _main(source: str, settings_json: str, load_json: str) -> None:
    from depthcut.benching.engine import random_prompts
    from depthcut.benching.engines import ENGINES

    settings = msgspec.json.decode(settings_json, type=BenchSettings)
    load = msgspec.json.decode(load_json, type=LoadSettings)
    open_model = ENGINES[settings.engine]()
    before = _resident_bytes()
    engine = open_model(source, settings, load)
    prompts = random_prompts(engine.vocabulary, settings.prompt_tokens, max(settings.batch_sizes))
    engine.once(prompts, settings.new_tokens)
    print(_peak_bytes() - before)  # noqa: T201 - what the parent process reads


def _resident_bytes() -> int:
    """Resident now; the peak starts anew here, where the system can."""
    if not PROCESS.is_dir():
        return _peak_bytes()
    with contextlib.suppress(OSError):
        (PROCESS / "clear_refs").write_text("5")
    return _status_bytes("VmRSS")


def _peak_bytes() -> int:
    if PROCESS.is_dir():  # not getrusage: there a process inherits the peak of its parent
        return _status_bytes("VmHWM")
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _status_bytes(field: str) -> int:
    lines = (PROCESS / "status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


if __name__ == "__main__":
    _main(*sys.argv[1:])
