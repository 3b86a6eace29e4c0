"""Cells of action-unit columns.

Understood: a number (4, 4.0); separators `+` `,` (also full-width) `;` `/` `|` spaces, ` or `, ` and `; sides
as L and R before or after the number (R12, 12L); the other letters that coders put before it: AU, AD, M, T
(top), B (bottom), A (asymmetric, or a misprint of AU); intensities a to e, also as alternatives (4A/B,
4(B/C)); `(k)` markers; `ref(7B)`; `?` and blanks for "unknown". Sides are kept; intensities are not.
Alternatives ("12 or 14") are all returned: which of them holds is not ours to guess.
"""

from __future__ import annotations

import re
import unicodedata

from datamodules.clips import ActionUnit, Side

_BLANK = {"", "nan", "none", "n/a", "na", "-"}
_INTENSITIES = re.compile(r"\(\s*[a-z](\s*/\s*[a-z])*\s*\)|(?<=[a-e])/[a-e](?![a-z\d])", re.IGNORECASE)
_BETWEEN = re.compile(r"(?:[\s+,;/&|()\[\]?、]|(?<![A-Z])or(?![A-Z])|(?<![A-Z])and(?![A-Z]))+", re.IGNORECASE)
_UNIT = re.compile(
    r"(?:AU)?([LR]?)(?:AU|AD|M|T|B|A)?(\d{1,2})(?:\.0+)?(?!\d)(?:[A-E](?![A-Z]))?([LR](?!\d))?", re.IGNORECASE
)
_ABBREVIATIONS = {"ref"}  # "ref(7B)": the unit follows


def parse_action_units(annotated: object) -> tuple[tuple[ActionUnit, ...], tuple[str, ...]]:
    """Read one cell, part by part: what cannot be read costs the others nothing.

    Args:
        annotated: the cell as the reader of the file gives it: int, float, str or None.

    Returns:
        The units, sorted and without repeats, empty where nothing is annotated; and the parts that are no
        action units, as they stand in the cell.
    """
    if annotated is None or annotated != annotated:
        return (), ()
    text = unicodedata.normalize("NFKC", str(annotated)).strip()
    if text.casefold() in _BLANK:
        return (), ()
    units: set[ActionUnit] = set()
    unread: list[str] = []
    for part in _BETWEEN.split(_INTENSITIES.sub(" ", text)):
        if not part or part.casefold() in _ABBREVIATIONS:
            continue
        found = _units(part)
        if found is None:
            unread.append(part)
        else:
            units |= found
    return tuple(sorted(units)), tuple(unread)


def _units(part: str) -> set[ActionUnit] | None:
    """The units that stand in a part without anything in between, None where something else does."""
    units: set[ActionUnit] = set()
    position = 0
    while position < len(part):
        unit = _UNIT.match(part, position)
        if unit is None or int(unit[2]) == 0:
            return None
        sides: dict[str, Side] = {"L": "L", "R": "R"}
        units.add(ActionUnit(int(unit[2]), sides.get((unit[1] or unit[3] or "").upper(), "")))
        position = unit.end()
    return units
