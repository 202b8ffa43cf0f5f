"""The bucket's policies: what the code calls is allowed, and nothing that nobody needs."""

import ast
import copy
import json
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.manifests import built

ROOT = Path(__file__).parents[2]
BUCKET = "arn:aws:s3:::cdrl"
# what a call of boto3's client asks S3 for; reading a part, a copy and a head are reading
ACTIONS = {
    "get_object": ("s3:GetObject",),
    "head_object": ("s3:GetObject",),
    "download_file": ("s3:GetObject",),
    "list_objects_v2": ("s3:ListBucket",),
    "get_paginator": ("s3:ListBucket",),
    "put_object": ("s3:PutObject",),
    "upload_fileobj": ("s3:PutObject", "s3:AbortMultipartUpload"),
    "delete_object": ("s3:DeleteObject",),
}


def policy(name: str) -> dict[str, Any]:
    return dict(json.loads((ROOT / f"infra/iam/{name}.json").read_text()))


def allows(policy: dict[str, Any], action: str, resource: str) -> bool:
    """Whether an identity with this policy may do it: allowed somewhere, and denied nowhere."""
    effects = {
        statement["Effect"]
        for statement in policy["Statement"]
        if action in statement["Action"] and any(fnmatchcase(resource, each) for each in statement["Resource"])
    }
    return effects == {"Allow"}


def problems(policy: dict[str, Any]) -> Iterator[str]:
    for statement in policy["Statement"]:
        if any("*" in action or not action.startswith("s3:") for action in statement["Action"]):
            yield f"{statement['Sid']}: actions one by one, of S3 alone"
        for resource in statement["Resource"]:
            if resource != BUCKET and not (resource.startswith(f"{BUCKET}/") and resource.count("*") == 1):
                yield f"{statement['Sid']}: {resource} is more than a folder of the bucket"
            if resource == BUCKET and statement["Action"] != ["s3:ListBucket"]:
                yield f"{statement['Sid']}: more than names of the whole bucket"
        if "NotAction" in statement or "NotResource" in statement or "Principal" in statement:
            yield f"{statement['Sid']}: says what is not meant"


@pytest.mark.parametrize("name", ["train", "prepare", "mlflow"])
def test_a_policy_is_no_wider_than_folders_of_the_bucket(name: str) -> None:
    assert policy(name)["Version"] == "2012-10-17" and list(problems(policy(name))) == []


@pytest.mark.parametrize(
    "planted",
    [
        {"Action": ["s3:*"]},
        {"Action": ["iam:PassRole"]},
        {"Resource": ["*"]},
        {"Resource": ["arn:aws:s3:::*/runs/*"]},
        {"Resource": [BUCKET]},
        {"NotAction": ["s3:GetObject"]},
    ],
)
def test_a_wider_policy_is_seen(planted: dict[str, Any]) -> None:
    wide = copy.deepcopy(policy("train"))
    wide["Statement"][1].update(planted)
    assert list(problems(wide))


def called() -> set[str]:
    """The methods of S3's client that cdrl calls."""
    found = set()
    for path in (ROOT / "cdrl").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "client()":
                found.add(node.attr)
    return found - {"exceptions"}


def test_training_may_do_with_its_runs_all_that_the_code_does() -> None:
    assert called() == set(ACTIONS), "another call of the store: say which right it takes"
    for action in sorted({each for actions in ACTIONS.values() for each in actions}):
        assert allows(policy("train"), action, BUCKET if action == "s3:ListBucket" else f"{BUCKET}/runs/first/x")
        assert allows(policy("prepare"), action, BUCKET if action == "s3:ListBucket" else f"{BUCKET}/data/cifar10/x")


@pytest.mark.parametrize(
    ("name", "action", "key", "is_allowed"),
    [
        ("train", "s3:GetObject", "data/cifar10/manifest.json", True),
        ("train", "s3:PutObject", "data/cifar10/manifest.json", False),
        ("train", "s3:DeleteObject", "data/cifar10/manifest.json", False),
        ("train", "s3:PutObject", "runs/registry/digits-1/00000001.json", True),
        ("train", "s3:DeleteObject", "runs/registry/digits-1/00000001.json", False),
        ("train", "s3:PutObject", "mlflow/1/x/artifacts/model.safetensors", True),
        ("train", "s3:DeleteObject", "mlflow/1/x/artifacts/model.safetensors", False),
        ("prepare", "s3:GetObject", "runs/first/model.json", False),
        ("mlflow", "s3:GetObject", "mlflow/1/x/artifacts/images/a.png", True),
        ("mlflow", "s3:PutObject", "mlflow/1/x/artifacts/images/a.png", False),
        ("mlflow", "s3:GetObject", "runs/first/model.json", False),
    ],
)
def test_who_may_do_what(name: str, action: str, key: str, is_allowed: bool) -> None:
    assert allows(policy(name), action, f"{BUCKET}/{key}") is is_allowed


def test_a_role_is_for_one_account_of_the_cluster() -> None:
    (statement,) = policy("trust")["Statement"]
    asked = statement["Condition"]["StringEquals"]
    assert asked["IDENTITY-PROVIDER:sub"] == "system:serviceaccount:cdrl:ACCOUNT", "no pattern: one account"
    assert asked["IDENTITY-PROVIDER:aud"] == "sts.amazonaws.com"
    roles = {
        document["metadata"]["name"]: yaml.safe_dump(document["metadata"]["annotations"])
        for document in built(ROOT / "infra/kubernetes/overlays/production")
        if document["kind"] == "ServiceAccount" and "annotations" in document["metadata"]
    }
    assert set(roles) == {"cdrl-train", "cdrl-prepare", "mlflow"}
    for account, role in roles.items():
        assert f"role/cdrl-{account.removeprefix('cdrl-')}" in role
        assert (ROOT / f"infra/iam/{account.removeprefix('cdrl-')}.json").is_file()
