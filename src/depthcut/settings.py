"""What each stage is asked to do: one source of the command's help, the recipe's keys and the API.

Every field's docstring is its help text. A setting names no output path: where a result goes
is not part of what it is.
"""

import re
from typing import Literal

import msgspec

from depthcut.errors import SettingsError

Tokens = Literal["last", "all"]
Part = Literal["all", "train", "held-out"]
Objective = Literal["kl", "loss"]
DType = Literal["auto", "float32", "bfloat16", "float16"]
EngineName = Literal["transformers", "llama.cpp", "vllm"]
HealMethod = Literal["lora", "qlora", "full", "partial"]
Texts = str | tuple[str, ...]
"""One text, or several with weights: "wiki.txt", or ("wiki.txt:2", "chat.jsonl:1")."""


def size_bytes(text: str, setting: str) -> int:
    """5GB as 5,000,000,000; powers of 1000, or of 1024 as in 5GiB.

    Raises:
        SettingsError: Something else, in the setting of this name.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?\s*", text, re.IGNORECASE)
    power = "KMGT".index(match[2].upper()) + 1 if match and match[2] else 0
    size = float(match[1]) * (1024 if match[3] else 1000) ** power if match else 0
    if match is None or (match[3] and not match[2]) or size < 1:
        raise SettingsError(f"{setting} {text}: write a size such as 5GB or 500MB")
    return int(size)


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all settings: immutable, keyword-only, unknown keys refused."""


class LoadSettings(Settings, frozen=True, kw_only=True):
    """How a model is found and loaded."""

    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    device: str = "auto"
    """Where the model runs: auto, cpu, cuda, cuda:1, mps, or 'map' to spread it over all GPUs."""
    dtype: DType = "auto"
    """Compute dtype; auto: the checkpoint's own, float32 where a CPU has no fast bfloat16."""
    load_in_4bit: bool = False
    """Load the weights as NF4 by bitsandbytes."""
    trust_remote_code: bool = False
    """Allow Python code that comes with the checkpoint to run."""
    allow_pickle: bool = False
    """Read .bin weights too, by torch's weights-only loader; kept in the cache as safetensors."""


def _in_one_form(texts: Texts) -> Texts:
    """A list as a tuple, and a single text as its name."""
    if isinstance(texts, str):
        return texts
    named = tuple(texts)
    return named[0] if len(named) == 1 else named


class TextSettings(Settings, frozen=True, kw_only=True):
    """Which text is read, and how it becomes sequences of tokens."""

    text: Texts = "builtin"
    """A .txt, .md, .jsonl, .csv or .parquet file (also .gz, .zst), a folder of them, a hub data
    set, - for standard input, or builtin (English prose that Python carries). Or several, each
    with its share of the tokens: wiki.txt:2 chat.jsonl:1 (a list in a recipe)."""
    text_config: str | None = None
    """Configuration name of a hub data set (of every one, where there are several)."""
    split: str = "train"
    """Split of a hub data set (of every one)."""
    columns: tuple[str, ...] = ()
    """Columns that hold the text, joined by a blank line. For all texts that do not name their own:
    chat.jsonl[question,answer]. Default: text, content or messages, else a question and its answer,
    read as a chat: instruction (with input) and output, or prompt and completion or response."""
    packing: Literal["pack", "pad"] = "pack"
    """pack: documents joined and cut into full contexts; pad: one document a sequence."""
    part: Part = "all"
    """held-out: every eighth sequence; train: the others. So one text can serve both sides."""
    context: int = 512
    """Tokens per sequence, at most."""
    tokens: int = 65536
    """Tokens to read, at most."""

    def __post_init__(self) -> None:
        """What means the same is the same."""
        msgspec.structs.force_setattr(self, "text", _in_one_form(self.text))


class OwnTextSettings(Settings, frozen=True, kw_only=True):
    """How a model writes text of its own to be calibrated on."""

    tokens: int = 65536
    """Tokens to generate; the last batch is finished."""
    new_tokens: int = 512
    """Tokens of one text, at most."""
    batch_size: int = 32
    """Texts that are written together. It is part of what makes the same text again."""
    temperature: float = 1.0
    """1: the model's own distribution; less: the likelier tokens more often."""
    first_temperature: float | None = None
    """Temperature of the first token, from where it goes to temperature in a line: the first
    tokens decide what a text is about (arXiv:2410.17170, section 3.2). Default: the same."""
    first_tokens: int = 10
    """Tokens until --first-temperature has become temperature."""
    top_p: float = 1.0
    """Only the likeliest tokens that together have this probability; 1: all."""
    seed: int = 0
    """Seed of the sampling."""
    prompts: Texts | None = None
    """Texts whose documents the model answers or continues (of a plain file each line, of a chat
    all before its last answer); default: it begins from nothing."""
    text_config: str | None = None
    """Configuration name of a hub data set of prompts."""
    split: str = "train"
    """Split of a hub data set of prompts."""
    columns: tuple[str, ...] = ()
    """Columns that hold the prompts, joined by a blank line; default: text, content or messages."""

    def __post_init__(self) -> None:
        """What means the same is the same."""
        if self.prompts is not None:
            msgspec.structs.force_setattr(self, "prompts", _in_one_form(self.prompts))


class SurveySettings(TextSettings, frozen=True, kw_only=True):
    """How redundancy is measured."""

    criteria: tuple[str, ...] = ("angular", "block-influence", "relative-magnitude")
    """What redundancy is measured by, see docs/method.md: angular, cosine, cosine-centred,
    euclidean, cka, linear-map, pruneme, block-influence, relative-magnitude, attention-influence,
    mlp-influence, weight-magnitude, taylor, loss-block, kl-block; or all."""
    largest_block: int | None = None
    """Layers in the largest block that the costly criteria (linear-map, loss-block, kl-block)
    score; default: half of the model's."""
    batch_size: int | None = None
    """Sequences per forward pass; default: chosen from the memory at hand."""
    confidence: float | None = None
    """Stop reading once the layers to remove are settled with this confidence, such as 0.95; the
    text is read in random order. Default: read all of it."""
    settle: int | str | None = None
    """With confidence: how many layers are to be settled, 7 or a share; default: 25%."""
    settle_by: str | None = None
    """With confidence: by which criterion, at all tokens; default: angular."""
    stream: bool = False
    """Keep one layer's weights in memory at a time: for models larger than memory."""
    memory: str | None = None
    """With stream: what the process may take at most, such as 8GB; default: half of what is free,
    beyond what it has."""


class PlanSettings(Settings, frozen=True, kw_only=True):
    """Which layers go. Exactly one of drop, keep, params and remove."""

    drop: int | str | None = None
    """How many layers to remove: 7, or a share such as 25%."""
    keep: int | None = None
    """How many layers to keep."""
    params: str | None = None
    """Target size in parameters, such as 100M or 6.5B: as many layers go as are needed."""
    remove: str | None = None
    """The layers to remove by hand, both ends included: 12-18,22; or parts of layers:
    20.attention,21-23.mlp."""
    criterion: str = "angular"
    """What ranks the layers: a criterion that the survey measured, such as angular."""
    tokens: Tokens = "all"
    """Score averaged over all tokens, or at the last token of each sequence only (as the paper)."""
    protect: str | None = None
    """Layers that must stay: 0,28-29."""
    blocks: int = 1
    """At most so many separate blocks (criteria that score blocks)."""


class SearchSettings(TextSettings, frozen=True, kw_only=True):
    """How layers are chosen with the model in the loop: candidates are run and compared."""

    method: str = "floating"
    """How candidates are found: greedy, block, greedy-block, floating, beam, evolve, ising, exact,
    last or random; see docs/method.md."""
    granularity: Literal["layer", "sublayer"] = "layer"
    """What goes at once: a layer, or its attention or its MLP alone, which --zero then silences;
    drop counts these then."""
    drop: int | str = "25%"
    """How many layers to remove: 7, a share such as 25%, or a range such as 1:12."""
    objective: Objective = "kl"
    """What is least in the best: kl (divergence from the untouched model) or loss (of the text)."""
    protect: str | None = None
    """Layers that must stay: 0,28-29."""
    context: int = 256
    """Tokens per sequence, at most. Each sequence is one observation."""
    tokens: int = 16384
    """Tokens to read, at most."""
    batch_size: int | None = None
    """Sequences per forward pass; default: chosen from the memory at hand."""
    error_rate: float = 0.05
    """Probability, in each choice, that the best candidate is given up early; 0: none is."""
    minutes: float | None = None
    """Stop after so many minutes with what was found."""
    evaluations: float | None = None
    """Stop after candidates have read the text so many times."""
    seed: int = 0
    """Seed of methods that draw."""
    largest_block: int | None = None
    """Layers in the largest block that greedy-block takes at once and exact scores; default: a
    quarter of the model's."""
    beam_width: int = 4
    """Choices of each number of layers that beam goes on from."""
    shortlist: int = 16
    """Choices of each number of layers, those with the least sums, that exact, ising and evolve
    measure."""
    gradients: int = 4
    """Random directions in which ising takes gradients, for each sequence."""
    first_generation: Literal["greedy", "random"] = "greedy"
    """Where evolve begins: greedy, from the best of fewer layers and one more; random, as
    published."""
    initially_generated: int = 64
    """Random choices among which evolve finds its first parent, if it begins from random ones."""
    initial_tokens: int = 2048
    """Tokens on which it finds it."""
    generations: int | None = None
    """Generations of evolve for each number of layers."""
    offspring: int = 16
    """Mutants in each generation."""
    max_mutations: int = 3
    """Layers that change places in a mutant, at most."""
    survivors_per_selection: tuple[int, ...] = (2, 1)
    """How many are left after each step of selection; 1 after the last."""
    tokens_per_selection: tuple[int, ...] = (2048, 32768)
    """Tokens on which each step selects."""


class SweepSettings(TextSettings, frozen=True, kw_only=True):
    """Which ways of choosing layers are compared, and on what."""

    criteria: tuple[str, ...] = ("angular", "block-influence", "greedy", "last", "random:0")
    """Ways of choosing, between commas or spaces. A criterion of a survey: angular; angular/last
    takes it at the last token of each sequence, angular:2 allows two separate blocks. A search:
    greedy; greedy/loss makes least the loss, random:3 draws with seed 3. all: every criterion that
    needs no more than the states."""
    drop: int | str = "1:25%"
    """Numbers of layers to remove: a range such as 1:12, a list such as 2,4,8, a share."""
    protect: str | None = None
    """Layers that must stay: 0,28-29."""
    judge: Texts = ()
    """Texts that judge the choices, each by itself. Default: every eighth sequence of the text,
    which the ways then do not see."""
    judge_split: str = "test"
    """Split of a hub data set that judges."""
    judge_context: int = 512
    """Tokens per sequence of a text that judges, at most."""
    judge_tokens: int = 32768
    """Tokens of each text that judges, at most."""
    search_context: int = 256
    """Tokens per sequence for searches, at most; for surveys it is context."""
    search_tokens: int = 16384
    """Tokens for searches, at most; for surveys it is tokens."""
    objective: Objective = "kl"
    """What searches make least that are not told: kl or loss."""
    error_rate: float = 0.05
    """Of searches: probability, in each choice, that the best candidate is given up early."""
    minutes: float | None = None
    """Stop each search after so many minutes with what it found."""
    evaluations: float | None = None
    """Stop each search after candidates have read the text so many times."""
    time_each: bool = False
    """Survey by each criterion alone, so that each has a time of its own; else those that need the
    same share a survey, and its time."""
    batch_size: int | None = None
    """Sequences per forward pass; default: chosen from the memory at hand."""

    def __post_init__(self) -> None:
        """What means the same is the same."""
        for name in ("text", "judge"):
            msgspec.structs.force_setattr(self, name, _in_one_form(getattr(self, name)))


class RepairSettings(TextSettings, frozen=True, kw_only=True):
    """How weights are found that make up for removed layers."""

    method: str = "refit"
    """What makes up for the cut: refit (the output projections of attention and MLP, in the layer
    before each removed block and in two behind it); in the last MLP before the block alone,
    refit-mlp (its output projection), linear or linear-cosine (a linear map behind it, ReplaceMe),
    linearpatch (a factor a channel in a Hadamard basis) or scale (a factor a channel); norm (the
    gain of the norm that the layer behind the block reads by); merge (the removed layers'
    differences added to the layer before them, LaCo); see docs/method.md."""
    batch_size: int | None = None
    """Sequences per forward pass; default: chosen from the memory at hand."""
    stream: bool = False
    """Keep one layer's weights in memory at a time: for models larger than memory."""


class HealSettings(TextSettings, frozen=True, kw_only=True):
    """How the cut model is trained afterwards."""

    tokens: int = 2**30
    """Tokens of text to read, at most; steps decide how many are used."""
    method: HealMethod = "lora"
    """What is trained: lora (low-rank matrices, merged at the end), qlora (the same on a 4-bit
    base), full (all weights) or partial (the weights of --layers)."""
    layers: str | None = None
    """Which layers, between commas: all, near-cut:2 (so many on each side of every cut), last:3,
    10-13, and head for the output head. Default: all; of partial: last:3,head."""
    modules: Literal["all", "attention", "mlp"] = "all"
    """On which linear layers of a layer the low-rank matrices are put."""
    teacher: str | None = None
    """The model whose predictions are the target, usually the one before the cut: a source, or
    parent for the one that the folder's plan.json names. Default: none, the text is the target."""
    loss: str | None = None
    """What is made small, weights behind colons: next-token (the text), kl (the distance to the
    teacher's predictions), hidden (to its states at the same depths), balance (how unevenly experts
    are used), such as kl:1,next-token:0.1. Default: kl with a teacher, else next-token."""
    temperature: float = 1.0
    """Of both distributions in kl; above 1, unlikely tokens count more."""
    teacher_kept: int = 0
    """The teacher reads the text once before, and its predictions on so many tokens at each place
    are kept in a file of the cache, such as 64; 0: it runs beside the training."""
    answers_only: bool = False
    """Of chats, only what the assistant says counts."""
    steps: int = 200
    """Optimizer steps."""
    batch_size: int = 8
    """Sequences per optimizer step, on all devices together."""
    micro_batch_size: int | None = None
    """Sequences per forward pass on each device; default: as many as fit."""
    recompute: bool = False
    """Compute activations again on the way back instead of keeping them, which takes less memory
    and a third more time; where not even one sequence fits, it is done unasked."""
    learning_rate: float | None = None
    """Peak learning rate, after warm-up. Default: 1e-3 for lora and qlora, 2e-4 for whole
    weights."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate goes from its peak: to zero along a cosine or a line, or not at all."""
    warmup_steps: int = 10
    """Steps over which the learning rate rises, at most half of all."""
    weight_decay: float = 0.0
    """Weight decay of the optimizer."""
    clip: float = 1.0
    """Longer gradients are cut to this norm; 0: never."""
    optimizer: str = "adamw_torch"
    """Any that transformers' Trainer knows, such as adamw_bnb_8bit."""
    rank: int = 32
    """Rank of the LoRA matrices."""
    alpha: float = 64.0
    """LoRA scale: the update is multiplied by alpha / rank."""
    dropout: float = 0.0
    """Dropout before the LoRA matrices."""
    keep_adapter: bool = False
    """Also write the adapter itself, in the folder adapter beside the merged weights."""
    held_out_tokens: int = 8192
    """Tokens of the text that are not trained on, at most an eighth of it, on which the model is
    judged on the way, and the best one kept; 0: none, the last one is kept."""
    eval_every: int | None = None
    """Steps between two judgements. Default: a tenth of all."""
    patience: int = 0
    """Stop after so many judgements without a better one; 0: never."""
    save_every: int | None = None
    """Steps between two checkpoints, from which the same command goes on after a kill; there is one
    after ten minutes at most. Default: at every judgement."""
    report_to: str = "none"
    """Also log to tensorboard, wandb or another that transformers' Trainer knows."""
    seed: int = 0
    """Seed of the initialisation and of the order of the sequences."""


class EvaluateSettings(TextSettings, frozen=True, kw_only=True):
    """What is measured of each model."""

    tokens: int = 32768
    """Tokens to judge on, at most; 0: no text."""
    batch_size: int | None = None
    """Sequences per forward pass; default: chosen from the memory at hand."""
    prompts: str | None = None
    """A file with one prompt a line; default: ten prompts that depthcut brings."""
    new_tokens: int = 64
    """Tokens generated for each prompt; 0: no prompts."""
    tasks: tuple[str, ...] = ()
    """Benchmarks, between commas or spaces: any task or group of lm-eval (arc_easy, mmlu), with
    its number of examples behind a colon (mmlu:5); or a set of them: quick, standard, paper,
    generation, multilingual, see docs/evaluate.md."""
    include: tuple[str, ...] = ()
    """Folders with tasks of your own, as YAML files of lm-eval."""
    data: str | None = None
    """A folder with the benchmarks' files, such as arc_easy/test.jsonl: the tasks for which
    depthcut knows them read these, and nothing from the hub."""
    limit: int | None = None
    """Questions of each task, at most, drawn by the seed. Default: all."""
    seed: int = 0
    """Seed of the questions that --limit draws; examples before them are drawn as lm-eval does."""
    chat_template: bool = False
    """Put the questions through the model's chat template."""
    backend: Literal["transformers", "vllm"] = "transformers"
    """What answers the questions of tasks."""


class BenchSettings(Settings, frozen=True, kw_only=True):
    """How speed is measured, see docs/bench.md."""

    engine: EngineName = "transformers"
    """What runs the models: transformers; llama.cpp (of .gguf files); vllm (on a GPU)."""
    prompt_tokens: int = 512
    """Length of the prompts."""
    new_tokens: int = 32
    """Tokens written after each prompt; the first is read off the prompt."""
    batch_sizes: tuple[int, ...] = (1,)
    """How many sequences run at once, between commas or spaces: 1,8,32; each is measured."""
    rounds: int = 5
    """Rounds that count, the models in turn; one more warms up."""
    threads: int | None = None
    """Threads that the engine computes with on a CPU; default: as many as it takes."""


class Recipe(Settings, frozen=True, kw_only=True):
    """All stages in order: what depthcut run does."""

    model: str = "smollm2"
    """smollm2 (embedded), a local folder, a hub id, or a .gguf file."""
    load: LoadSettings = LoadSettings()
    survey: SurveySettings = SurveySettings(part="train")
    search: SearchSettings | None = None
    """Left out: the plan is chosen by the survey's scores. Else the search finds the layers, and
    the survey is for the report; its drop must hold the plan's."""
    plan: PlanSettings = PlanSettings(drop="25%")
    repair: RepairSettings | None = None
    """Left out: no weights are solved for that make up for the cut."""
    heal: HealSettings | None = None
    """Left out: no training after the cut."""
    evaluate: EvaluateSettings = EvaluateSettings(part="held-out")
    bench: BenchSettings | None = BenchSettings()
    """null: speed is not measured."""
