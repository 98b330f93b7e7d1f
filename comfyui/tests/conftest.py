"""ComfyUI first, since everything here needs it; then what several files share."""

import find_comfy

find_comfy.add()

import families  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402


@pytest.fixture(autouse=True)
def _quick():
    torch.manual_seed(0)


@pytest.fixture(params=list(families.FAMILIES))
def family(request):
    """Each family of transformers that is known, tiny, with a latent of its own."""
    return families.FAMILIES[request.param]()


@pytest.fixture
def flux():
    return families.flux_case()
