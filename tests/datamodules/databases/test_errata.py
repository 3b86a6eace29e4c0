from __future__ import annotations

from pathlib import Path

import pytest
from places import ERRATA_FACTS as FACTS
from readers import casme2, samm
from replicas import Row, notes, write_casme2, write_samm

from datamodules.clips import Clip
from datamodules.databases.errata import Coded, apply_errata, load_errata


def one(clips: tuple[Clip, ...]) -> Clip:
    assert len(clips) == 1
    return clips[0]


def test_an_erratum_fills_a_missing_apex_and_can_be_switched_off(tmp_path: Path) -> None:
    write_casme2(tmp_path, [Row(4, "EP12_01f", 261, "/", 321, frames=(261, 279, 321))])
    read = casme2(tmp_path)
    assert one(read.clips).apex == 279
    assert any("apex missing -> 279 (meb" in remark for _, remark in notes(read.findings))
    assert one(casme2(tmp_path, errata=False).clips).apex is None


@pytest.mark.parametrize(
    ("row", "apex", "offset"),
    [
        (Row(4, "EP12_01f", 261, 300, 321, frames=(261, 279, 300)), 300, 321),  # this copy has one
        (Row(4, "EP12_01f", 261, "/", 270, frames=(261, 270, 279)), None, 270),  # 279 would be outside
        (Row(4, "EP12_01f", 1, "/", 321, frames=(1, 279, 321)), None, 321),  # frames numbered otherwise
        (Row(4, "EP12_01f", 261, "/", 321, frames=(261, 280, 321)), None, 321),  # no file
        (Row(5, "EP09_05f", 69, 69, 123, frames=(69, 81, 123)), 81, 123),  # the apex is the onset
        (Row(7, "EP06_01", 15, None, 91, frames=(15, 78, 91)), 78, 91),
        (Row(7, "EP06_01", 15, None, 68, frames=(15, 78, 91)), 78, 91),  # apex and offset together
        (Row(7, "EP06_01", 15, None, 68, frames=(15, 49, 68)), None, 68),  # or not at all
        (Row(7, "EP06_01", 15, 49, 68, frames=(15, 49, 68)), 49, 68),  # the 2014 coding stays
        (Row(12, "EP09_02", 16, None, 101, frames=(16, 101, 187)), None, 101),
        (Row(25, "EP10_01", 101, None, 137, frames=(98, 101, 137)), None, 137),
    ],
)
def test_casme2_errata_apply_only_where_they_hold(
    tmp_path: Path, row: Row, apex: int | None, offset: int
) -> None:
    clip = one(casme2(write_casme2(tmp_path, [row])).clips)
    assert (clip.apex, clip.offset) == (apex, offset)


def test_an_erratum_that_would_leave_the_clip_is_refused_and_says_so() -> None:
    coded = Coded("sub04", "EP12_01f", "disgust", 261, None, 270)
    fixed, remarks = apply_errata("casme2", "casme2/sub04/EP12_01f", coded, range(1, 400), load_errata())
    assert fixed == coded
    assert str(remarks[0]).startswith(
        "erratum not applied, the apex would lie outside [onset, offset]: apex missing"
    )


def test_samm_errata(tmp_path: Path) -> None:
    rows = [
        Row(28, "028_4_1", 1071, 1000, 1140, "4", "Anger", frames=(1071, 1105, 1140)),
        Row(32, "032_3_1", 4896, 4930, 4950, "4", "Anger", frames=(4896, 4930, 4945)),  # a copy that is right
        Row(13, "013_1_9", 5658, 5700, 5720, "4", "Anger", frames=(5658, 5700, 5739)),
        Row(7, "007_6_1", 497, 500, 510, "(R6 or R12)+R15", "Anger", frames=(497, 500, 510)),
        Row(11, "011_4_2", 2980, 2990, 3000, "L12", "Anger", frames=(2980, 2990)),
    ]
    write_samm(tmp_path, rows)
    clips = {c.clip: c for c in samm(tmp_path).clips}
    assert clips["028_4_1"].apex == 1105
    assert clips["032_3_1"].apex == 4930
    assert clips["013_1_9"].offset == 5739
    assert [str(au) for au in clips["007_6_1"].aus] == ["R12", "R15"]
    assert [str(au) for au in clips["011_4_2"].aus] == ["L12"]
    plain = {c.clip: c for c in samm(tmp_path, errata=False).clips}
    assert (plain["028_4_1"].apex, plain["013_1_9"].offset) == (None, 5720)
    assert [str(au) for au in plain["007_6_1"].aus] == ["R6", "R12", "R15"]


def test_every_erratum_has_a_source_and_comes_from_the_facts() -> None:
    errata = load_errata()
    assert all(row.source and row.when and row.field in ("onset", "apex", "offset", "aus") for row in errata)
    unusable = {("sub12", "EP09_02"), ("sub25", "EP10_01"), ("sub25", "EP18_04f"), ("sub26", "EP03_10")}
    assert not unusable & {(row.subject, row.clip) for row in errata}
    if not FACTS.exists():
        pytest.skip(f"{FACTS} is not here to compare with")
    facts = {tuple(line.split(",")[:6]) for line in FACTS.read_text().splitlines()[1:]}
    # The owners' corrected file and two copies have 160, one public loader 123.
    facts.remove(("casme3", "spNO.149", "d", "112", "apex", "123"))
    facts.add(("casme3", "spNO.149", "d", "112", "apex", "160"))
    mine = {(r.database, r.subject, r.clip, str(r.onset), r.field, r.value) for r in errata}
    assert mine == {fact for fact in facts if fact[1:3] not in unusable}
