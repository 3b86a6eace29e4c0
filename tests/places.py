"""Where things lie."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
REAL = SHARED / "real_video"
PARITY = SHARED / "parity" / "dface_small.safetensors"
ERRATA_FACTS = SHARED / "design" / "errata_facts.csv"
