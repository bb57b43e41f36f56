"""The paths of the repository and of the reference runs in it."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "logs" / "reference"
