"""How a worker loads its model, wherever it is."""

from typing import Any


def load_quietly(model: str, device: str, threads: int) -> Any:
    """Load a model in a process that then uses that many threads, without libraries' chatter."""
    import torch
    from diffusers.utils import logging as diffusers_logging

    from ..model import load_model

    torch.set_num_threads(threads)
    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    return load_model(model, device=device)
