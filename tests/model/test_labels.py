from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeferry.errors import BundleTooLarge, BundleUnreadable
from edgeferry.model.labels import LABELS_MAX_BYTES, find_label, is_placeholder, read_labels

_line = st.text(st.characters(exclude_characters="\r\n\x00", exclude_categories=["Cs"]), min_size=1, max_size=20).map(
    str.strip
)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_label_file_may_end_lines_in_three_ways_and_begin_with_a_mark(end: str, mark: bytes) -> None:
    assert read_labels(mark + end.join(["cat", "dog", ""]).encode()) == ("cat", "dog")


def test_order_and_placeholders_and_blank_lines_inside_are_kept() -> None:
    assert read_labels(b"???\nperson\n\n???\ncat\n\n\n") == ("???", "person", "", "???", "cat")


def test_a_form_feed_or_a_unicode_line_end_inside_a_label_shifts_nothing() -> None:
    text = "a\x0cb\nc\u2028d\ne\x85f\nlast"
    assert read_labels(text.encode()) == ("a\x0cb", "c\u2028d", "e\x85f", "last")


@given(st.lists(_line.filter(bool), max_size=30))
def test_labels_come_back_from_their_lines(labels: list[str]) -> None:
    assert read_labels("\n".join(labels).encode()) == tuple(labels)


@pytest.mark.parametrize("data", [b"\xff\xfecat", b"\xe9t\xe9", b"cat\x00dog", b"TFL3\x00\x00"])
def test_bytes_that_are_no_utf8_text_are_refused(data: bytes) -> None:
    with pytest.raises(BundleUnreadable):
        read_labels(data)


@pytest.mark.parametrize("data", [b"a" * (LABELS_MAX_BYTES + 1), b"a\n" * 100_001, b"a" * 1_001])
def test_a_label_file_beyond_all_bounds_is_refused(data: bytes) -> None:
    with pytest.raises(BundleTooLarge):
        read_labels(data)


def test_an_empty_file_has_no_labels() -> None:
    assert read_labels(b"") == read_labels(b"\n\n") == ()


@pytest.mark.parametrize(
    ("class_index", "offset", "label"),
    [
        (0, 0, "???"),
        (0, 1, "person"),
        (2, 0, "cat"),
        (3, 0, "3"),
        (2, 1, "2"),
        (0, -1, "0"),
        (1, -1, "???"),
        (-1, 0, "-1"),
    ],
)
def test_the_label_is_the_line_at_class_plus_offset_or_the_number(class_index: int, offset: int, label: str) -> None:
    assert find_label(("???", "person", "cat"), class_index, offset) == label


def test_a_blank_line_names_nothing() -> None:
    assert find_label(("a", "", "c"), 1) == "1"


@pytest.mark.parametrize("label", ["???", "background", "Background", "__background__", "unlabeled"])
def test_placeholders_are_known(label: str) -> None:
    assert is_placeholder(label)
    assert not is_placeholder("person")


@pytest.mark.needs_shared
def test_on_the_guides_own_labels_every_one_of_80_classes_has_its_name(shared_models: Path) -> None:
    """The sample drops `???` lines: 11 of 80 come out right. COCO's own numbering (1-based, with gaps) is the truth."""
    with zipfile.ZipFile(shared_models / "classic" / "tensorflow001.zip") as archive:
        labels = read_labels(archive.read("labelmap.txt"))
    names = [line for line in labels if line != "???"]
    assert (len(labels), len(names)) == (91, 80)
    assert [find_label(labels, index, 1) for index in (0, 16, 43, 89)] == ["person", "cat", "bottle", "toothbrush"]
    real = [index for index in range(90) if find_label(labels, index, 1) != "???"]
    assert [find_label(labels, index, 1) for index in real] == names
    filtered = [names[index + 1] if index + 1 < len(names) else "" for index in real]
    assert sum(mine == find_label(labels, index, 1) for mine, index in zip(filtered, real, strict=True)) < 12
