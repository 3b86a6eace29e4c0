from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.clips import ActionUnit, Clip, Study, parse_action_units


def units(text: object) -> set[str]:
    return {str(unit) for unit in parse_action_units(text)}


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
    ],
)
def test_action_unit_cells(cell: object, expected: set[str]) -> None:
    assert units(cell) == expected


@pytest.mark.parametrize("cell", ["0", "412", "smile", "4+x", "1.5", 1.5, "T4", "12z", "2014-05-08"])
def test_what_is_no_action_unit_is_refused_with_the_cell(cell: object) -> None:
    with pytest.raises(ValueError, match="is not an action unit") as caught:
        parse_action_units(cell)
    assert repr(cell) in str(caught.value)


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
    parsed = parse_action_units(text)
    assert set(parsed) == {au for au, *_ in parts}
    assert list(parsed) == sorted(set(parsed))


@given(
    st.one_of(
        st.text(max_size=30), st.text("LR0123456789aebkor+,(?) ，", max_size=20), st.floats(), st.integers()
    )
)
def test_any_cell_is_read_or_refused(cell: object) -> None:
    try:
        parsed = parse_action_units(cell)
    except ValueError as error:
        parsed, complaint = (), str(error)
    else:
        complaint = "is not an action unit"
    assert "is not an action unit" in complaint
    assert all(1 <= au.number <= 99 and au.side in ("", "L", "R") for au in parsed)
    assert parse_action_units("+".join(map(str, parsed))) == parsed


def clip(database: str, subject: str, name: str, label: int) -> Clip:
    frames = {number: Path(f"{number}.jpg") for number in (1, 5, 9, 12)}
    return Clip(database, subject, name, "happiness", 1, 5, 9, 200.0, (), frames, label)


def test_counts_keep_subjects_of_two_databases_apart() -> None:
    clips = (clip("casme2", "06", "a", 0), clip("casme2", "06", "b", 1), clip("samm", "06", "a", 1))
    counts = Study("composite", ("negative", "positive"), clips).counts()
    assert counts["all"] == {"clips": 3, "subjects": 2, "classes": {"negative": 1, "positive": 2}}
    assert counts["casme2"] == {"clips": 2, "subjects": 1, "classes": {"negative": 1, "positive": 1}}
    assert counts["samm"] == {"clips": 1, "subjects": 1, "classes": {"negative": 0, "positive": 1}}


def test_keys_and_frames_of_a_clip() -> None:
    one = clip("casme2", "sub01", "EP02_01f", 0)
    assert (one.key, one.subject_key) == ("casme2/sub01/EP02_01f", "casme2/sub01")
    assert one.between() == [1, 5, 9]
