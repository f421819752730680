"""LitServe, with the picture as a file of a form."""

import os

import litserve
from pipeline import Pipeline


class Served(litserve.LitAPI):
    """One model."""

    def setup(self, device: str) -> None:
        """Loads it."""
        self.pipeline = Pipeline()

    def decode_request(self, request):
        """The picture of a form."""
        return request["image"].file.read()

    def predict(self, picture: bytes) -> object:
        """What was found."""
        return self.pipeline.find(picture)

    def encode_response(self, found: object) -> dict[str, object]:
        """As JSON."""
        return {"predictions": found}


if __name__ == "__main__":
    litserve.LitServer(Served(api_path="/score"), accelerator="cpu", workers_per_device=2).run(
        host="127.0.0.1", port=int(os.environ["PORT"]), generate_client_file=False, log_level="warning"
    )
