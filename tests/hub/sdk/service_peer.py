"""azure-iot-hub as a peer: one call for each line of stdin, its outcome as one JSON object a line.

Usage: service_peer.py CONNECTION_STRING; each line is a JSON list: name of a call below, then its arguments.
A refused call prints {"refused": HTTP status, "code": the iothub-errorcode header}.
"""

import json
import sys

from azure.iot.hub import IoTHubConfigurationManager, IoTHubRegistryManager
from azure.iot.hub.models import (
    AuthenticationMechanism,
    CloudToDeviceMethod,
    Configuration,
    ConfigurationContent,
    ConfigurationMetrics,
    ConfigurationQueriesTestInput,
    ExportImportDevice,
    QuerySpecification,
    SymmetricKey,
    Twin,
    TwinProperties,
)
from msrest.exceptions import HttpOperationError

manager = IoTHubRegistryManager.from_connection_string(sys.argv[1])
configurations = IoTHubConfigurationManager.from_connection_string(sys.argv[1])


def make_twin(desired=None, tags=None):
    return Twin(properties=TwinProperties(desired=desired) if desired is not None else None, tags=tags)


# --- identities -------------------------------------------------------------------------------------------------------
def add_device(device, key):
    return manager.create_device_with_sas(device, key, key, "enabled")


def add_edge_device(device, key, reason):
    return manager.create_device_with_sas(device, key, key, "disabled", iot_edge=True, status_reason=reason)


def add_device_with_x509(device, thumbprint):
    return manager.create_device_with_x509(device, thumbprint, thumbprint, "enabled")


def add_module(device, module, key):
    return manager.create_module_with_sas(device, module, "me", key, key)


def update_device(device, etag, key, status):
    return manager.update_device_with_sas(device, etag, key, key, status)


def update_module(device, module, etag, key):
    return manager.update_module_with_sas(device, module, "another", etag, key, key)


def bulk(rows):
    return manager.bulk_create_or_update_devices([make_bulk_device(**row) for row in rows])


def make_bulk_device(key=None, **fields):
    if key:
        pair = SymmetricKey(primary_key=key, secondary_key=key)
        fields["authentication"] = AuthenticationMechanism(type="sas", symmetric_key=pair)
    return ExportImportDevice(**fields)


# --- twins, methods, queries ------------------------------------------------------------------------------------------
def update(device, module, desired, etag):
    return manager.update_module_twin(device, module, make_twin(desired), etag)


def replace(device, module, desired, etag):
    return manager.replace_module_twin(device, module, make_twin(desired), etag)


def update_device_twin(device, desired, etag):
    return manager.update_twin(device, make_twin(desired), etag)


def replace_device_twin(device, desired, tags, etag):
    return manager.replace_twin(device, make_twin(desired, tags), etag)


def tag(device, tags):
    return manager.update_twin(device, make_twin(tags=tags))


def tag_module(device, module, tags):
    return manager.update_module_twin(device, module, make_twin(tags=tags))


def call(device, module, name, payload, *times):
    fields = dict(zip(("response_timeout_in_seconds", "connect_timeout_in_seconds"), times, strict=False))
    method = CloudToDeviceMethod(method_name=name, payload=payload, **fields)
    if module is None:
        return manager.invoke_device_method(device, method)
    return manager.invoke_device_module_method(device, module, method)


def query(text):
    return manager.query_iot_hub(QuerySpecification(query=text)).items


def page(text, token, count):
    found = manager.query_iot_hub(QuerySpecification(query=text), token, count)
    return {"type": found.type, "token": found.continuation_token, "items": plain(found.items)}


# --- configurations ---------------------------------------------------------------------------------------------------
def make_configuration(fields):
    content, metrics = fields.pop("content", None), fields.pop("metrics", None)
    return Configuration(
        content=None if content is None else ConfigurationContent(**content),
        metrics=None if metrics is None else ConfigurationMetrics(queries=metrics),
        **fields,
    )


def add_configuration(fields):
    return configurations.create_configuration(make_configuration(fields))


def update_configuration(fields, etag):
    return configurations.update_configuration(make_configuration(fields), etag)


def test_queries(condition, metrics):
    asked = ConfigurationQueriesTestInput(target_condition=condition, custom_metric_queries=metrics)
    return configurations.test_configuration_queries(asked)


def apply_content(device, content):
    return configurations.apply_configuration_on_edge_device(device, ConfigurationContent(**content))


CALLS = {
    "add_device": add_device,
    "add_edge_device": add_edge_device,
    "add_device_with_x509": add_device_with_x509,
    "add_module": add_module,
    "update_device": update_device,
    "update_module": update_module,
    "bulk": bulk,
    "get_device": manager.get_device,
    "get_module": manager.get_module,
    "get_devices": manager.get_devices,
    "get_modules": manager.get_modules,
    "delete_device": manager.delete_device,
    "delete_module": manager.delete_module,
    "get_twin": manager.get_twin,
    "get_module_twin": manager.get_module_twin,
    "update": update,
    "replace": replace,
    "update_device_twin": update_device_twin,
    "replace_device_twin": replace_device_twin,
    "tag": tag,
    "tag_module": tag_module,
    "call": call,
    "query": query,
    "page": page,
    "statistics": manager.get_device_registry_statistics,
    "service_statistics": manager.get_service_statistics,
    "add_configuration": add_configuration,
    "update_configuration": update_configuration,
    "get_configuration": configurations.get_configuration,
    "get_configurations": configurations.get_configurations,
    "delete_configuration": configurations.delete_configuration,
    "test_queries": test_queries,
    "apply": apply_content,
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
