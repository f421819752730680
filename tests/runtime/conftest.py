"""Versions of the fake engine: their model files are words that say what goes wrong."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from edgeferry.model.spec import AnswerSpec, InputSpec, LabelSpec, Stage
from edgeferry.model.stored import StoredVersion
from runtime.fake_engine import write_engine
from runtime.versions import MakeVersion, make_golden_file, make_picture, make_version


@pytest.fixture
def fake_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Workers of this test load `.tflite` files with the fake engine; see `fake_engine.py`."""
    folder = write_engine(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]))
    return folder


@pytest.fixture
def make_fake(tmp_path: Path, fake_engine: Path) -> MakeVersion:
    """Makes a version of the fake engine: `make_fake("run hang")`; red, green and blue are its classes."""

    def make(
        word: str = "fine -", *, labels: tuple[str, ...] = ("red", "green", "blue"), golden: bool = True
    ) -> StoredVersion:
        (tmp_path / "fake.tflite").write_text(word)
        stage = Stage(
            file="fake.tflite",
            task="classification",
            input=InputSpec(width=4, height=4, layout="nhwc", dtype="uint8"),
            answer=AnswerSpec(family="classification"),
            labels=LabelSpec(names=labels),
        )
        version = make_version(tmp_path, stage)
        sample = make_golden_file(tmp_path, make_picture("red"), "red")
        return replace(version, golden=(sample,)) if golden else version

    return make
