"""The loss of a batch: a mixture of losses, of the text and of a teacher."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from depthcut.errors import SettingsError
from depthcut.healing.losses.table import LOSSES, OF_PREDICTIONS, Seen
from depthcut.healing.losses.teachers import Teacher, leaving
from depthcut.healing.rows import IGNORED


class Objective:
    """What is summed over the tokens of a batch that count."""

    def __init__(
        self,
        weights: Mapping[str, float],
        *,
        teacher: Teacher | None = None,
        compared: Sequence[nn.Module] = (),
        temperature: float = 1.0,
    ) -> None:
        """A mixture of losses.

        Args:
            weights: By the losses' names.
            teacher: Whom they ask.
            compared: The model's layers behind which its states are compared with the teacher's.
            temperature: Of both distributions.
        """
        self.weights = dict(weights)
        self._teacher, self._compared, self._temperature = teacher, compared, temperature

    def of(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """The mixture, summed over the tokens that count."""
        seen = self._seen(model, batch)
        mixed = self._mixed({name: LOSSES[name](seen) for name in self.weights})
        # Every weight has a part in it, if of nothing: several processes wait for each gradient.
        return mixed if OF_PREDICTIONS & self.weights.keys() else mixed + 0 * seen.logits.sum()

    def judged(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The mixture and the text's own loss, each summed over the tokens that count."""
        seen = self._seen(model, batch)
        sums = {name: LOSSES[name](seen) for name in {*self.weights, "next-token"}}
        return self._mixed(sums), sums["next-token"]

    def _mixed(self, sums: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([sums[name] * weight for name, weight in self.weights.items()]).sum()

    def _seen(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Seen:
        rows = counting(batch["labels"])
        asked = self._teacher.predictions(batch, rows) if self._teacher else (None, ())
        with leaving(self._compared) as states:
            output = model(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                use_cache=False,
                **({"output_router_logits": True} if "balance" in self.weights else {}),
            )
        return Seen(
            logits=_rows(output.logits, rows),
            labels=batch["labels"].roll(-1, dims=1)[rows],
            states=tuple(_rows(each, rows).to(rows.device) for each in states),
            teacher=asked[0],
            wanted=asked[1],
            temperature=self._temperature,
            balance=_balance(output) if "balance" in self.weights else None,
        )


def unbalanced() -> SettingsError:
    """That a model has no such loss."""
    return SettingsError(
        "--loss balance: transformers computes no loss that balances experts of this model type: "
        "leave it out"
    )


def _balance(output: Any) -> Tensor:
    found = getattr(output, "aux_loss", None)
    if not isinstance(found, Tensor):  # DeepSeek-V3 and others have the switch, and no loss
        raise unbalanced()
    return found


def _rows(values: Tensor, rows: Tensor) -> Tensor:
    """Of (batch, length, width) the places that count; a view where all but the last do."""
    rows = rows.to(values.device)
    if bool(rows[:, :-1].all()):
        return values[:, :-1].flatten(0, 1)
    return values[rows]


def counting(labels: Tensor) -> Tensor:
    """The places behind which a token is to be learned, of (batch, length) labels."""
    behind = labels.roll(-1, dims=1) != IGNORED
    behind[:, -1] = False
    return behind
