"""The settings that this page names: plain `HiLo` values, for 8 steps of FLUX.1's schedule."""

from hilotoken import HiLo, Refresh

PAPER = HiLo()
FAITHFUL = HiLo(detail=1.0, coarse=0, refresh=(0, 4))
BALANCED = HiLo(detail=1.0, coarse=0, refresh=(0,))
FAST = HiLo(context="sampled", detail=0.0, cell=2, refresh=Refresh((0, 4), text=True))
