"""Cells of action-unit columns, as coders filled them in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.clips import ActionUnit
from datamodules.databases.action_units import parse_action_units


def units(text: object) -> set[str]:
    return {str(unit) for unit in parse_action_units(text)[0]}


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        (4, {"4"}),
        (4.0, {"4"}),
        ("4+7", {"4", "7"}),
        ("R12", {"R12"}),
        ("L14+R14", {"L14", "R14"}),
        ("4B+7C", {"4", "7"}),
        ("R14A or 17A or 24A", {"R14", "17", "24"}),
        ("(R6 or R12)+R15", {"R6", "R12", "R15"}),
        ("12or14", {"12", "14"}),
        ("4，7", {"4", "7"}),
        ("4,7", {"4", "7"}),
        ("１＋２", {"1", "2"}),
        ("4 7", {"4", "7"}),
        ("4 +  7 ", {"4", "7"}),
        ("4+7(k)", {"4", "7"}),
        ("(k)4 + 9", {"4", "9"}),
        ("AU4+AU12", {"4", "12"}),
        ("4+?", {"4"}),
        ("?", set()),
        ("/", set()),
        ("", set()),
        (None, set()),
        (float("nan"), set()),
        ("nan", set()),
        ("12+12+12A", {"12"}),
        ("l12", {"L12"}),
        ("R12L14", {"R12", "L14"}),
        ("A12", {"12"}),
        ("T18", {"18"}),
        ("B28+4", {"28", "4"}),
        ("AD38+M58", {"38", "58"}),
        ("ref(7B)+43", {"7", "43"}),
        ("4A/B", {"4"}),
        ("4(B/C)+7B", {"4", "7"}),
        ("4/7", {"4", "7"}),
        ("12L", {"L12"}),
        ("12L+R14", {"L12", "R14"}),
        ("R4,5", {"R4", "5"}),
        ("14,L24,", {"14", "L24"}),
        ("RAU12", {"R12"}),
    ],
)
def test_action_unit_cells(cell: object, expected: set[str]) -> None:
    assert units(cell) == expected


@pytest.mark.parametrize(
    ("cell", "read", "left"),
    [
        ("0", set(), ("0",)),
        ("412", set(), ("412",)),
        ("smile", set(), ("smile",)),
        ("4+x", {"4"}, ("x",)),
        ("4+12z+R7", {"4", "R7"}, ("12z",)),
        (1.5, set(), ("1.5",)),
        ("2014-05-08", set(), ("2014-05-08",)),
        ("4+7 (weak)", {"4", "7"}, ("weak",)),
    ],
)
def test_what_cannot_be_read_is_listed_and_costs_the_rest_nothing(
    cell: object, read: set[str], left: tuple[str, ...]
) -> None:
    assert units(cell) == read
    assert parse_action_units(cell)[1] == left


unit = st.builds(ActionUnit, st.integers(1, 99), st.sampled_from(["", "L", "R"]))
separator = st.sampled_from(["+", ",", "，", " ", " or ", " + ", "+(k)", ";", "+?+"])


@given(
    st.lists(
        st.tuples(unit, separator, st.sampled_from(["", "A", "b", "C", "d", "E"]), st.booleans()), max_size=8
    )
)
def test_every_spelling_gives_back_the_set(parts: list[tuple[ActionUnit, str, str, bool]]) -> None:
    text = "".join(
        f"{between if i else ''}{str(au).lower() if lower else au}{intensity}"
        for i, (au, between, intensity, lower) in enumerate(parts)
    )
    parsed, left = parse_action_units(text)
    assert left == ()
    assert set(parsed) == {au for au, *_ in parts}
    assert list(parsed) == sorted(set(parsed))


@given(
    st.one_of(
        st.text(max_size=30), st.text("LR0123456789aebkor+,(?) ，", max_size=20), st.floats(), st.integers()
    )
)
def test_any_cell_is_read_without_an_error(cell: object) -> None:
    parsed, _ = parse_action_units(cell)
    assert all(1 <= au.number <= 99 and au.side in ("", "L", "R") for au in parsed)
    assert parse_action_units("+".join(map(str, parsed))) == (parsed, ())
