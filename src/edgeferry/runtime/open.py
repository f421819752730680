"""open: a model file -> a session, by its extension. The engine is imported here and not before.

Rules:
- `.tflite` goes to LiteRT, `.onnx` to ONNX Runtime; another extension is ModelUnsupported.
- An engine that is not installed is ToolMissing, naming the extra.
"""

from __future__ import annotations

from pathlib import Path

from edgeferry.errors import ModelUnreadable, ModelUnsupported, ToolMissing
from edgeferry.runtime.session import Engine, EngineSettings, Session


def load_engine(file_name: str) -> Engine:
    """Imports the engine for a model file; raises ModelUnsupported or ToolMissing."""
    extension = Path(file_name).suffix.lower()
    try:
        if extension == ".onnx":
            from edgeferry.runtime.onnx import open_onnx

            return open_onnx
        if extension == ".tflite":
            from edgeferry.runtime.litert import open_litert

            return open_litert
    except ImportError as error:
        extra = "onnx" if extension == ".onnx" else "litert"
        raise ToolMissing(f"the engine for {extension} is not installed (edgeferry[{extra}]): {error}") from error
    raise ModelUnsupported(f"expected a model file .onnx or .tflite, found {file_name!r:.80}")


def open_session(path: Path, settings: EngineSettings) -> Session:
    """Loads a model file.

    Raises:
        ModelUnreadable: missing, damaged, or of a form that its engine does not take.
        ModelUnsupported, ToolMissing: see `load_engine`.
    """
    engine = load_engine(path.name)
    if not path.is_file():
        raise ModelUnreadable(f"expected the model file {path.name}, found none")
    return engine(path, settings)
