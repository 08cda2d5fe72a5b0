"""What a measurement of speed depends on, known before any model is loaded."""

from collections.abc import Sequence

from depthcut.errors import SettingsError
from depthcut.records import inputs_digest
from depthcut.settings import BenchSettings, LoadSettings


def bench_inputs(model_digests: Sequence[str], settings: BenchSettings, load: LoadSettings) -> str:
    """Digest of all that a measurement depends on but the machine; the first is the reference."""
    return inputs_digest("bench", settings, load, model_digests)


def refuse_in_a_run(settings: BenchSettings) -> None:
    """Refuse, before anything is made, what a run could not measure at its end.

    Raises:
        SettingsError: Numbers that cannot be meant, or an engine that runs no checkpoint folders.
    """
    refuse_unmeant(settings)
    if settings.engine == "llama.cpp":
        raise SettingsError(
            "bench: engine llama.cpp runs .gguf files, and a run makes checkpoint folders: leave "
            "it out, and measure with depthcut bench afterwards"
        )


def refuse_unmeant(settings: BenchSettings) -> None:
    """Refuse numbers that cannot be meant.

    Raises:
        SettingsError: A number below its least, no batch size, or one that comes twice.
    """
    least = {"prompt_tokens": 1, "new_tokens": 2, "rounds": 1}
    if settings.threads is not None:
        least["threads"] = 1
    for field, minimum in least.items():
        if (value := getattr(settings, field)) < minimum:
            option = field.replace("_", "-")
            raise SettingsError(f"--{option} {value}: expected a number of at least {minimum}")
    sizes = settings.batch_sizes
    shown = ",".join(map(str, sizes))
    if not sizes or min(sizes) < 1:
        raise SettingsError(f"--batch-sizes {shown}: expected numbers of at least 1, such as 1,8")
    if len(set(sizes)) < len(sizes):
        raise SettingsError(f"--batch-sizes {shown}: one comes twice; name each once")
