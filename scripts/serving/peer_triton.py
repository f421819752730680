"""Triton's Python back end, with the picture as the bytes of a tensor."""

import os
import sys

sys.path[:0] = os.environ["PEER_PATH"].split(os.pathsep)

import numpy as np  # noqa: E402 - the server's own Python has only what is put before it
import triton_python_backend_utils as triton  # noqa: E402


class TritonPythonModel:
    """One model."""

    def initialize(self, _: dict) -> None:
        """Loads it."""
        from pipeline import Pipeline

        self.pipeline = Pipeline()

    def execute(self, requests: list) -> list:
        """What was found, a request at a time."""
        return [triton.InferenceResponse([self.answer(request)]) for request in requests]

    def answer(self, request: object) -> object:
        """What was found in one picture."""
        picture = triton.get_input_tensor_by_name(request, "picture").as_numpy()
        return triton.Tensor("found", np.array([self.pipeline(picture.tobytes())], dtype=object))
