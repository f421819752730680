"""Every error this system raises, split by who must act; the tables that say what a leaf means stand where it is used.

Rules:
- Branches are never raised, only leaves. Each leaf has a stable `code` and one sentence of `advice`.
- The message names what was expected and what was found; `values` are plain. Neither ever holds a key, SAS or token.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar


class EdgeferryError(Exception):
    """Root of the tree. `message` is one sentence; `values` are plain facts about this very case."""

    code: ClassVar[str] = ""
    advice: ClassVar[str] = ""

    def __init__(self, message: str, **values: str | int | float | bool | None) -> None:
        super().__init__(message)
        self.message = message
        self.values = values

    def to_dict(self) -> dict[str, str]:
        """The shape that APIs, the twin and `--json` show."""
        return {"code": self.code, "message": self.message, "advice": self.advice}


def find_leaves(root: type[EdgeferryError] = EdgeferryError) -> Iterator[type[EdgeferryError]]:
    """Yields every leaf class below `root`."""
    for branch in root.__subclasses__():
        yield from find_leaves(branch) if branch.__subclasses__() else (branch,)


class ConfigError(EdgeferryError):
    """A setting, argument or name is wrong. For the person who set this device or command up."""


class ConfigInvalid(ConfigError):
    code = "config_invalid"
    advice = "Correct the named setting and start again."


class NameInvalid(ConfigError):
    code = "name_invalid"
    advice = "Choose a plain name: no separators, no control characters, not too long."


class SpecIncomplete(ConfigError):
    code = "spec_incomplete"
    advice = "Add the missing fields with --spec FILE (TOML) or --labels FILE."


class TwinInvalid(ConfigError):
    code = "twin_invalid"
    advice = "Correct the desired properties; the last good ones stay in force."


class OverBudget(ConfigError):
    code = "over_budget"
    advice = "Raise --budget, publish a patch from what the devices run, or add --anyway."


class ToolMissing(ConfigError):
    code = "tool_missing"
    advice = "Install the extra or the package that the message names."


class LinkError(EdgeferryError):
    """The network or the other end did not answer as it should. For nobody: tried later."""

    retry_after_s: float | None = None


class LinkDown(LinkError):
    code = "link_down"
    advice = "Nothing to do: the transfer goes on when the link is back."


class LinkTimeout(LinkError):
    code = "link_timeout"
    advice = "Nothing to do: the transfer goes on when the link is faster."


class LinkBroken(LinkError):
    code = "link_broken"
    advice = "The answer was cut or did not fit its headers; it is fetched again."


class ServerBusy(LinkError):
    code = "server_busy"
    advice = "The server asked to wait; the transfer goes on by itself."


class ServerFailed(LinkError):
    code = "server_failed"
    advice = "Look at the server's log; the device tries again later."


class ObjectChanged(LinkError):
    code = "object_changed"
    advice = "The object changed during the download; publish a new version under a new name instead of overwriting."


class ObjectMissing(LinkError):
    code = "object_missing"
    advice = "Check that the version is published in full and the URL is right."


class CaptivePortal(LinkError):
    code = "captive_portal"
    advice = "The network answered in place of the server; log in to it, or wait."


class HubUnreachable(LinkError):
    code = "hub_unreachable"
    advice = "Nothing to do: the device serves on and connects when the hub is back."


class WindowClosed(LinkError):
    code = "window_closed"
    advice = "Nothing to do: the transfer goes on when the next window opens, as edgeferry.link.windows say."


class BudgetSpent(LinkError):
    code = "budget_spent"
    advice = "Nothing to do: the transfer goes on when the budget of edgeferry.link renews, or when it is raised."


class BudgetTooSmall(LinkError):
    code = "budget_too_small"
    advice = "If no day holds what the message names, raise the budget of edgeferry.link; else it goes on by itself."


class LinkForbidden(LinkError):
    code = "link_forbidden"
    advice = "Connect the device over another interface, or allow this one in edgeferry.link.interfaces."


class AccessError(EdgeferryError):
    """The other end knows us and says no. The right is renewed, then it is tried later."""


class AccessDenied(AccessError):
    code = "access_denied"
    advice = "Renew the SAS of the download URL (edgeferry deploy --renew-sas) or the access rights."


class HubRefused(AccessError):
    code = "hub_refused"
    advice = "Check the connection string, the device's key and its clock."


class BundleError(EdgeferryError):
    """What arrived is what was published, and it must not be used. Verified and bad: never retried."""


class BundleUnsafe(BundleError):
    code = "bundle_unsafe"
    advice = "Build the ZIP anew from plain files without paths, links or absolute names."


class BundleTooLarge(BundleError):
    code = "bundle_too_large"
    advice = "Publish a smaller bundle, or raise the device's limit if the size is meant."


class BundleUnreadable(BundleError):
    code = "bundle_unreadable"
    advice = "Build the bundle anew: it, or the part of it that the message names, cannot be read."


class BundleIncomplete(BundleError):
    code = "bundle_incomplete"
    advice = "Put the model file and, where the model carries none, its label file into the bundle."


class DigestMismatch(BundleError):
    code = "digest_mismatch"
    advice = "Publish again: the bytes are not those whose digest was announced."


class ManifestInvalid(BundleError):
    code = "manifest_invalid"
    advice = "Publish the version again with this release of the tool."


class MetadataUntrusted(BundleError):
    code = "metadata_untrusted"
    advice = "Check the repository's keys and the root pinned on this device."


class MetadataExpired(BundleError):
    code = "metadata_expired"
    advice = "Run edgeferry repo refresh for the repository, and check the device's clock."


class ClassicRefused(BundleError):
    code = "classic_refused"
    advice = "Set accept_classic on the device, or deploy the signed version."


class DeltaError(EdgeferryError):
    """A patch or a coded file does not turn into its target. The full file is fetched."""


class DeltaDamaged(DeltaError):
    code = "delta_damaged"
    advice = "A device fetches the full file instead; by hand, fetch the patch again, or make a new one."


class DeltaBaseMismatch(DeltaError):
    code = "delta_base_mismatch"
    advice = "A device fetches the full file instead; by hand, give the file that the patch was made from."


class StorageError(EdgeferryError):
    """The local disk or the blob store did not do as asked. For the person who looks after the device's disk."""


class NoSpace(StorageError):
    code = "no_space"
    advice = "Free space on the device (edgeferry device gc), or publish a smaller version."


class StorageFailed(StorageError):
    code = "storage_failed"
    advice = "Check the disk: permissions, read-only mount, hardware."


class StorageBusy(StorageError):
    code = "storage_busy"
    advice = "Another edgeferry process uses this storage folder: stop it, or choose another folder."


class StoreRefused(StorageError):
    code = "store_refused"
    advice = "Check that the container or bucket exists and that your credentials may write to it."


class ModelError(EdgeferryError):
    """The model itself cannot serve. Never retried; rolled back."""


class ModelUnreadable(ModelError):
    code = "model_unreadable"
    advice = "Export the model again; the engine cannot load this file."


class ModelUnsupported(ModelError):
    code = "model_unsupported"
    advice = "Declare the answer family in the spec, or serve the model as plain tensors."


class GoldenMismatch(ModelError):
    code = "golden_mismatch"
    advice = "Look at the training of this version: its answers are not the golden truth. The old version serves on."


class ModelCrashed(ModelError):
    code = "model_crashed"
    advice = "Try the model on a bench: its worker process died. The old version serves on."


class ProbationFailed(ModelError):
    code = "probation_failed"
    advice = "Look at the named figure, publish a version that does better; the version before serves again."


class ModelTimeout(ModelError):
    code = "model_timeout"
    advice = "Try the model on a bench: it did not load or answer in time. The old version serves on."


class RequestError(EdgeferryError):
    """What the caller sent cannot be answered. For the caller."""


class PictureUnreadable(RequestError):
    code = "picture_unreadable"
    advice = "Send a whole JPEG, PNG, BMP, WebP, TIFF or GIF picture as the body."


class PictureTooLarge(RequestError):
    code = "picture_too_large"
    advice = "Send fewer pixels or bytes, or raise the server's limit."


class BodyTooLarge(RequestError):
    code = "body_too_large"
    advice = "Send a smaller body, or raise the server's limit."


class RequestInvalid(RequestError):
    code = "request_invalid"
    advice = "Correct the request as the message says."


class MediaTypeRefused(RequestError):
    code = "media_type_refused"
    advice = "Send the picture's bytes as application/octet-stream or image/*."


class ModelNotFound(RequestError):
    code = "model_not_found"
    advice = "Ask for one of the models that the message names."


class ModelAmbiguous(RequestError):
    code = "model_ambiguous"
    advice = "Name the model in the path, or set policy.default_model."


class ModelNotReady(RequestError):
    code = "model_not_ready"
    advice = "Deploy a model to this device, or wait until it is active."


class QueueFull(RequestError):
    code = "queue_full"
    advice = "Wait as long as Retry-After says and send the request again."


class RequestTimeout(RequestError):
    code = "request_timeout"
    advice = "Send the request again; if it happens often, send fewer at a time."


class BodyTimeout(RequestError):
    code = "body_timeout"
    advice = "Send the whole body faster, or a smaller one."


class MethodRefused(RequestError):
    code = "method_refused"
    advice = "Use one of the methods that the Allow header names."


class WorkerLost(RequestError):
    code = "worker_lost"
    advice = "Send the request again: the process that served it died and is being restarted."


class Unauthorised(RequestError):
    code = "unauthorised"
    advice = "Send the token as 'Authorization: Bearer ...'."


class Forbidden(RequestError):
    code = "forbidden"
    advice = "Use a token or a network address that is allowed here."


class FetchForbidden(RequestError):
    code = "fetch_forbidden"
    advice = "Send the picture itself to /image, or name its host in picture_hosts of this device."


class NotFound(RequestError):
    code = "not_found"
    advice = "Check the path against /openapi.json."


class Conflict(RequestError):
    code = "conflict"
    advice = "Read the current state again and repeat the change on top of it."


class ProtocolError(EdgeferryError):
    """Bytes that do not follow the protocol. For the other program."""


class ProtocolViolated(ProtocolError):
    code = "protocol_violated"
    advice = "Check the version of the program at the other end."


class LimitExceeded(ProtocolError):
    code = "limit_exceeded"
    advice = "Send less: the message names the limit."


class InternalError(EdgeferryError):
    """A defect of ours."""


class InvariantBroken(InternalError):
    code = "invariant_broken"
    advice = "Report this with the log; it is a defect of edgeferry."


class WorkerStartFailed(InternalError):
    code = "worker_start_failed"
    advice = "Check memory and process limits of the device; the worker process could not be started."
