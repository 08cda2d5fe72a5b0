"""Scores of code that a model wrote: it runs in depthcut's sandbox, and passes its tests or not.

lm-eval's own humaneval and mbpp take the metric code_eval of the hub, which has to be fetched and
runs the code with the rights of the user. The numbers are defined alike: of n programs, of which
c pass, the chance that one of k drawn from them passes (Chen et al. 2021, arXiv:2107.03374).
"""

from math import comb
from typing import Any

from depthcut.evaluation.benchmarks.sandbox import require_sandbox, run_python

require_sandbox()  # before a model has answered for an hour


def pass_at_k(
    references: list[str], predictions: list[list[str]], k: list[int]
) -> dict[str, float]:
    """{"pass@1": …} over programs and their tests, which are put after them."""
    scores: dict[str, list[float]] = {f"pass@{count}": [] for count in k}
    for tests, programs in zip(references, predictions, strict=True):
        passed = sum(run_python(f"{program}\n{tests}").passed for program in programs)
        for count in k:
            failing = comb(len(programs) - passed, count) / comb(len(programs), count)
            scores[f"pass@{count}"].append(1 - failing)
    return {name: sum(values) / len(values) for name, values in scores.items()}


def pass_at_1(references: list[str], predictions: list[str] | list[list[str]]) -> float:
    """Share of tasks whose program passes their tests."""
    programs = [[each] if isinstance(each, str) else each for each in predictions]
    return pass_at_k(references, programs, [1])["pass@1"]


def after_prompts(resps: list[list[str]], docs: list[dict[str, Any]]) -> list[list[str]]:
    """HumanEval's programs: a prompt, the beginning of a function, and what the model added."""
    return [
        [document["prompt"] + answer for answer in answers]
        for answers, document in zip(resps, docs, strict=True)
    ]
