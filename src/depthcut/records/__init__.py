"""What passes between the stages: each a frozen struct, one JSON file, readable by a person.

Blocks are half open, counted from 0: [12, 19) removes layers 12 to 18. Depth l is what
enters layer l; depth L leaves the last layer, before the final norm.
"""

from depthcut.records.base import Origin, Record, inputs_digest, read_record, write_record
from depthcut.records.bench import Bench, BenchedModel, Energy, SpeedRatio, Spread, Timing
from depthcut.records.blocks import Block, layer_counts, layer_set, layers_in_words, merged
from depthcut.records.choices import read_choice
from depthcut.records.evaluation import (
    Comparison,
    Degeneration,
    Evaluation,
    ModelEvaluation,
    TextQuality,
)
from depthcut.records.facts import (
    Estimate,
    ModelFacts,
    TextFacts,
    TextPart,
    texts_in_words,
    value_and_error,
)
from depthcut.records.healing import HealJudgement, HealRecord
from depthcut.records.own_text import OwnText
from depthcut.records.plan import (
    Alternative,
    LayerSlice,
    Plan,
    Rival,
    Stability,
    TextChoice,
    slices_without,
)
from depthcut.records.repairing import RepairedBlock, RepairRecord, RepairStep, error_words
from depthcut.records.search import Cost, FrontierPoint, Search
from depthcut.records.slicing import (
    FieldValues,
    Inspection,
    LayerGroup,
    Refusal,
    SliceRecord,
    Verification,
)
from depthcut.records.sublayers import (
    PARTS,
    LayerPart,
    Sublayer,
    removal_in_words,
    sublayers_in_words,
    sublayers_of,
    unit_set,
    units_of,
)
from depthcut.records.survey import Scope, Scores, Stopping, Survey
from depthcut.records.sweep import SWEEP_COLUMNS, Choice, JudgedText, Judgement, Sweep, Way
from depthcut.records.tasks import Average, Difference, Flip, Score, Task, TaskResults

__all__ = [
    "PARTS",
    "SWEEP_COLUMNS",
    "Alternative",
    "Average",
    "Bench",
    "BenchedModel",
    "Block",
    "Choice",
    "Comparison",
    "Cost",
    "Degeneration",
    "Difference",
    "Energy",
    "Estimate",
    "Evaluation",
    "FieldValues",
    "Flip",
    "FrontierPoint",
    "HealJudgement",
    "HealRecord",
    "Inspection",
    "JudgedText",
    "Judgement",
    "LayerGroup",
    "LayerPart",
    "LayerSlice",
    "ModelEvaluation",
    "ModelFacts",
    "Origin",
    "OwnText",
    "Plan",
    "Record",
    "Refusal",
    "RepairRecord",
    "RepairStep",
    "RepairedBlock",
    "Rival",
    "Scope",
    "Score",
    "Scores",
    "Search",
    "SliceRecord",
    "SpeedRatio",
    "Spread",
    "Stability",
    "Stopping",
    "Sublayer",
    "Survey",
    "Sweep",
    "Task",
    "TaskResults",
    "TextChoice",
    "TextFacts",
    "TextPart",
    "TextQuality",
    "Timing",
    "Verification",
    "Way",
    "error_words",
    "inputs_digest",
    "layer_counts",
    "layer_set",
    "layers_in_words",
    "merged",
    "read_choice",
    "read_record",
    "removal_in_words",
    "slices_without",
    "sublayers_in_words",
    "sublayers_of",
    "texts_in_words",
    "unit_set",
    "units_of",
    "value_and_error",
    "write_record",
]
