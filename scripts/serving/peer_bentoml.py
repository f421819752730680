"""BentoML, with the picture as the body."""

from pathlib import Path

import bentoml


@bentoml.service(workers=2, traffic={"timeout": 60})
class Served:
    """One model."""

    def __init__(self) -> None:
        from pipeline import Pipeline

        self.pipeline = Pipeline()

    @bentoml.api(route="/score")
    def score(self, image: Path, /) -> dict:
        """What was found."""
        return {"predictions": self.pipeline.find(image.read_bytes())}
