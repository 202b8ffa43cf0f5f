"""What `kubectl kustomize` makes of a folder, for the part of kustomize that infra/ uses; anything else is refused."""

from pathlib import Path
from typing import Any

import yaml

__all__ = ["Document", "built", "named", "read"]

Document = dict[str, Any]

PARTS = {"apiVersion", "kind", "namespace", "resources", "configMapGenerator", "patches", "images"}
BY_NAME = {"containers", "initContainers", "env", "volumes"}  # lists that a patch merges; it replaces all others


def read(path: Path) -> list[Document]:
    """The documents of a file, none sharing a part with another as YAML's anchors would have it."""
    documents = yaml.load_all(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return [each for each in map(_unshared, documents) if each]


def named(document: Document) -> str:
    """Kind and name, as kubectl says them."""
    return f"{document['kind']}/{document['metadata']['name']}"


def built(folder: Path) -> list[Document]:
    """Every document of a kustomization, its patches, images and namespace put in.

    Raises:
        ValueError: the kustomization asks for something that is not read here, or patches what is not there.
    """
    plan = yaml.safe_load((folder / "kustomization.yaml").read_text())
    if unknown := set(plan) - PARTS:
        raise ValueError(f"{folder}: {sorted(unknown)} is not read here, only {sorted(PARTS)}")
    documents: list[Document] = []
    for name in plan["resources"]:
        path = folder / name
        documents += built(path) if path.is_dir() else read(path)
    for generator in plan.get("configMapGenerator", []):
        documents.append(_config_map(folder, generator))
    for patch in plan.get("patches", []):
        if set(patch) != {"path"}:
            raise ValueError(f"{folder}: a patch is a file here, got {sorted(patch)}")
        for change in read(folder / patch["path"]):
            _merge(_target(documents, change, folder), change)
    for image in plan.get("images", []):
        for document in documents:
            _rename(document, image)
    for document in documents:
        if document["kind"] != "Namespace":
            document["metadata"]["namespace"] = plan["namespace"]
    return documents


def _config_map(folder: Path, generator: dict[str, Any]) -> Document:
    if generator.get("options") != {"disableNameSuffixHash": True}:
        raise ValueError(f"{folder}: {generator['name']}: a hash in the name is not read here")
    data = {name: (folder / name).read_text() for name in generator["files"]}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": generator["name"]}, "data": data}


def _target(documents: list[Document], change: Document, folder: Path) -> Document:
    found = [each for each in documents if named(each) == named(change) and each["apiVersion"] == change["apiVersion"]]
    if len(found) != 1:
        raise ValueError(f"{folder}: a patch of {named(change)}, which stands there {len(found)} times")
    return found[0]


def _merge(into: dict[str, Any], change: dict[str, Any]) -> None:
    for key, value in change.items():
        if value is None:
            into.pop(key, None)
        elif isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        elif key in BY_NAME and isinstance(value, list):
            there = {each["name"]: each for each in into.setdefault(key, [])}
            for each in value:
                if each["name"] in there:
                    _merge(there[each["name"]], each)
                else:
                    into[key].append(each)
        else:
            into[key] = value


def _rename(tree: Any, image: dict[str, str]) -> None:
    if isinstance(tree, list):
        for each in tree:
            _rename(each, image)
    if isinstance(tree, dict):
        for each in (*tree.get("containers", []), *tree.get("initContainers", [])):
            if each["image"].split("@")[0].split(":")[0] == image["name"]:
                name = image.get("newName", image["name"])
                tag = f":{image['newTag']}" if "newTag" in image else ""
                each["image"] = f"{name}{tag}@{image['digest']}" if "digest" in image else f"{name}{tag}"
        for value in tree.values():
            _rename(value, image)


def _unshared(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _unshared(value) for key, value in tree.items()}
    return [_unshared(each) for each in tree] if isinstance(tree, list) else tree
