"""Repairs against a plain least-squares solve, row by row, of states that transformers gives."""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from msgspec.structs import replace
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from depthcut.errors import ArchitectureError, OutputError, PlanError, SettingsError, TextError
from depthcut.model.loading import find_layers, from_memory, load
from depthcut.records import Plan, RepairRecord, RepairStep, Sublayer, read_record
from depthcut.repairing import solving
from depthcut.repairing.changes import Seen
from depthcut.repairing.hadamard import hadamard
from depthcut.repairing.inputs import repair_inputs
from depthcut.repairing.methods import METHODS, Method, Solution, to_directions
from depthcut.repairing.repair import repair_checkpoint
from depthcut.settings import RepairSettings
from depthcut.slicing import slice_checkpoint
from tests.every_type import build
from tests.repairing.repairs import LOAD, repaired, saved, some_text
from tests.slices import arranged, lacking, logits, plan_without
from tests.tiny import build_tiny, save_tiny, tiny_tokenizer

ENDS = {
    "gpt2": ("attn.c_proj", "mlp.c_proj"),
    "opt": ("self_attn.out_proj", "fc2"),
    "gpt_neox": ("attention.dense", "mlp.dense_4h_to_h"),
}
"""Of attention and MLP."""


class Rows(NamedTuple):
    """All tokens of some sequences, a row each, float64."""

    given: Tensor
    """What the projection takes; a 1 behind it if it has a bias."""
    added_to: Tensor
    target: Tensor

    @property
    def weights(self) -> Tensor:
        return self.target.norm(dim=1, keepdim=True) ** -0.5


def end_of(model: PreTrainedModel, layer: int, part: int = 1) -> torch.nn.Module:
    ends = ENDS.get(model.config.model_type, ("self_attn.o_proj", "mlp.down_proj"))
    return find_layers(model)[layer].get_submodule(ends[part])


def matrix_of(model: PreTrainedModel, layer: int, parts: tuple[int, ...] = (1,)) -> Tensor:
    """(hidden, inner) side by side, with the bias as last column of each."""
    found = []
    for part in parts:
        end = end_of(model, layer, part)
        weight = end.weight.detach()
        found.append(weight.T if model.config.model_type == "gpt2" else weight)
        if end.bias is not None:
            found.append(end.bias.detach()[:, None])
    return torch.cat(found, dim=1)


def set_matrix(model: PreTrainedModel, layer: int, parts: tuple[int, ...], matrix: Tensor) -> None:
    for part in parts:
        end = end_of(model, layer, part)
        transposed = model.config.model_type == "gpt2"
        for own in (end.weight.T if transposed else end.weight, end.bias):
            if own is not None:
                columns = own.shape[1] if own.ndim == 2 else 1
                with torch.no_grad():
                    own.copy_(matrix[:, :columns].reshape(own.shape))
                matrix = matrix[:, columns:]


def rows_of(
    whole: PreTrainedModel,
    cut: PreTrainedModel,
    depth: int,
    layer: int,
    *,
    held: bool,
    parts: tuple[int, ...] = (1,),
) -> Rows:
    """States by hooks, one sequence at a time; `layer` is counted in the cut model."""
    caught: dict[object, Tensor] = {}

    def keep(name: object, state: object) -> None:
        first = state if isinstance(state, Tensor) else state[0]
        caught[name] = first.reshape(-1, first.shape[-1]).double()

    ends = [end_of(cut, layer, part) for part in parts]
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    hooks = [
        end.register_forward_hook(
            lambda each, args, out: keep((each, "a"), args[0]) or keep((each, "y"), out)
        )
        for end in ends
    ]
    hooks += [
        find_layers(cut)[layer].register_forward_hook(lambda _, __, out: keep("x", out)),
        find_layers(whole)[depth - 1].register_forward_hook(lambda _, __, out: keep("h", out)),
    ]
    for number, ids in enumerate(some_text().sequences):
        if (number % 8 == 7) is not held:
            continue
        with torch.no_grad():
            whole(input_ids=ids[None], use_cache=False)
            cut(input_ids=ids[None], use_cache=False)
        given, added_to = [], caught["x"]
        for end in ends:
            given.append(caught[end, "a"])
            if end.bias is not None:
                given.append(torch.ones(len(given[0]), 1))
            added_to = added_to - caught[end, "y"]
        found.append((torch.cat(given, dim=1), added_to, caught["h"]))
    for hook in hooks:
        hook.remove()
    return Rows(*(torch.cat(each) for each in zip(*found, strict=True)))


def solved_plainly(rows: Rows, before: Tensor, method: str, ridge: float | None) -> Tensor:
    """The projection by torch.linalg.lstsq on all rows, no sums."""

    def least(left: Tensor, right: Tensor) -> Tensor:
        return torch.linalg.lstsq(left, right, driver="gelsd").solution

    given, wanted = rows.weights * rows.given, rows.weights * (rows.target - rows.added_to)
    if method.startswith("refit"):
        assert ridge is not None
        root = (ridge * given.square().sum(dim=0).mean()).sqrt()
        more = root * torch.eye(given.shape[1], dtype=given.dtype)
        return least(torch.cat([given, more]), torch.cat([wanted, more @ before.T])).T
    made = given @ before.T
    if method == "linear":
        return least(made, wanted).T @ before
    if method == "linearpatch":
        turn = hadamard(len(before))
        made, wanted, before = made @ turn.T, wanted @ turn.T, turn @ before
    factors = [
        least(mine[:, None], its[:, None]).item()
        for mine, its in zip(made.T, wanted.T, strict=True)
    ]
    scaled = torch.tensor(factors, dtype=before.dtype)[:, None] * before
    return turn.T @ scaled if method == "linearpatch" else scaled


def off(rows: Rows, matrix: Tensor) -> float:
    errors = rows.given @ matrix.T + rows.added_to - rows.target
    lengths = rows.target.norm(dim=1)
    return ((errors.square().sum(dim=1) / lengths).sum() / lengths.sum()).sqrt().item()


def check(model_type: str, method: str, removed: tuple[int, ...], tmp_path: Path) -> RepairRecord:
    """Every step of a repair against the plain solve, step by step in a model of its own."""
    folder = saved(model_type, tmp_path / "model")
    plan = plan_without(folder, removed)
    loaded = load(folder, LOAD)
    record = repaired(loaded, plan, tmp_path / "out", method=method, force=True)
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float64)
    own = lacking(loaded.model, removed)
    assert [(block.start, block.stop) for block in record.blocks] == list(plan.removed)
    for block in record.blocks:
        for step in block.steps:
            depth = block.stop if step.layer < block.start else step.layer + 1
            check_step(loaded.model, own, plan, step, depth, method)
            layer = plan.kept_layers.index(step.layer)
            last = step is [each for each in block.steps if each.layer == step.layer][-1]
            for part in (0, 1) if last else ():
                ours, its = (matrix_of(model, layer, (part,)) for model in (own, written))
                torch.testing.assert_close(its, ours, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(logits(written), logits(own), rtol=1e-5, atol=1e-5)
    return record


def check_step(
    whole: PreTrainedModel,
    own: PreTrainedModel,
    plan: Plan,
    step: RepairStep,
    depth: int,
    method: str,
) -> None:
    layer = plan.kept_layers.index(step.layer)
    names = [name.rpartition(".")[0] for name in step.tensors]
    parts = tuple(part for part in (0, 1) if any(name.endswith(_end(own, part)) for name in names))
    fitted, held_out = (
        rows_of(whole, own, depth, layer, held=held, parts=parts) for held in (False, True)
    )
    before = matrix_of(own, layer, parts)
    expected = solved_plainly(fitted, before, method, step.ridge)
    assert (expected - before).abs().max() > 1e-4
    assert step.error_before == pytest.approx(off(held_out, before), rel=1e-6)
    set_matrix(own, layer, parts, expected)
    after = rows_of(whole, own, depth, layer, held=True, parts=parts)
    assert step.error_after == pytest.approx(off(after, expected), rel=1e-5)


def _end(model: PreTrainedModel, part: int) -> str:
    return ENDS.get(model.config.model_type, ("self_attn.o_proj", "mlp.down_proj"))[part]


@pytest.mark.parametrize("method", sorted(METHODS.keys() - {"linear-cosine", "norm", "merge"}))
@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_a_repair_is_the_plain_least_squares_solve(
    model_type: str, method: str, tmp_path: Path
) -> None:
    check(model_type, method, (2, 3), tmp_path)


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_a_map_by_cosines_is_the_plain_solve_again_and_again(
    model_type: str, tmp_path: Path
) -> None:
    folder = saved(model_type, tmp_path / "model")
    plan, loaded = plan_without(folder, (2, 3)), load(folder, LOAD)
    (block,) = repaired(loaded, plan, tmp_path / "out", method="linear-cosine").blocks
    (step,) = block.steps
    own = lacking(loaded.model, (2, 3))
    fitted, held_out = (rows_of(loaded.model, own, 4, 1, held=held) for held in (False, True))
    matrix = matrix_of(own, 1)
    assert step.error_before == pytest.approx(off_course(held_out, matrix), rel=1e-6)
    rounds = []
    for _ in range(4):
        goal, root = course(fitted, matrix)
        made = root * (fitted.given @ matrix.T)
        wanted = root * (goal - fitted.added_to)
        matrix = torch.linalg.lstsq(made, wanted, driver="gelsd").solution.T @ matrix
        rounds.append(matrix)
    best = min(rounds, key=lambda each: off_course(held_out, each))
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float64)
    torch.testing.assert_close(matrix_of(written, 1), best, rtol=1e-5, atol=1e-5)
    assert step.error_after == pytest.approx(off_course(held_out, best), rel=1e-5)
    linear = solved_plainly(fitted, matrix_of(own, 1), "linear", None)
    assert cosine(fitted, matrix) > cosine(fitted, linear) > cosine(fitted, matrix_of(own, 1))


def course(rows: Rows, matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Where states should go to turn towards the target, and the root of their weights."""
    now = rows.given @ matrix.T + rows.added_to
    cosines = torch.nn.functional.cosine_similarity(now, rows.target)[:, None].clamp(min=0.1)
    lengths = now.norm(dim=1, keepdim=True)
    return torch.nn.functional.normalize(rows.target) * lengths / cosines, cosines.sqrt() / lengths


def off_course(rows: Rows, matrix: Tensor) -> float:
    goal, root = course(rows, matrix)
    now = rows.given @ matrix.T + rows.added_to
    return ((root * (now - goal)).norm() / (root * goal).norm()).item()


def cosine(rows: Rows, matrix: Tensor) -> float:
    now = rows.given @ matrix.T + rows.added_to
    return torch.nn.functional.cosine_similarity(now, rows.target).mean().item()


def test_going_towards_directions_turns_as_the_cosine_does() -> None:
    generator = torch.Generator().manual_seed(0)
    now, noise = torch.randn(2, 30, 8, generator=generator, dtype=torch.float64)
    target = 5 * (now + 0.3 * noise)
    now.requires_grad_()
    seen = Seen(now.new_empty(30, 0), now.detach(), now.detach(), target)
    goal, weights = to_directions(seen)
    (weights * (now - goal).square()).sum().backward()
    mine, now.grad = now.grad, None
    (1 - torch.nn.functional.cosine_similarity(now, target)).sum().backward()
    torch.testing.assert_close(mine, 2 * now.grad)


@pytest.mark.parametrize("model_type", ["qwen3", "mistral"])
def test_refits_of_other_families_are_the_plain_solve(model_type: str, tmp_path: Path) -> None:
    check(model_type, "refit", (2, 3), tmp_path)


@pytest.mark.parametrize("model_type", ["opt", "gpt_neox"])
def test_flattened_states_and_parallel_residuals_are_repaired(
    model_type: str, tmp_path: Path
) -> None:
    check(model_type, "refit", (2, 3), tmp_path)


@pytest.mark.parametrize("method", ["refit", "linear"])
def test_a_later_block_is_repaired_on_what_the_repaired_model_gives(
    method: str, tmp_path: Path
) -> None:
    record = check("gpt2", method, (1, 3, 5), tmp_path)
    layers = [step.layer for block in record.blocks for step in block.steps]
    assert layers == ([0, 0, 2, 2, 4, 4] if method == "refit" else [0, 2, 4])


def test_the_ridge_is_the_best_of_all_on_held_out_text(tmp_path: Path) -> None:
    folder = saved("llama", tmp_path / "model")
    plan, loaded = plan_without(folder, (2, 3)), load(folder, LOAD)
    (block,) = repaired(loaded, plan, tmp_path / "out", method="refit-mlp").blocks
    (step,) = block.steps
    cut = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float64)
    fitted, held_out = (rows_of(loaded.model, cut, 4, 1, held=h) for h in (False, True))
    before = matrix_of(loaded.model, 1)
    ridges = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
    errors = {
        ridge: off(held_out, solved_plainly(fitted, before, "refit", ridge)) for ridge in ridges
    }
    assert step.ridge == min(errors, key=lambda ridge: errors[ridge])
    given = fitted.weights * fitted.given
    values = torch.linalg.eigvalsh(given.T @ given)
    assert step.ridge is not None
    shift = step.ridge * values.mean()
    condition = ((values[-1] + shift) / (values[0] + shift)).item()
    assert step.condition == pytest.approx(condition, rel=1e-6)


def test_the_folder_loads_like_the_cut_one_and_holds_nothing_else_that_is_new(
    tmp_path: Path,
) -> None:
    folder = saved("llama", tmp_path / "model", torch.float32)
    parent = {path.name: path.read_bytes() for path in folder.iterdir()}
    plan, loaded = plan_without(folder, (2, 3)), load(folder, LOAD)
    weights = {name: weight.clone() for name, weight in loaded.model.state_dict().items()}
    record = repaired(loaded, plan, tmp_path / "out")
    slice_checkpoint(folder, plan, tmp_path / "cut")

    cut, mended = (
        {name: t for file in path.glob("*.safetensors") for name, t in load_file(file).items()}
        for path in (tmp_path / "cut", tmp_path / "out")
    )
    changed = [name for name in cut if not cut[name].equal(mended[name])]
    assert cut.keys() == mended.keys()
    ends = ("mlp.down_proj.weight", "self_attn.o_proj.weight")
    assert changed == [f"model.layers.{layer}.{end}" for layer in (1, 2, 3) for end in ends]
    assert changed == sorted(record.blocks[0].tensors)
    names = {path.name for path in (tmp_path / "cut").iterdir()}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names

    in_memory = lacking(loaded.model, (2, 3))
    with torch.no_grad():
        for name in changed:
            in_memory.get_parameter(name).copy_(mended[name])
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert logits(plain).equal(logits(in_memory))

    assert {path.name: path.read_bytes() for path in folder.iterdir()} == parent
    assert all(weights[name].equal(now) for name, now in loaded.model.state_dict().items())
    assert read_record(tmp_path / "out" / "depthcut.json", RepairRecord) == record
    assert read_record(tmp_path / "out" / "plan.json", Plan) == plan
    assert record.origin.inputs == repair_inputs(
        plan, loaded.facts.digest, "text", RepairSettings(), LOAD
    )
    assert record.result.layers == 4
    assert (record.fitted_tokens, record.held_out_tokens) == (777, 117)
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"behind layer 4 from {record.blocks[0].behind[0].error_before:.4f}" in card
    assert "`model.layers.1.mlp.down_proj.weight`" in card
    assert "bit for bit" not in card


def test_shared_experts_are_repaired_in_the_file(tmp_path: Path) -> None:
    build("deepseek_v3").eval().save_pretrained(tmp_path / "model")
    tiny_tokenizer(tmp_path / "model")
    loaded = load(tmp_path / "model", LOAD)
    last = len(loaded.layers) - 1
    repaired(loaded, plan_without(tmp_path / "model", (last,)), tmp_path / "out", force=True)
    before, after = (
        each.model.get_parameter(f"model.layers.{last - 1}.mlp.shared_experts.down_proj.weight")
        for each in (loaded, load(tmp_path / "out", LOAD))  # no tensor is missing
    )
    assert not before.equal(after)


def test_checkpoints_of_the_bare_decoder_are_repaired(tmp_path: Path) -> None:
    folder = save_tiny(build_tiny("gpt2"), tmp_path / "model")
    file = folder / "model.safetensors"
    tensors = {name.removeprefix("transformer."): t for name, t in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    record = repaired(load(folder, LOAD), plan_without(folder, (2,)), tmp_path / "out")
    assert record.blocks[0].first[-1].tensors == ("h.1.mlp.c_proj.weight", "h.1.mlp.c_proj.bias")
    assert not load_file(tmp_path / "out" / "model.safetensors")["h.1.mlp.c_proj.weight"].equal(
        tensors["h.1.mlp.c_proj.weight"]
    )


def test_half_precision_comes_near_the_exact_repair(tmp_path: Path) -> None:
    folder = saved("llama", tmp_path / "model", torch.bfloat16)
    plan = plan_without(folder, (1, 4, 5))
    record = repaired(load(folder, LOAD), plan, tmp_path / "half")
    wide = load(folder, replace(LOAD, dtype="float32"))
    exact = repaired(wide, plan, tmp_path / "exact")
    for half, other in zip(record.blocks, exact.blocks, strict=True):
        assert half.error_after < 0.98 * half.error_before
        assert half.error_after == pytest.approx(other.error_after, rel=0.02)
    for path in (tmp_path / "half", tmp_path / "exact"):
        for file in path.glob("*.safetensors"):
            assert {tensor.dtype for tensor in load_file(file).values()} == {torch.bfloat16}


def test_the_size_of_batches_does_not_matter(tmp_path: Path) -> None:
    folder = saved("mistral", tmp_path / "model")
    plan, loaded = plan_without(folder, (1, 3)), load(folder, LOAD)
    one, five = (
        repaired(loaded, plan, tmp_path / str(size), batch_size=size).blocks for size in (1, 5)
    )
    for first, second in zip(one, five, strict=True):
        assert first.error_after == pytest.approx(second.error_after, rel=1e-9)


@pytest.mark.parametrize(
    ("model_type", "method"),
    [
        *[(model_type, "refit") for model_type in ("llama", "gpt2", "mixtral")],
        *[("llama", method) for method in ("linear-cosine", "norm", "merge")],
    ],
)
def test_a_model_that_is_read_layer_by_layer_is_repaired_alike(
    model_type: str, method: str, tmp_path: Path
) -> None:
    folder = saved(model_type, tmp_path / "model", torch.float32)
    loaded, plan = load(folder, LOAD), plan_without(folder, (2, 4))
    records = [
        repaired(
            loaded, plan, tmp_path / name, method=method, streamed=name == "streamed", force=True
        )
        for name in ("whole", "streamed")
    ]
    assert records[0].blocks == records[1].blocks
    assert len(records[0].blocks) == 2
    whole, streamed = (
        {path.name: path.read_bytes() for path in (tmp_path / name).glob("*.safetensors")}
        for name in ("whole", "streamed")
    )
    assert whole == streamed


@pytest.mark.parametrize("method", METHODS)
def test_progress_ends_at_its_end(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[float] = []

    @contextlib.contextmanager
    def progress(_: str, total: float) -> Iterator[Callable[[float], None]]:
        told.append(-total)
        yield told.append

    monkeypatch.setattr(solving, "progress", progress)
    folder = saved("llama", tmp_path / "model", torch.float32)
    plan = plan_without(folder, (1, 3))
    repaired(load(folder, LOAD), plan, tmp_path / "out", method=method, force=True)
    assert sum(told) == pytest.approx(0.0, abs=1e-6)


def test_a_repair_that_does_not_help_is_refused_unless_forced(tmp_path: Path) -> None:
    folder = saved("llama", tmp_path / "model", torch.float32)
    plan, loaded = plan_without(folder, (2, 3)), load(folder, LOAD)
    weights = {name: weight.clone() for name, weight in loaded.model.state_dict().items()}
    few = some_text(8, 8)  # fewer tokens than a linear map has rows: it fits them and no others
    with pytest.raises(SettingsError, match=r"linear does not make up for layers 2–3.*--force"):
        repaired(loaded, plan, tmp_path / "out", method="linear", text=lambda: few)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert all(weights[name].equal(now) for name, now in loaded.model.state_dict().items())
    (block,) = repaired(
        loaded, plan, tmp_path / "out", method="linear", text=lambda: few, force=True
    ).blocks
    assert block.error_after > block.error_before


def test_a_layer_behind_a_block_stays_as_it_was_where_a_solve_does_not_help(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = Method(lambda _, before: iter([Solution(9 * before, None, 1.0)]), behind=1)
    monkeypatch.setitem(METHODS, "far", far)
    folder = saved("llama", tmp_path / "model", torch.float32)
    plan, loaded = plan_without(folder, (2, 3)), load(folder, LOAD)
    (block,) = repaired(loaded, plan, tmp_path / "out", method="far", force=True).blocks
    assert (len(block.first), block.behind) == (1, ())
    cut = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert matrix_of(cut, 2).equal(matrix_of(loaded.model, 4))
    assert not matrix_of(cut, 1).equal(matrix_of(loaded.model, 1))


def test_of_a_mixture_the_attention_is_solved_for_and_the_outcome_judged(tmp_path: Path) -> None:
    folder = saved("mixtral", tmp_path / "model", torch.float32)
    plan, loaded = plan_without(folder, (2, 3)), load(folder, LOAD)
    (block,) = repaired(loaded, plan, tmp_path / "out", force=True).blocks
    cut = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    (step,) = block.first
    assert step.tensors == ("model.layers.1.self_attn.o_proj.weight",)
    # What the experts add depends on the attention: the error is that of the model as it is now.
    held_out = rows_of(loaded.model, cut, 4, 1, held=True, parts=(0,))
    after = off(held_out, matrix_of(cut, 1, (0,)).double())
    assert step.error_after == pytest.approx(after, rel=1e-5)
    assert not matrix_of(cut, 1, (0,)).equal(matrix_of(loaded.model, 1, (0,)))


@pytest.mark.parametrize("model_type", ["gemma2", "gemma3_text"])
def test_layers_that_do_not_simply_add_a_projection_are_refused(
    model_type: str, tmp_path: Path
) -> None:
    folder = saved(model_type, tmp_path / "model", torch.float32)
    plan = plan_without(folder, (2, 3))
    unread = partial(pytest.fail, "the text was read")
    with pytest.raises(ArchitectureError, match=r"layer 1 of .* ends neither .*heal"):
        repaired(load(folder, LOAD), plan, tmp_path / "out", text=unread)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("width", [1, 2, 12, 20, 28, 48, 576, 896])
def test_hadamard_matrices_are_orthogonal_and_even(width: int) -> None:
    matrix = hadamard(width)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(width, dtype=torch.float64))
    torch.testing.assert_close(matrix.abs(), torch.full_like(matrix, width**-0.5))


def test_a_width_without_a_hadamard_matrix_is_refused_before_the_text_is_read() -> None:
    with pytest.raises(ArchitectureError, match="no Hadamard matrix of width 44"):
        hadamard(44)
    refuse = METHODS["linearpatch"].refuse_width
    assert refuse is hadamard


def test_a_plan_without_a_place_to_repair_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    loaded = load(tiny_llama, LOAD)
    plan = plan_without(tiny_llama, (2, 3))
    silenced = replace(plan, zeroed=(Sublayer(layer=1, part="mlp"),))
    for wrong, error, message in (
        (arranged(plan, (0, 3), (2, 6)), PlanError, "repeats or moves layers"),
        (silenced, PlanError, "takes parts of layers that stay"),
        (plan_without(tiny_llama, (0, 1)), ArchitectureError, "keep layer 0"),
    ):
        with pytest.raises(error, match=message):
            repaired(loaded, wrong, tmp_path / "out")
    with pytest.raises(SettingsError, match=r"did you mean refit\?"):
        repaired(loaded, plan, tmp_path / "out", method="refitt")
    with pytest.raises(TextError, match="7 sequences of text: at least 8"):
        repaired(loaded, plan, tmp_path / "out", text=lambda: some_text(7))
    with pytest.raises(OutputError, match="exists already"):
        repaired(loaded, plan, tmp_path)
    in_memory = from_memory(loaded.model, None)
    with pytest.raises(SettingsError, match="give its checkpoint's folder"):
        repair_checkpoint(
            in_memory,
            plan,
            lambda _: some_text(),
            RepairSettings(),
            load=LOAD,
            out=tmp_path / "o",
            cut=print,
        )
    assert list(tmp_path.iterdir()) == []


def test_weights_and_states_that_are_no_plain_numbers_are_refused(
    tiny_llama: Path, tmp_path: Path
) -> None:
    plan, loaded = plan_without(tiny_llama, (2, 3)), load(tiny_llama, LOAD)
    with torch.no_grad():
        loaded.model.get_input_embeddings().weight[50] = torch.inf
    with pytest.raises(SettingsError, match=r"layers 2–3 .* are no numbers .* --dtype float32"):
        repaired(loaded, plan, tmp_path / "out")
    loaded.model.is_quantized = True
    with pytest.raises(SettingsError, match="quantised weights cannot be repaired"):
        repaired(loaded, plan, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_sums_that_do_not_fit_in_memory_are_refused(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("depthcut.repairing.repair.free_memory_bytes", lambda _: 1000)
    with pytest.raises(SettingsError, match=r"repair keeps .* of sums and may take"):
        repaired(load(tiny_llama, LOAD), plan_without(tiny_llama, (2,)), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
