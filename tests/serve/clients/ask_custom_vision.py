"""Custom Vision's clients on a server: Microsoft's SDK, unmodified, and a camera module's plain POST; prints JSON.

Arguments: URL, token, detector, classifier, picture. Runs in the environment `vision-clients`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import requests
from azure.cognitiveservices.vision.customvision.prediction import CustomVisionPredictionClient
from msrest.authentication import ApiKeyCredentials

url, token, detector, classifier, path = sys.argv[1:]
picture = Path(path).read_bytes()
project = "8a5b2c4d-0000-4000-8000-123456789abc"


def list_predictions(prediction):
    assert prediction.id
    assert prediction.created.year >= 2024
    boxes = [each.bounding_box and each.bounding_box.as_dict() for each in prediction.predictions]
    return [[each.tag_name, each.probability, box] for each, box in zip(prediction.predictions, boxes, strict=True)]


client = CustomVisionPredictionClient(url, ApiKeyCredentials(in_headers={"Prediction-key": token}))
camera = requests.post(
    f"{url}/image",
    headers={"Content-Type": "application/octet-stream", "Ocp-Apim-Subscription-Key": token},
    params={"application": "camera"},
    data=picture,
    timeout=30,
)
camera.raise_for_status()
said = {
    "detect": list_predictions(client.detect_image(project, detector, picture)),
    "detect_nostore": list_predictions(client.detect_image_with_no_store(project, detector, picture)),
    "classify": list_predictions(client.classify_image(project, classifier, picture)),
    "other_names": list_predictions(client.classify_image(project, "Iteration7", picture)),
    "camera": camera.json(),
}
try:
    client.detect_image_url(project, detector, "http://192.0.2.1/1.jpg")
except Exception as error:  # noqa: BLE001 - whatever this SDK makes of a refusal is what the test looks at
    said["url"] = str(error)
print(json.dumps(said))
