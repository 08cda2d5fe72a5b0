"""An engine that takes no time and says what it was asked for."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from depthcut.benching.engine import Prompts, Run
from depthcut.benching.work import Work
from depthcut.records import ModelFacts
from tests.reporting.run_for_tests import make_facts


@dataclass
class FakeEngine:
    """Answers with the seconds it is given, one pair (prefill, decode) a run."""

    seconds: Sequence[tuple[float, float]] = ()
    name: str = "fake"
    layers: int = 4
    vocabulary: int = 100
    positions: int | None = None
    calls: list[tuple[str, int, int, int]] = field(default_factory=list)
    """Name, batch size, prompt tokens, new tokens."""
    device: str = "cpu"
    gpus: tuple[int, ...] = ()
    threads: int | None = 1
    weight_bytes: int = 400
    cache_bytes: int | None = None
    device_bytes: int | None = None
    closed: bool = False
    prompts: list[Prompts] = field(default_factory=list)

    @property
    def facts(self) -> ModelFacts:
        return make_facts(self.layers, source=self.name)

    @property
    def work(self) -> Work:
        return Work(read_bytes=100 * self.layers, parameters=10 * self.layers, head_parameters=10)

    @property
    def versions(self) -> dict[str, str]:
        return {"fake": "1"}

    def once(self, prompts: Prompts, new_tokens: int) -> Run:
        turn = sum(name == self.name for name, *_ in self.calls)
        self.calls.append((self.name, len(prompts), len(prompts[0]), new_tokens))
        self.prompts.append(prompts)
        prefill, decode = self.seconds[turn] if self.seconds else (0.5, 0.25)
        return Run(prefill, decode, self.cache_bytes, self.device_bytes)

    def close(self) -> None:
        self.closed = True
