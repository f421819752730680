from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeferry.errors import NameInvalid
from edgeferry.names import get_stem, require_file_name, require_model_name, require_version


@pytest.mark.parametrize("name", ["a", "detector", "0", "tiny_yolo-v3", "a" * 63])
def test_a_model_name_is_lower_case_and_short(name: str) -> None:
    assert require_model_name(name) == name


@pytest.mark.parametrize(
    "name", ["", "a" * 64, "Detector", "-a", "_a", "a b", "a/b", "..", "a.b", "ä", "a\n", "default\x00", None, 3]
)
def test_other_model_names_are_refused(name: str) -> None:
    with pytest.raises(NameInvalid):
        require_model_name(name)


@pytest.mark.parametrize("version", ["1", "1.0.0", "1.3.0-bad", "2026.11.23+build.7", "v1_2", "A" * 64])
def test_versions_as_people_write_them_are_taken(version: str) -> None:
    assert require_version(version) == version


@pytest.mark.parametrize("version", ["", ".1", "-1", "1..0", "..", "1/0", "1 0", "1\n", "A" * 65, "1\\0", None, 1.0])
def test_versions_that_are_no_folder_name_are_refused(version: str) -> None:
    with pytest.raises(NameInvalid):
        require_version(version)


@pytest.mark.parametrize("name", ["labels.txt", "model (1).tflite", "模型.onnx", "..a", "a..", ".hidden", "é" * 127])
def test_a_file_name_is_one_component(name: str) -> None:
    assert require_file_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "a/b", "/a", "../a", "a\\b", "C:a", "a\x00b", "a\nb", "a\x7f", "é" * 128, "a" * 256, None, b"a"],
)
def test_file_names_with_separators_or_controls_are_refused(name: str) -> None:
    with pytest.raises(NameInvalid):
        require_file_name(name)


@given(st.text(max_size=300))
def test_a_file_name_that_passes_cannot_leave_its_folder(name: str) -> None:
    try:
        require_file_name(name)
    except NameInvalid as error:
        assert len(str(error)) < 500
        return
    assert "/" not in name and "\\" not in name and ":" not in name and name not in ("", ".", "..")
    assert len(name.encode("utf-8", "surrogatepass")) <= 255


@pytest.mark.parametrize(
    ("name", "stem"),
    [("tensorflow001.zip", "tensorflow001"), ("a.b.zip", "a.b"), ("plain", "plain"), (".zip", ".zip"), ("a.", "a")],
)
def test_the_stem_is_the_name_without_its_last_extension(name: str, stem: str) -> None:
    assert get_stem(name) == stem
