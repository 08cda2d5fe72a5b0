"""What models score on benchmark tasks: each beside the first, item by item."""

from depthcut.records.base import Record
from depthcut.records.facts import Estimate


class Task(Record, frozen=True, kw_only=True):
    """One task as it was run: a benchmark, or a group of them that counts as one."""

    name: str
    """As lm-eval names it: arc_easy, mmlu_anatomy."""
    group: str = ""
    """The group that it counts in; empty: it stands for itself."""
    asked: str
    """What of --tasks it came by: arc_easy, mmlu:5."""
    source: str = ""
    """The data set of the hub, or the local file; empty for a group."""
    version: str = ""
    """Of the task, as its author counts."""
    output: str = ""
    """multiple_choice, loglikelihood, loglikelihood_rolling or generate_until; empty: a group."""
    shots: int
    """Examples shown before each question."""
    items: int
    """Questions that were put."""
    items_in_all: int
    """Questions that there are."""
    metric: str
    """The one that stands for the task, see `Score.metric`."""
    higher_is_better: bool = True
    chance: float | None = None
    """What guessing scores by that metric; None: there is no such level."""


class Score(Record, frozen=True, kw_only=True):
    """One metric of one model on one task, as lm-eval counts it."""

    model: str
    """Name of the model in the evaluation."""
    task: str
    metric: str
    """Metric and, where the answers are filtered in several ways, the filter: acc_norm,
    exact_match/strict-match."""
    value: float
    stderr: float | None
    """Over items; None: what it is a mean of is not known."""


class Flip(Record, frozen=True, kw_only=True):
    """One item that one model got right and the other not."""

    item: int
    """Number in the task, from 0."""
    gained: bool
    """Right now, wrong before; else the other way round."""
    question: str
    right: str
    before: str
    """What the first model answers."""
    after: str


class Difference(Record, frozen=True, kw_only=True):
    """One model against the first on the same items of a task, by the task's own metric."""

    model: str
    task: str
    difference: Estimate
    """This model minus the first; the error is that of the paired differences over items."""
    p_value: float | None
    """That chance alone tells them apart so far: McNemar's exact test, two-sided, where an item is
    right or wrong; else by the normal distribution; None: no error is known."""
    gained: int
    """Items right here and wrong in the first model."""
    lost: int
    above_chance: Estimate | None
    """Share of the first model's score above chance that is left; None: no chance level, or the
    first model does not beat it."""
    flips: tuple[Flip, ...] = ()
    """Some of the items that changed, lost ones first."""


class Average(Record, frozen=True, kw_only=True):
    """Mean over tasks that count higher as better from 0 to 1, each with the same weight."""

    model: str
    tasks: tuple[str, ...]
    value: Estimate
    difference: Estimate | None
    """This model minus the first, paired; None for the first."""
    p_value: float | None
    above_chance: Estimate | None
    """Of the means: what is left of the first model's mean above the mean chance."""


class TaskResults(Record, frozen=True, kw_only=True):
    """Every model on every task."""

    harness: str
    """Who put the questions: lm-eval and its version."""
    tasks: tuple[Task, ...]
    """In the order asked for, groups before what counts in them."""
    scores: tuple[Score, ...]
    differences: tuple[Difference, ...]
    """For the second model and those after it."""
    averages: tuple[Average, ...]
    """For each model; none where fewer than two tasks have such a metric."""
    seconds: dict[str, float]
    """What answering took each model when it was done; what was found from before counts too."""
    samples: str = ""
    """File beside the record with every item; empty: it was not written."""

    @property
    def chief(self) -> tuple[Task, ...]:
        """The tasks that stand for themselves."""
        return tuple(each for each in self.tasks if not each.group)

    def score(self, model: str, task: Task, metric: str = "") -> Score | None:
        """One model's score on a task; by default by the metric that stands for it."""
        wanted = metric or task.metric
        for each in self.scores:
            if (each.model, each.task, each.metric) == (model, task.name, wanted):
                return each
        return None

    def difference(self, model: str, task: str) -> Difference | None:
        """One model against the first on a task."""
        for each in self.differences:
            if (each.model, each.task) == (model, task):
                return each
        return None

    def average(self, model: str) -> Average | None:
        """One model's mean over the tasks."""
        return next((each for each in self.averages if each.model == model), None)
