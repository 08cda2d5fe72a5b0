import pytest
import torch
from torch import Tensor
from torch.nn import functional

from depthcut.errors import SettingsError
from depthcut.healing.losses.kept_teacher import some_of
from depthcut.healing.losses.table import LOSSES, Seen, hidden, kl, loss_weights
from depthcut.settings import HealSettings

TOKENS, VOCABULARY = 1100, 40  # more than are taken at once


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def seen(**changes: object) -> Seen:
    values: dict[str, object] = {
        "logits": drawn(TOKENS, VOCABULARY).requires_grad_(),
        "labels": torch.arange(TOKENS) % VOCABULARY,
        "states": (drawn(TOKENS, 8, seed=2).requires_grad_(), drawn(TOKENS, 8, seed=3)),
        "teacher": drawn(TOKENS, VOCABULARY, seed=1),
        "wanted": (drawn(TOKENS, 8, seed=4), drawn(TOKENS, 8, seed=3)),
        "balance": torch.tensor(0.5, requires_grad=True),
    }
    return Seen(**(values | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", list(LOSSES))
def test_losses_are_sums_with_a_gradient(name: str) -> None:
    whole = seen()
    loss = LOSSES[name](whole)
    assert loss.dtype == torch.float32
    assert loss.item() > 0
    half = seen()._replace(
        logits=whole.logits[:500],
        labels=whole.labels[:500],
        teacher=whole.teacher[:500],  # type: ignore[index]
        states=tuple(each[:500] for each in whole.states),
        wanted=tuple(each[:500] for each in whole.wanted),
    )
    other = seen()._replace(
        logits=whole.logits[500:],
        labels=whole.labels[500:],
        teacher=whole.teacher[500:],  # type: ignore[index]
        states=tuple(each[500:] for each in whole.states),
        wanted=tuple(each[500:] for each in whole.wanted),
    )
    parts = LOSSES[name](half) + LOSSES[name](other)
    torch.testing.assert_close(loss, parts, rtol=1e-5, atol=1e-3)
    loss.backward()  # type: ignore[no-untyped-call]
    leaf = {"hidden": whole.states[0], "balance": whole.balance}.get(name, whole.logits)
    assert leaf is not None
    assert leaf.grad is not None
    assert leaf.grad.abs().sum() > 0


def test_next_token_is_the_cross_entropy() -> None:
    each = seen()
    expected = functional.cross_entropy(each.logits, each.labels, reduction="sum")
    torch.testing.assert_close(LOSSES["next-token"](each), expected)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_kl_is_that_of_the_definition(temperature: float) -> None:
    each = seen(temperature=temperature)
    assert isinstance(each.teacher, Tensor)
    p = torch.softmax(each.teacher.double() / temperature, dim=1)
    q = torch.softmax(each.logits.double() / temperature, dim=1)
    expected = temperature**2 * (p * (p.log() - q.log())).sum()
    assert kl(each).item() == pytest.approx(expected.item(), rel=1e-5)
    assert kl(seen(teacher=each.logits.detach())).item() == pytest.approx(0, abs=1e-3)


def test_kl_by_some_tokens_is_right_on_average_and_equals_it_with_all() -> None:
    each = seen(
        logits=3 * drawn(TOKENS, VOCABULARY).requires_grad_(),
        teacher=3 * drawn(TOKENS, VOCABULARY, seed=1),
    )
    assert isinstance(each.teacher, Tensor)
    exact = kl(each).item()
    whole = some_of(each.teacher, VOCABULARY, torch.Generator())
    assert kl(each._replace(teacher=whole)).item() == pytest.approx(exact, rel=1e-5)
    found = torch.tensor(
        [
            kl(
                each._replace(teacher=some_of(each.teacher, 8, torch.Generator().manual_seed(seed)))
            ).item()
            for seed in range(40)
        ]
    )
    assert found.std() < 0.05 * exact
    assert abs(found.mean() - exact) < 4 * found.std() / len(found) ** 0.5


def test_a_teacher_that_is_sure_leaves_nothing_to_draw() -> None:
    logits = torch.full((3, VOCABULARY), -1e4)
    logits[:, 5] = 0
    kept = some_of(logits, 4, torch.Generator())
    assert (kept.ids[:, 0] == 5).all()
    assert kept.log_weights.exp().sum(dim=1) == pytest.approx([1.0] * 3)
    assert kept.entropy.abs().max() < 1e-6


def test_hidden_is_relative_to_the_length_of_the_teachers_states() -> None:
    ours, theirs = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 4.0]])
    assert hidden(seen(states=(ours,), wanted=(theirs,))).item() == pytest.approx(25 / 16)
    assert hidden(seen(states=(theirs,), wanted=(theirs,))).item() == 0


def test_mixtures_are_read_with_their_weights() -> None:
    assert loss_weights(HealSettings()) == {"next-token": 1.0}
    assert loss_weights(HealSettings(teacher="m")) == {"kl": 1.0}
    mixture = HealSettings(teacher="m", loss="kl, next-token:0.25 hidden:2")
    assert loss_weights(mixture) == {"kl": 1.0, "next-token": 0.25, "hidden": 2.0}


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ("kll", "did you mean kl"),
        ("kl:-1", "a number above 0"),
        ("kl:x", "a number above 0"),
        ("kl:nan", "a number above 0"),
        (" ", "names none"),
    ],
)
def test_what_is_no_mixture_is_refused(loss: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        loss_weights(HealSettings(teacher="m", loss=loss))


def test_losses_that_need_a_teacher_say_so() -> None:
    with pytest.raises(SettingsError, match="--teacher parent"):
        loss_weights(HealSettings(loss="hidden"))
