"""What a compiled pipeline says, one piece at a time: order, arguments, conditions, command lines.

It reads the very YAML that Kubeflow gets, so a laptop cannot run another graph. What it does not know is an error:
nothing is skipped because it was not understood.
"""

import json
import re
from collections.abc import Iterator, Mapping
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

from cdrl.errors import JobFailed

__all__ = ["arguments", "command_line", "executor_of", "holds", "is_last", "leaves", "ordered", "outputs_of"]

Tree = Mapping[str, Any]
INPUT = re.compile(r"\{\{\$\.inputs\.parameters\['([^']+)'\]\}\}")
OUTPUT = re.compile(r"\{\{\$\.outputs\.(parameters|artifacts)\['([^']+)'\]\.(?:output_file|path)\}\}")
CONDITION = re.compile(
    r"(?P<no>!\()?(?P<int>int\()?inputs\.parameter_values\['(?P<name>[^']+)'\](?(int)\))"
    r" (?P<sign>==|!=|>|<|>=|<=) (?:'(?P<text>[^']*)'|(?P<number>-?\d+))(?(no)\))"
)
SIGNS = {
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    ">": lambda a, b: a > b,
    "<": lambda a, b: a < b,
    ">=": lambda a, b: a >= b,
    "<=": lambda a, b: a <= b,
}


def ordered(dag: Tree) -> list[str]:
    """Task names, each after those that it depends on; of free ones in the order of their names."""
    tasks = dag["tasks"]
    waiting = TopologicalSorter({name: tasks[name].get("dependentTasks", ()) for name in sorted(tasks)})
    return list(waiting.static_order())


def is_last(task: Tree) -> bool:
    """Whether it runs whatever became of what it follows: an exit handler's."""
    return bool(task.get("triggerPolicy", {}).get("strategy") == "ALL_UPSTREAM_TASKS_COMPLETED")


def executor_of(spec: Tree, task: Tree) -> Tree | None:
    """The container of a task; None: it is a graph."""
    component = spec["components"][task["componentRef"]["name"]]
    if "dag" in component:
        return None
    container: Tree = spec["deploymentSpec"]["executors"][component["executorLabel"]]["container"]
    return container


def outputs_of(spec: Tree, task: Tree) -> dict[str, Tree]:
    """`parameters` and `artifacts` of a task's component: name -> type."""
    found = spec["components"][task["componentRef"]["name"]].get("outputDefinitions", {})
    return {kind: found.get(kind, {}) for kind in ("parameters", "artifacts")}


def leaves(spec: Tree, dag: Tree | None = None) -> Iterator[str]:
    """Names of all steps in their order, those behind conditions as well."""
    dag = spec["root"]["dag"] if dag is None else dag
    for name in ordered(dag):
        task = dag["tasks"][name]
        inner = spec["components"][task["componentRef"]["name"]].get("dag")
        if inner is None:
            yield name
        else:
            yield from leaves(spec, inner)


def arguments(task: Tree, given: Tree, done: Mapping[str, Tree]) -> dict[str, Any]:
    """A task's inputs from its graph's own (`given`), the outputs of tasks before it (`done`), and constants.

    Raises:
        JobFailed: an input comes from where nothing is.
    """
    values = {}
    for name, source in task.get("inputs", {}).get("parameters", {}).items():
        match source:
            case {"componentInputParameter": key} if key in given:
                values[name] = given[key]
            case {"taskOutputParameter": {"producerTask": before, "outputParameterKey": key}} if key in done.get(
                before, {}
            ):
                values[name] = done[before][key]
            case {"runtimeValue": {"constant": constant}}:
                values[name] = constant
            case _:
                raise JobFailed(f"task {task['taskInfo']['name']}: its input {name} comes from {source}: nothing there")
    return {name: _filled(value, values) if isinstance(value, str) else value for name, value in values.items()}


def holds(task: Tree, values: Tree) -> bool:
    """Whether a task's condition is true; so it is where it has none.

    Raises:
        JobFailed: the condition asks for what is not known, or in words that are not known.
    """
    text = task.get("triggerPolicy", {}).get("condition")
    if text is None:
        return True
    found = CONDITION.fullmatch(text)
    if found is None or found["name"] not in values:
        name = task["taskInfo"]["name"]
        raise JobFailed(f"task {name}: the condition `{text}` cannot be answered; nothing is skipped")
    value = values[found["name"]]
    if found["int"]:
        value = int(value)
    wanted = found["text"] if found["number"] is None else int(found["number"])
    return bool(SIGNS[found["sign"]](value, wanted)) != bool(found["no"])


def command_line(container: Tree, values: Tree, places: Mapping[str, Path], types: Tree) -> list[str]:
    """A container's command with its inputs and the files of its outputs filled in.

    Args:
        places: output -> file; `""` -> where Kubeflow's own code leaves what it has to say.
        types: output artifact -> its schema.
    """
    told = {
        "inputs": {"parameterValues": dict(values)},
        "outputs": {
            "artifacts": {
                name: {"artifacts": [{"name": name, "type": kind, "uri": str(places[name]), "metadata": {}}]}
                for name, kind in types.items()
            },
            "outputFile": str(places[""]),
        },
    }
    parts = [*container.get("command", ()), *container.get("args", ())]
    filled = [_filled(part, values).replace("{{$}}", json.dumps(told)) for part in parts]
    return [OUTPUT.sub(lambda match: str(places[match[2]]), part) for part in filled]


def _filled(text: str, values: Tree) -> str:
    return INPUT.sub(lambda match: _text(values[match[1]]), text)


def _text(value: Any) -> str:
    """As Kubeflow's launcher writes it: 3, not 3.0; true, not True."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
