"""MLServer's custom runtime, with the picture as a base64 element of a v2 request."""

from mlserver import MLModel
from mlserver.codecs import StringCodec
from mlserver.codecs.base64 import Base64Codec
from mlserver.types import InferenceRequest, InferenceResponse
from pipeline import Pipeline


class Served(MLModel):
    """One model."""

    async def load(self) -> bool:
        """Loads it."""
        self.pipeline = Pipeline()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """What was found."""
        picture = Base64Codec.decode_input(payload.inputs[0])[0]
        found = StringCodec.encode_output("found", [self.pipeline(picture).decode()])
        return InferenceResponse(model_name=self.name, model_version=self.version, outputs=[found])
