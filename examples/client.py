"""Edit by a running `hilo serve`, with the openai client as it is.

hilo serve &
python examples/client.py photo.png mask.png edited.png
"""

import base64
from pathlib import Path

import openai
import typer


def main(
    photo: Path,
    mask: Path,
    output: Path,
    address: str = "http://127.0.0.1:8000",
    prompt: str = "",
    seed: int = 0,
    steps: int = 8,
    size: int = 512,
) -> None:
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="none")
    answer = client.images.edit(
        model="embedded",
        image=photo,
        mask=mask,
        prompt=prompt,
        # Beyond the images API: white is edited, and what else a local model may be asked.
        extra_body={"mask_mode": "white", "seed": seed, "steps": steps, "working_size": size},
    )
    output.write_bytes(base64.b64decode(answer.data[0].b64_json))
    print(f"{answer.usage.output_tokens} of {answer.usage.input_tokens} tokens ran")


if __name__ == "__main__":
    typer.run(main)
