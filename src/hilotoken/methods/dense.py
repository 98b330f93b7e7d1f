"""The control: nothing is compressed."""

from dataclasses import dataclass

from ..method import Method


@dataclass(frozen=True)
class Dense(Method):
    """Every token runs: the untouched pipeline, measured and composited."""

    @property
    def shortens(self) -> bool:
        return False
