"""depthcut: make a pretrained language model shallower.

    import depthcut
    survey = depthcut.survey("smollm2")
    plan = depthcut.plan(survey, depthcut.PlanSettings(drop=5))
    depthcut.slice("smollm2", plan, "pruned")

Importing it is light: torch and transformers are loaded when a stage first needs them.
"""

from depthcut import errors
from depthcut.api import (
    bench,
    evaluate,
    generate,
    generate_text,
    heal,
    inspect,
    plan,
    repair,
    report,
    search,
    slice,
    survey,
    verify,
)
from depthcut.errors import DepthcutError
from depthcut.pipeline import run
from depthcut.records import (
    Bench,
    Evaluation,
    HealRecord,
    Inspection,
    OwnText,
    Plan,
    RepairRecord,
    Search,
    SliceRecord,
    Survey,
    Sweep,
    Verification,
    read_record,
    write_record,
)
from depthcut.settings import (
    BenchSettings,
    EvaluateSettings,
    HealSettings,
    LoadSettings,
    OwnTextSettings,
    PlanSettings,
    Recipe,
    RepairSettings,
    SearchSettings,
    SurveySettings,
    SweepSettings,
)
from depthcut.sweeping import sweep
from depthcut.version import __version__

__all__ = [
    "Bench",
    "BenchSettings",
    "DepthcutError",
    "EvaluateSettings",
    "Evaluation",
    "HealRecord",
    "HealSettings",
    "Inspection",
    "LoadSettings",
    "OwnText",
    "OwnTextSettings",
    "Plan",
    "PlanSettings",
    "Recipe",
    "RepairRecord",
    "RepairSettings",
    "Search",
    "SearchSettings",
    "SliceRecord",
    "Survey",
    "SurveySettings",
    "Sweep",
    "SweepSettings",
    "Verification",
    "__version__",
    "bench",
    "errors",
    "evaluate",
    "generate",
    "generate_text",
    "heal",
    "inspect",
    "plan",
    "read_record",
    "repair",
    "report",
    "run",
    "search",
    "slice",
    "survey",
    "sweep",
    "verify",
    "write_record",
]
