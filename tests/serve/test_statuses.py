"""Errors as HTTP answers: complete over the tree, stable, and without what is nobody's business."""

from __future__ import annotations

import json

import pytest

from edgeferry import errors
from edgeferry.serve.statuses import RETRY_AFTER_S, STATUSES, get_status, make_error_response

LEAVES = list(errors.find_leaves())


def test_every_branch_but_the_callers_has_a_row_and_each_of_the_callers_leaves_has_its_own() -> None:
    branches = set(errors.EdgeferryError.__subclasses__()) - {errors.RequestError}
    assert branches | set(errors.find_leaves(errors.RequestError)) <= set(STATUSES)


@pytest.mark.parametrize("leaf", LEAVES, ids=lambda leaf: leaf.__name__)
def test_every_leaf_becomes_an_answer_with_its_code_and_advice(leaf: type[errors.EdgeferryError]) -> None:
    response = make_error_response(leaf("expected this, found /that", path="/secret"))
    error = json.loads(bytes(response.body))["error"]
    assert response.status_code == get_status(leaf) >= 400
    assert (error["code"], error["advice"]) == (leaf.code, leaf.advice)
    for_callers = issubclass(leaf, errors.RequestError | errors.ProtocolError | errors.NameInvalid)
    assert (error["message"] == "expected this, found /that") == for_callers
    assert "/secret" not in str(error)
    assert ("retry-after" in response.headers) == (response.status_code == 503)


def test_statuses_are_those_of_the_contract() -> None:
    expected = {
        errors.PictureUnreadable: 400,
        errors.Unauthorised: 401,
        errors.Forbidden: 403,
        errors.ModelNotFound: 404,
        errors.ModelAmbiguous: 409,
        errors.BodyTooLarge: 413,
        errors.PictureTooLarge: 413,
        errors.MediaTypeRefused: 415,
        errors.QueueFull: 503,
        errors.ModelNotReady: 503,
        errors.WorkerLost: 503,
    }
    assert {leaf: get_status(leaf) for leaf in expected} == expected


def test_every_503_has_a_time_to_come_again() -> None:
    assert {leaf for leaf in LEAVES if get_status(leaf) == 503} == set(RETRY_AFTER_S)
