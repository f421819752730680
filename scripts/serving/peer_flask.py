"""Flask, as guides write it (PER_REQUEST=1: the model is loaded for each request) or loaded once, for gunicorn."""

import os

from flask import Flask, Response, request
from pipeline import Pipeline

app = Flask(__name__)
per_request = os.environ.get("PER_REQUEST") == "1"
loaded = None if per_request else Pipeline()


@app.post("/score")
def score() -> Response:
    """A picture in, what was found out."""
    pipeline = loaded or Pipeline()
    return Response(pipeline(request.get_data()), mimetype="application/json")


if __name__ == "__main__":
    app.run("127.0.0.1", int(os.environ["PORT"]), threaded=True)
