"""A writer of .xls files, in the oldest form that readers know (BIFF2): enough for a table."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path


def write_xls(file: Path, rows: Sequence[Sequence[object]]) -> None:
    """One sheet; numbers as floats, text as Latin-1, None as no cell, an Exception as its text: an error."""
    records = [struct.pack("<HHHH", 0x0009, 4, 2, 0x0010)]
    for r, row in enumerate(rows):
        for c, cell in enumerate(row):
            place = struct.pack("<HH3x", r, c)
            if isinstance(cell, int | float):
                records.append(struct.pack("<HH", 0x0003, 15) + place + struct.pack("<d", cell))
            elif isinstance(cell, Exception):
                code = {"#N/A": 42, "#REF!": 23}[str(cell)]
                records.append(struct.pack("<HH", 0x0005, 9) + place + struct.pack("<BB", code, 1))
            elif cell is not None:
                text = str(cell).encode("latin-1")
                records.append(
                    struct.pack("<HH", 0x0004, 8 + len(text)) + place + struct.pack("<B", len(text)) + text
                )
    records.append(struct.pack("<HH", 0x000A, 0))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"".join(records))
