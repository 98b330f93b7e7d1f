"""Three variations of an edit to choose from, then another edit of the chosen one.

python examples/session.py photo.jpg mask.png other_mask.png out/
"""

from pathlib import Path

import typer
from PIL import Image

import hilotoken


def main(
    photo: Path, mask: Path, other: Path, output: Path, size: int = 512, steps: int = 8
) -> None:
    pipe = hilotoken.load_model()  # or a pipeline of your own
    fast = hilotoken.compress(pipe, "balanced")
    picture, first, second = (
        Image.open(path).convert(mode).resize((size, size))
        for path, mode in ((photo, "RGB"), (mask, "L"), (other, "L"))
    )
    given = {"prompt": "", "width": size, "height": size, "num_inference_steps": steps}
    output.mkdir(parents=True, exist_ok=True)
    with fast.open(picture) as session:  # what is encoded is kept for the next edit
        results = []
        for result in session.variations(first, 3, **given):
            results.append(result.images[0])
            results[-1].save(output / f"variation-{len(results)}.png")
            print(session.last_run)
        session.accept(results[0])  # the next edit starts from it
        session.edit(second, seed=0, **given).images[0].save(output / "both.png")
        print(session.last_run)


if __name__ == "__main__":
    typer.run(main)
