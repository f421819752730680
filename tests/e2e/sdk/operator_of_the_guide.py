"""What the guide's operator script does, with the unmodified azure-iot-hub SDK. Runs in that SDK's own environment.

python operator_of_the_guide.py set DEVICE MODULE FILE_NAME URL MD5    -> {"version": n}
python operator_of_the_guide.py wait DEVICE MODULE FILE_NAME           -> {"reported": {...}}
"""

import json
import os
import sys
import time

from azure.iot.hub import IoTHubRegistryManager
from azure.iot.hub.models import Twin, TwinProperties


def set_fields(registry, device, module, fields):
    twin = registry.get_module_twin(device, module)
    desired = {key: value for key, value in fields.items() if value}
    patch = Twin(properties=TwinProperties(desired=desired))
    changed = registry.update_module_twin(device, module, patch, twin.etag)
    return {"version": changed.properties.desired["$version"]}


def wait_reported(registry, device, module, file_name):
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        reported = registry.get_module_twin(device, module).properties.reported
        if reported.get("LatestAIModelFileName") == file_name:
            return {"reported": reported}
        time.sleep(0.3)
    raise SystemExit(f"LatestAIModelFileName never became {file_name}: {reported}")


def main():
    registry = IoTHubRegistryManager(os.environ["SERVICE_CONNECTION_STRING"])
    what, device, module, *rest = sys.argv[1:]
    if what == "set":
        fields = dict(zip(("FileName", "DownloadUrl", "ContentMD5"), rest, strict=False))
        print(json.dumps(set_fields(registry, device, module, fields)))
    else:
        print(json.dumps(wait_reported(registry, device, module, rest[0])))


main()
