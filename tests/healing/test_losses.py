import pytest
import torch
from torch import Tensor
from torch.nn import functional

from depthcut.errors import SettingsError
from depthcut.healing.losses import LOSSES, Seen, TopPredictions, hidden, kl, loss_weights
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
    }
    return Seen(**(values | changes))  # type: ignore[arg-type]


def top(logits: Tensor, k: int) -> TopPredictions:
    found = torch.log_softmax(logits, dim=1).topk(k, dim=1)
    return TopPredictions(found.indices, found.values)


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
    leaf = whole.states[0] if name == "hidden" else whole.logits
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


def test_kl_from_the_likeliest_tokens_comes_from_below_and_equals_it_with_all() -> None:
    each = seen()
    assert isinstance(each.teacher, Tensor)
    exact = kl(each).item()
    found = [kl(seen(teacher=top(each.teacher, k))).item() for k in (1, 5, 20, VOCABULARY - 1)]
    assert found == sorted(found)
    assert 0 < found[0] < exact
    assert found[-1] == pytest.approx(exact, rel=1e-5)
    assert kl(seen(teacher=top(each.teacher, VOCABULARY))).item() == pytest.approx(exact, rel=1e-4)


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
