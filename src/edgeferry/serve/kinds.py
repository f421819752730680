"""Which of the active models is meant by a route that says what it wants found, but names no model.

Rules:
- The default model where it fits; else the only active one that fits; else the choices are named.
- A kind knows ranks: models of the first rank that has any are the ones that fit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from edgeferry.errors import ModelAmbiguous, ModelNotFound, RequestInvalid
from edgeferry.model.stored import StoredVersion
from edgeferry.serve.slots import ServedModel, Slots

_OBJECT_TASKS = frozenset({"detection", "pose", "landmarks"})
_FACE_FAMILIES = frozenset({"ultraface", "blazeface", "face_landmarks"})
Fits = Callable[[StoredVersion], bool]


@dataclass(frozen=True, slots=True)
class Kind:
    """What a route wants found, in words, and which versions find it, best fit first."""

    words: str
    ranks: tuple[Fits, ...]


def finds_objects(version: StoredVersion) -> bool:
    """Whether some stage finds things with boxes."""
    return any(stage.task in _OBJECT_TASKS for stage in version.spec.stages)


def finds_classes(version: StoredVersion) -> bool:
    """Whether the picture as a whole is classified."""
    return not finds_objects(version) and version.spec.stages[-1].task == "classification"


def finds_faces(version: StoredVersion) -> bool:
    """Whether faces are what it finds: by its family, its only label, or its name."""
    first = version.spec.stages[0]
    names = tuple(name.strip().lower() for name in first.labels.names)
    told = first.answer.family in _FACE_FAMILIES or names in (("face",), ("background", "face"))
    return finds_objects(version) and (told or "face" in version.model)


def finds_other_objects(version: StoredVersion) -> bool:
    """Whether it is a detector of things in general."""
    return version.spec.stages[-1].task == "detection" and not finds_faces(version)


OBJECTS = Kind("objects", (finds_other_objects, finds_objects))
FACES = Kind("faces", (finds_faces,))
CLASSES = Kind("classes of the whole picture", (finds_classes,))
ANYTHING = Kind("objects or classes", (lambda version: finds_objects(version) or finds_classes(version),))


def pick_fitting(slots: Slots, kind: Kind, names: Sequence[str] = ()) -> str:
    """The model that answers; the first of `names` (`name` or `name@version`) that is active, if any, goes before all.

    Empty where nothing is active, or the default model is not yet: `infer` says so.

    Raises:
        ModelAmbiguous: several fit. ModelNotFound: none does.
        RequestInvalid: the one that is named finds neither objects nor classes.
    """
    models = slots.get_models()
    named = next((name for name in names if name.partition("@")[0] in models), "")
    if named:
        return pick_named(slots, named)
    default = slots.default_model
    if not models or (default and default not in models):
        return ""
    fitting = _list_fitting(kind, models)
    return default if default in fitting else _require_one(fitting, kind, models)


def pick_named(slots: Slots, name: str) -> str:
    """`name` as it is; raises RequestInvalid when that model finds neither objects nor classes."""
    served = slots.get_models().get(name.partition("@")[0])
    if served is not None and not any(fits(served.version) for fits in ANYTHING.ranks):
        words = f"expected a model that finds {ANYTHING.words}, found {served.version}: ask it through predict"
        raise RequestInvalid(words)
    return name


def list_fitting(slots: Slots, kind: Kind) -> list[str]:
    """The active models that fit, by name."""
    return _list_fitting(kind, slots.get_models())


def _list_fitting(kind: Kind, models: Mapping[str, ServedModel]) -> list[str]:
    ranked = ([name for name, served in models.items() if fits(served.version)] for fits in kind.ranks)
    return next((found for found in ranked if found), [])


def _require_one(fitting: Sequence[str], kind: Kind, models: Mapping[str, ServedModel]) -> str:
    if not fitting:
        raise ModelNotFound(f"no active model finds {kind.words}; active: {', '.join(models)}")
    if len(fitting) > 1:
        raise ModelAmbiguous(f"several active models find {kind.words}: {', '.join(fitting)}")
    return fitting[0]
