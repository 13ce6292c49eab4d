import pytest

from tests.parity_case import CASES, FOLDER, Case
from tests.parity_sfc import encoder_activations

WHOLE = [f"pixnerdit_sfc_{name}" for name in ("baseline", "unified", "spatial", "both", "dense")]


@pytest.mark.parametrize("name", WHOLE)
def test_tokens_and_answers_of_a_published_model_are_matched(name):
    if name not in CASES:
        pytest.skip(f"no parity case {name} in {FOLDER}")
    encoder_activations(Case(FOLDER / name))
