from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from replicas import write_frames

from datamodules.databases.folders import list_frames


def test_frames_are_ordered_by_number_and_strays_are_left_out(tmp_path: Path) -> None:
    write_frames(tmp_path, (9, 10, 100), "reg_img{}.jpg")
    strays = ("reg_img11 (1).jpg", "cover.jpg", "reg_img9 2.jpg", "reg_img10 - Copy.jpg", "img9.jpg")
    for stray in ("._reg_img7.jpg", "Thumbs.db", "notes8.txt", *strays):
        (tmp_path / stray).touch()
    frames = list_frames(tmp_path)
    assert list(frames.files) == [9, 10, 100]
    assert set(frames.strays) == set(strays)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    numbers=st.sets(st.integers(0, 10**8), max_size=8),
    prefix=st.sampled_from(["img", "reg_img", "006_", "", "image", "s1-"]),
    width=st.integers(1, 9),
)
def test_any_padding_gives_the_same_numbers(
    tmp_path_factory: pytest.TempPathFactory, numbers: set[int], prefix: str, width: int
) -> None:
    folder = tmp_path_factory.mktemp("frames")
    for number in numbers:
        (folder / f"{prefix}{number:0{width}d}.jpg").touch()
    frames = list_frames(folder).files
    assert list(frames) == sorted(numbers)
    assert all(int(path.stem.removeprefix(prefix)) == number for number, path in frames.items())
