"""Surveys on an accelerator: pytest -m gpu."""

import pytest
import torch

from depthcut.surveying.criteria import CRITERIA
from tests.surveying.surveys_for_tests import flat, make_sequences, survey
from tests.tiny import build_tiny

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
]


@pytest.mark.parametrize("name", CRITERIA)
@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "gpt2"])
def test_every_criterion_says_on_a_gpu_what_it_says_on_a_cpu(name: str, model_type: str) -> None:
    sequences = make_sequences((60, 41, 5, 17, 64, 33))
    here = survey(build_tiny(model_type), sequences, criteria=[name])
    there = survey(build_tiny(model_type).cuda(), sequences, criteria=[name])
    for scores in here.scores:
        found = there.find(scores.criterion, scores.tokens)
        torch.testing.assert_close(flat(found.mean), flat(scores.mean), rtol=1e-3, atol=1e-5)
