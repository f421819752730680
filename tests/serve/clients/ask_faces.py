"""deepstack-python, unmodified: objects and faces of one picture from a server with a model of each; prints JSON.

Arguments: port, picture. Runs in the environment `vision-clients`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from deepstack import core

port, path = sys.argv[1:]
picture = Path(path).read_bytes()
place = {"ip": "127.0.0.1", "port": int(port)}
said = {"faces": core.DeepstackFace(**place).detect(picture), "objects": core.DeepstackObject(**place).detect(picture)}
print(json.dumps(said))
