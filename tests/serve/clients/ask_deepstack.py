"""deepstack-python, unmodified, on a server: prints what it made of the answers as JSON.

Arguments: port, token, custom model, picture. Runs in the environment `vision-clients`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from deepstack import core

port, token, model, path = sys.argv[1:]
picture = Path(path).read_bytes()
place = {"ip": "127.0.0.1", "port": int(port), "min_confidence": 0.3}
found = core.DeepstackObject(api_key=token, **place).detect(picture)
custom = core.DeepstackObject(api_key=token, custom_model=model, **place).detect(picture)
said = {
    "detection": found,
    "custom": custom,
    "labels": core.get_objects(found),
    "sure": core.DeepstackObject(api_key=token, **{**place, "min_confidence": 1}).detect(picture),
}
for name, ask in (
    ("wrong token", lambda: core.DeepstackObject(api_key=token + "x", **place).detect(picture)),
    ("wrong model", lambda: core.DeepstackObject(api_key=token, custom_model="other", **place).detect(picture)),
    ("no faces", lambda: core.DeepstackFace(api_key=token, **place).detect(picture)),
):
    try:
        ask()
    except core.DeepstackException as error:
        said[name] = str(error)
print(json.dumps(said))
