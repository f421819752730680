"""azure-iot-hub as a peer: one call for each line of stdin, its outcome as one JSON object a line.

Usage: service_peer.py CONNECTION_STRING; each line is a JSON list: name of a call below, then its arguments.
A refused call prints {"refused": HTTP status, "code": the iothub-errorcode header}.
"""

import json
import sys

from azure.iot.hub import IoTHubRegistryManager
from azure.iot.hub.models import CloudToDeviceMethod, QuerySpecification, Twin, TwinProperties
from msrest.exceptions import HttpOperationError

manager = IoTHubRegistryManager.from_connection_string(sys.argv[1])


def make_twin(desired=None, tags=None):
    return Twin(properties=TwinProperties(desired=desired) if desired is not None else None, tags=tags)


def add_device(device, key):
    return manager.create_device_with_sas(device, key, key, "enabled")


def add_module(device, module, key):
    return manager.create_module_with_sas(device, module, "me", key, key)


def update(device, module, desired, etag):
    return manager.update_module_twin(device, module, make_twin(desired), etag)


def replace(device, module, desired, etag):
    return manager.replace_module_twin(device, module, make_twin(desired), etag)


def tag(device, tags):
    return manager.update_twin(device, make_twin(tags=tags))


def call(device, module, name, payload, timeout):
    method = CloudToDeviceMethod(method_name=name, payload=payload, response_timeout_in_seconds=timeout)
    return manager.invoke_device_module_method(device, module, method)


def query(text):
    return manager.query_iot_hub(QuerySpecification(query=text)).items


def disable(device, etag, key):
    return manager.update_device_with_sas(device, etag, key, key, "disabled")


CALLS = {
    "add_device": add_device,
    "add_module": add_module,
    "get_device": manager.get_device,
    "get_module": manager.get_module,
    "get_devices": manager.get_devices,
    "get_modules": manager.get_modules,
    "get_twin": manager.get_twin,
    "get_module_twin": manager.get_module_twin,
    "update": update,
    "replace": replace,
    "tag": tag,
    "call": call,
    "query": query,
    "disable": disable,
    "delete_device": manager.delete_device,
    "delete_module": manager.delete_module,
    "statistics": manager.get_device_registry_statistics,
    "service_statistics": manager.get_service_statistics,
}


def plain(value):
    if isinstance(value, list):
        return [plain(one) for one in value]
    return value.serialize(keep_readonly=True) if hasattr(value, "serialize") else value


print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    name, *arguments = json.loads(line)
    try:
        print(json.dumps({"result": plain(CALLS[name](*arguments))}), flush=True)
    except HttpOperationError as error:
        headers = error.response.headers
        facts = {"refused": error.response.status_code, "code": headers.get("iothub-errorcode")}
        print(json.dumps({"result": facts}), flush=True)
