import pytest

from depthcut.benching.work import Weight, Work, ideal_decode, ideal_prefill, work_of


def weight(name: str, parameters: int, *, table: bool = False, head: bool = False) -> Weight:
    return Weight(name, parameters, 2 * parameters, looked_up=table, head=head)


LAYERS = [weight("layers.0.mlp", 100), weight("layers.1.mlp", 100)]


def test_a_table_of_embeddings_costs_nothing_and_a_head_one_position() -> None:
    work = work_of([weight("table", 1000, table=True), *LAYERS, weight("head", 900, head=True)])
    assert work == Work(read_bytes=2 * (200 + 900), parameters=200, head_parameters=900)
    assert work.prefill(10) == 10 * 200 + 900


def test_a_table_that_is_the_head_too_is_read() -> None:
    work = work_of([weight("table", 1000, table=True, head=True), *LAYERS])
    assert (work.read_bytes, work.parameters, work.head_parameters) == (2400, 200, 1000)


@pytest.mark.parametrize(
    "name", ["layers.0.mlp.experts.3.up", "experts.gate_up_proj", "blk.0.ffn_up_exps.weight"]
)
def test_experts_count_by_the_share_that_a_token_visits(name: str) -> None:
    work = work_of([weight("blk.0.shared_expert.up", 30), weight(name, 80)], expert_share=0.25)
    assert (work.read_bytes, work.parameters) == (2 * (30 + 20), 50)


def test_the_ideal_lies_below_the_ratio_of_layers() -> None:
    # Four layers become three; the head stays, and the longer the prompt the less it weighs.
    four, three = (Work(100 * n + 100, 50 * n, 50) for n in (4, 3))
    assert ideal_decode(four, three) == 500 / 400
    assert ideal_prefill(four, three, 1) == 250 / 200
    assert ideal_prefill(four, three, 10**6) == pytest.approx(4 / 3)
