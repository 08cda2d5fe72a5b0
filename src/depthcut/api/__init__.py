"""The Python functions: each resolves its sources, runs one stage, and writes where it is told.

The command line and the pipeline call these same functions.
"""

from depthcut.api.choosing import plan, search, survey
from depthcut.api.cutting import inspect, slice, verify
from depthcut.api.inputs import facts
from depthcut.api.judging import bench, evaluate, report
from depthcut.api.recovering import heal, repair
from depthcut.api.writing import generate, generate_text

__all__ = [
    "bench",
    "evaluate",
    "facts",
    "generate",
    "generate_text",
    "heal",
    "inspect",
    "plan",
    "repair",
    "report",
    "search",
    "slice",
    "survey",
    "verify",
]
