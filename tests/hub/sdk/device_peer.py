"""azure-iot-device as a peer: does what it is told on stdin, prints what happens, one JSON object a line.

Usage: device_peer.py string CONNECTION_STRING CA_FILE [TOKEN_SECONDS | websockets] | device_peer.py edge
Words on stdin: twin, report JSON, output NAME JSON, plain JSON, quit.
"""

import json
import logging
import sys
import threading
from pathlib import Path

from azure.iot.device import IoTHubDeviceClient, IoTHubModuleClient, Message, MethodResponse

logging.disable(logging.CRITICAL)
lock = threading.Lock()


def say(**facts):
    with lock:
        print(json.dumps(facts), flush=True)


def make_client():
    if sys.argv[1] == "edge":
        return IoTHubModuleClient.create_from_edge_environment()
    kind = IoTHubModuleClient if "ModuleId=" in sys.argv[2] else IoTHubDeviceClient
    options = {"connection_retry_interval": 1}
    for word in sys.argv[4:]:
        options.update({"websockets": True} if word == "websockets" else {"sastoken_ttl": int(word)})
    ca = Path(sys.argv[3]).read_text()
    return kind.create_from_connection_string(sys.argv[2], server_verification_cert=ca, **options)


def on_method(request):
    say(method=request.name, payload=request.payload)
    client.send_method_response(MethodResponse.create_from_method_request(request, 207, {"echo": request.payload}))


def on_message(message):
    properties = dict(message.custom_properties)
    say(input=message.input_name, body=message.data.decode(), properties=properties, message_id=message.message_id)


def send(text, output=None):
    message = Message(text, content_encoding="utf-8", content_type="application/json")
    message.message_id = "mid-1"
    message.custom_properties["colour"] = "a+b c/ä"
    client.send_message_to_output(message, output) if output else client.send_message(message)


client = make_client()
client.on_connection_state_change = lambda: say(connected=client.connected)
try:
    client.connect()
except Exception as error:  # noqa: BLE001 - whatever the SDK raises is what the test wants to see
    say(failed=type(error).__name__)
    sys.exit(0)
client.on_twin_desired_properties_patch_received = lambda patch: say(patch=patch)
client.on_method_request_received = on_method
if isinstance(client, IoTHubModuleClient):
    client.on_message_received = on_message
say(ready=True)
for line in sys.stdin:
    word, _, rest = line.strip().partition(" ")
    try:
        if word == "twin":
            say(twin=client.get_twin())
        elif word == "report":
            client.patch_twin_reported_properties(json.loads(rest))
            say(reported=True)
        elif word == "output":
            name, _, text = rest.partition(" ")
            send(text, name)
            say(sent=name)
        elif word == "plain":
            send(rest)
            say(sent="plain")
        elif word == "quit":
            client.shutdown()
            say(ended=True)
            break
    except Exception as error:  # noqa: BLE001
        say(failed=type(error).__name__, why=str(error))
