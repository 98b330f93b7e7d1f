"""The compatibility page, written from the tables that the tests run over.

python tests/compatibility.py > docs/reference/compatibility.md
"""

import sys

from families import BY_NAME, CLASSES, FAMILIES, REFRESHED, calls_of
from family import Lack
from machinery import MACHINERY

from hilotoken.adapters import ADAPTERS, REFUSED

HEAD = """# What works with what

Written by `python tests/compatibility.py` from the tables that the tests run over; a test fails
when this page is out of date. Every pipeline is the real class of diffusers 0.42 at tiny size with
random weights, in float32 and bfloat16. No trained weights but the embedded model's were run.

## Pipelines

On each: keeping every token equals the untouched pipeline bit for bit; a permutation of all tokens
with their places equals it; dropping tokens equals a key mask on them; a dropped token ends on the
pipeline's own source latents; pixels outside the mask are the photo's; the pipeline afterwards, or
after an exception, is the pipeline before; generators end where the plain pipeline leaves them;
coarse tokens at every kind of position; keys that count for many; references shortened or whole;
callbacks and hooks of the user see whole sequences.
"""


BESIDE = (Lack.COMPILED, Lack.STEP_CACHE, Lack.LOW_RANK)  # of the second table


def pipelines() -> str:
    heads = ("pipeline", "transformer", "ways of calling", "what does not hold, and why")
    rows = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    kinds = dict(ADAPTERS.keys())
    for family in FAMILIES:
        calls = "; ".join(name for name in calls_of(family) if name not in family.lacks)
        cells = [cell for cell in family.lacks if cell not in BESIDE]
        lacks = "; ".join(f"{cell}: {family.lacks[cell]}" for cell in cells)
        kind = kinds[family.name.split(",")[0]]
        rows.append(f"| {family.name} | {kind} | {calls} | {lacks or 'nothing known'} |")
    return "\n".join(rows)


def machinery() -> str:
    names = [thing.__name__.replace("_", " ") for thing in MACHINERY]
    columns = [*names, "compiled blocks, one graph for all masks", "a step cache", "refresh"]
    rows = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for family in (BY_NAME[name] for name in CLASSES):
        adapted = Lack.LOW_RANK not in family.lacks
        holds = [adapted or not name.startswith("low rank") for name in names]
        holds += [Lack.COMPILED not in family.lacks]
        holds += [Lack.STEP_CACHE not in family.lacks]
        cells = ["yes" if cell else "no" for cell in holds]
        cells.append("yes" if family.name in REFRESHED else "not tried")
        rows.append(f"| {family.name} | {' | '.join(cells)} |")
    return "\n".join(rows)


def refused() -> str:
    rows = ["| pipeline | why |", "|---|---|"]
    return "\n".join([*rows, *(f"| {name} | {why} |" for name, why in sorted(REFUSED.items()))])


def page() -> str:
    return f"""{HEAD}
{pipelines()}

## Beside diffusers' own machinery

One pipeline of each transformer class. "No" under low rank: diffusers' class takes
no adapters. "No" under compiled blocks: diffusers names none to compile
for the class. "No" under a step cache: diffusers has none for the class, or it fails there by
itself. Where a pipeline opens no cache context, which diffusers' caches need, it is opened for it.
`refresh` and a step cache at the same time are refused.

{machinery()}

Not on this page because the plain pipeline fails first: sequential offloading on a CPU
(accelerate 1.15).

## Refused, and why

{refused()}

Any other pipeline is refused with a sentence that lists those supported.
"""


if __name__ == "__main__":
    sys.stdout.write(page())
