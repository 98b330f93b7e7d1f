"""ComfyUI's own main.py: `serve.py FOLDER ARGUMENTS OF main.py ...`

As where no torchvision fits this torch, and where there is no diffusers.
"""

import os
import runpy
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent / "stubs"))
sys.modules["diffusers"] = None  # type: ignore[assignment]  importing it fails
folder = sys.argv.pop(1)
os.chdir(folder)
sys.path[0] = folder
sys.argv[0] = "main.py"
runpy.run_path("main.py", run_name="__main__")
