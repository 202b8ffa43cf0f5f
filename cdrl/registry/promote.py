"""Move the alias `champion`, if the gate lets the candidate pass."""

from cdrl.errors import GateFailed, RegistryError
from cdrl.registry.gates import Decision, decide
from cdrl.registry.versions import CHAMPION, Registry, Version
from cdrl.tracking import server

__all__ = ["promote"]


def promote(registry: Registry, name: str, version: str = "latest") -> tuple[Version, Decision]:
    """Make a version (a number, `latest`, or the run that made it) the champion; the verdict stays on it either way.

    Raises:
        GateFailed: the gate refused it, with the reasons; the champion stays.
        RegistryError: there is no such version.
    """
    candidate = registry.find(f"{name}/{version}")
    champion = next((one for one in registry.versions(name) if CHAMPION in one.aliases), None)
    decision = _decide(candidate, champion)
    verdict = f"{'passed' if decision.passed else 'refused'}: {'; '.join(decision.reasons)}"
    with server.translated(registry.uri, RegistryError):
        registry.client.set_model_version_tag(name, str(candidate.number), "cdrl.gate", verdict)
        if decision.passed:
            registry.client.set_registered_model_alias(name, CHAMPION, str(candidate.number))
    if not decision.passed:
        raise GateFailed(f"{name} version {candidate.number} was not promoted: {'; '.join(decision.reasons)}")
    return registry.find(f"{name}/{candidate.number}"), decision


def _decide(candidate: Version, champion: Version | None) -> Decision:
    if champion is None:
        return decide(candidate.scorecard, None)
    if champion.number == candidate.number:
        return Decision(True, ("it is the champion already",))
    if champion.scorecard is None:  # somebody moved the alias by hand
        return Decision(False, (f"the champion, version {champion.number}, has no readable score card",))
    return decide(candidate.scorecard, champion.scorecard)
