from __future__ import annotations

from pathlib import Path

from datamodules.clips import Clip, Study


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
