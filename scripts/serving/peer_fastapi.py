"""FastAPI on uvicorn, with a plain function, which it runs on a thread."""

from fastapi import Body, FastAPI, Response
from pipeline import Pipeline

pipeline = Pipeline()
app = FastAPI()


@app.post("/score")
def score(picture: bytes = Body(..., media_type="image/jpeg")) -> Response:
    """A picture in, what was found out."""
    return Response(pipeline(picture), media_type="application/json")
