"""The spec of a bundle: one model with its label file, or several that a spec.toml names as stages."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from onnx import TensorProto

from edgeferry.errors import (
    BundleIncomplete,
    BundleUnreadable,
    ConfigInvalid,
    EdgeferryError,
    ModelUnreadable,
    SpecIncomplete,
)
from edgeferry.model.bundle_spec import list_stage_files, make_bundle_spec, make_pipeline_spec
from edgeferry.model.spec import read_spec_toml
from edgeferry.model.stage_labels import load_labels

Maker = Callable[..., bytes]
FOUR = ("a", "b", "c", "d")
STAGE = """
[[stages]]
file = "{file}"
input = {{ mean = [0], std = [255], fit = "stretch" }}
labels = {{ file = "{labels}" }}
"""


def test_a_bundle_may_carry_its_spec(make_onnx: Maker) -> None:
    spec = b'[input]\nmean = [0]\nstd = [255]\nfit = "stretch"\n[labels]\nfile = "b.txt"'
    files = {"m.onnx": make_onnx(), "spec.toml": spec, "a.txt": b"w\nx\ny\nz", "b.txt": b"a\nb\nc\nd"}
    stage = make_bundle_spec(files, files.__getitem__).stages[0]
    assert load_labels(stage, files.__getitem__) == FOUR


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"m.onnx": None}, BundleIncomplete),
        ({"n.onnx": b""}, BundleIncomplete),
        ({"other.txt": b"a"}, BundleIncomplete),
        ({"a.txt": b"\xff"}, BundleUnreadable),
        ({"m.onnx": b"not a model"}, ModelUnreadable),
        ({"spec.toml": b"x"}, SpecIncomplete),
        ({"spec.toml": b"[" * 5_000}, SpecIncomplete),
        ({"spec.toml": b"\xff\xfe"}, SpecIncomplete),
        ({"spec.toml": b" " * 200_000}, SpecIncomplete),
        ({"spec.toml": b"a" + b".a" * 8_000 + b" = 1"}, ConfigInvalid),
        ({"spec.toml": b""}, SpecIncomplete),
        ({"spec.toml": b"[input]\nwidth = 9"}, SpecIncomplete),
    ],
)
def test_a_bad_bundle_says_what_is_wrong(
    make_onnx: Maker, changes: dict[str, bytes | None], error: type[Exception]
) -> None:
    files = {"m.onnx": make_onnx(), "a.txt": b"a\nb\nc\nd"} | changes
    present = {name: data for name, data in files.items() if data is not None}
    with pytest.raises(error):
        make_bundle_spec(present, present.__getitem__)


def make_two(make_onnx: Maker) -> dict[str, bytes]:
    """Two classifiers of other sizes and labels, in the order second, first."""
    second = make_onnx([("image", TensorProto.FLOAT, (1, 3, 8, 8))])
    first = make_onnx([("image", TensorProto.FLOAT, (1, 3, 16, 24))])
    spec = STAGE.format(file="b.onnx", labels="b.txt") + STAGE.format(file="a.onnx", labels="a.csv")
    labels = {"a.csv": b"w\nx\ny\nz", "b.txt": b"\xef\xbb\xbfa\r\nb\r\nc\r\nd\r\n"}
    return {"a.onnx": second, "b.onnx": first, "spec.toml": spec.encode(), **labels}


def test_each_stage_is_filled_from_the_model_and_the_labels_that_it_names(make_onnx: Maker) -> None:
    files = make_two(make_onnx)
    first, second = make_bundle_spec(files, files.__getitem__).stages
    assert (first.file, second.file) == ("b.onnx", "a.onnx")
    assert first.input is not None and (first.input.width, first.input.height) == (24, 16)
    assert second.input is not None and (second.input.width, second.input.height) == (8, 8)
    assert load_labels(first, files.__getitem__) == FOUR
    assert load_labels(second, files.__getitem__) == ("w", "x", "y", "z")


def test_a_given_spec_stands_in_for_the_bundles_own(make_onnx: Maker) -> None:
    files = make_two(make_onnx)
    only = read_spec_toml(STAGE.format(file="a.onnx", labels="a.csv"))
    assert [stage.file for stage in make_bundle_spec(files, files.__getitem__, only).stages] == ["a.onnx"]


def test_what_was_assumed_is_told_of_each_stage(make_onnx: Maker) -> None:
    files = make_two(make_onnx)
    made = make_pipeline_spec(files, files.__getitem__, read_spec_toml(files["spec.toml"].decode()))
    assert {note.partition(":")[0] for note in made.notes} == {"a.onnx", "b.onnx"}


def test_the_files_of_the_stages_are_listed_in_order_and_once() -> None:
    toml = STAGE.format(file="b.onnx", labels="x.txt") + STAGE.format(file="a.onnx", labels="x.txt")
    assert list_stage_files(read_spec_toml(toml)) == ("b.onnx", "x.txt", "a.onnx")


def test_label_files_that_no_stage_names_are_left_alone(make_onnx: Maker) -> None:
    files = make_two(make_onnx) | {"more.txt": b"1", "other.names": b"\xff"}
    assert len(make_bundle_spec(files, files.__getitem__).stages) == 2


@pytest.mark.parametrize(
    ("toml", "error", "says"),
    [
        ("stages = 3", ConfigInvalid, "list of tables"),
        ("stages = []", ConfigInvalid, "list of tables"),
        ("stages = [1]", ConfigInvalid, "list of tables"),
        ('task = "pose"\n[[stages]]', ConfigInvalid, "both"),
        ("[[stages]]\ntask = 'pose'", ConfigInvalid, "None"),
        ("[[stages]]\nfile = 3", ConfigInvalid, "3"),
        ("[[stages]]\nfile = 'x.onnx'", ConfigInvalid, "x.onnx"),
        ("[[stages]]\nfile = 'a.csv'", ModelUnreadable, "a.csv"),
        ("[[stages]]\nfile = 'a.onnx'\nsensitivity = 1", ConfigInvalid, "sensitivity"),
        (STAGE.format(file="a.onnx", labels="x.txt"), ConfigInvalid, "x.txt"),
        ("[[stages]]\nfile = 'a.onnx'", SpecIncomplete, "a.onnx"),
        (STAGE.format(file="a.onnx", labels="a.csv") + "thresholds.score = 2", ConfigInvalid, "score"),
    ],
)
def test_stages_that_do_not_fit_the_bundle_are_refused(
    make_onnx: Maker, toml: str, error: type[EdgeferryError], says: str
) -> None:
    files = make_two(make_onnx) | {"spec.toml": toml.encode()}
    with pytest.raises(error, match=says):
        make_bundle_spec(files, files.__getitem__)


def test_several_models_without_stages_are_told_how_to_go_together(make_onnx: Maker) -> None:
    files = make_two(make_onnx) | {"spec.toml": b""}
    with pytest.raises(BundleIncomplete, match=r"\[\[stages\]\] in spec\.toml"):
        make_bundle_spec(files, files.__getitem__)
