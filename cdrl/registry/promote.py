"""Move the alias `champion`: forward if the gates let the candidate pass, back if somebody says so; or only ask."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

from cdrl.config import GatesConfig
from cdrl.config.resolve import override
from cdrl.errors import GateFailed, RegistryError
from cdrl.evaluation.scorer import Progress
from cdrl.model import Model
from cdrl.registry.further import further_differences
from cdrl.registry.gates import Decision, decide
from cdrl.registry.history import Chain, History, Overtaken
from cdrl.registry.proof import FOLDER
from cdrl.registry.version import GATE
from cdrl.registry.versions import CHAMPION, Registry, Version, check

__all__ = ["ask", "promote", "rollback"]


def promote(
    registry: Registry,
    name: str,
    version: str = "latest",
    *,
    overrides: Sequence[str] = (),
    expected: int | None = None,
    reason: str = "",
    progress: Progress | None = None,
) -> tuple[Version, Decision]:
    """Make a version (a number, `latest`, or the run that made it) the champion; the verdict stays on it either way.

    The gates are those of its own configuration.

    Args:
        overrides: other settings for this promotion: `gates.margin=0.05`, `data.uri=...`.
        expected: the version that must be champion now, 0 = none; default: whichever it is.
        reason: what a person has to say; it goes into the history.

    Raises:
        GateFailed: a gate refused it, with the reasons; the champion stays.
        Overtaken: another version than expected is champion, or somebody else moved the champion while this was
            decided; nothing was changed.
        RegistryError: there is no such version, or the alias was moved by hand.
    """
    candidate, history = registry.find(f"{name}/{version}"), registry.history(name)
    chain = history.read()
    if expected is not None and (now := chain.head.champion) != (expected or None):
        raise Overtaken(
            f"{name}: expected version {expected or 'none'} to be champion, it is {now or 'none'}; nothing was changed"
        )
    decision, gates = _decision(registry, candidate, chain, overrides, progress)
    if gates is None:
        _settle(registry, history)
        return registry.find(f"{name}/{candidate.number}"), decision
    if not decision.passed:
        raise GateFailed(f"{candidate} was not promoted: {'; '.join(decision.reasons)}")
    why = (*decision.reasons, *([reason] if reason else []))
    _move(registry, history, chain, candidate, action="promote", why=why, gates=gates.model_dump(mode="json"))
    return registry.find(f"{name}/{candidate.number}"), decision


def ask(
    registry: Registry,
    name: str,
    version: str = "latest",
    *,
    overrides: Sequence[str] = (),
    progress: Progress | None = None,
) -> tuple[Version, Decision]:
    """What the gates would say to `promote` now; the champion stays. The verdict is written on the version.

    Raises:
        RegistryError: there is no such version, or the alias was moved by hand.
    """
    candidate = registry.find(f"{name}/{version}")
    decision, _ = _decision(registry, candidate, registry.history(name).read(), overrides, progress)
    return candidate, decision


def rollback(registry: Registry, name: str, *, reason: str = "") -> Version:
    """Make the champion before this one champion again; another rollback goes one further back.

    Raises:
        Overtaken: somebody else moved the champion at the same moment; nothing was changed.
        RegistryError: there was none before, or its package is not what it was.
    """
    history = registry.history(name)
    chain = history.read()
    if len(chain.in_force) < 2:
        now = chain.head.champion
        first = "there is no champion" if now is None else f"version {now} was the first champion"
        raise RegistryError(f"{name}: {first}; there is nothing to go back to")
    then = chain.in_force[-2]
    back = registry.find(f"{name}/{then.champion}")
    if then.proof_digest not in ("", back.proof_digest):
        raise RegistryError(
            f"{back}: it was promoted with the proof {then.proof_digest[:12]}, the server tells of "
            f"{back.proof_digest[:12] or 'none'} now; refused"
        )
    if back.proof_digest:
        with registry.fetched(back) as folder:
            check(back, folder)
    why = (f"back from version {chain.head.champion}", *([reason] if reason else []))
    _move(registry, history, chain, back, action="rollback", why=why)
    return registry.find(f"{name}/{back.number}")


def _decision(
    registry: Registry, candidate: Version, chain: Chain, overrides: Sequence[str], progress: Progress | None
) -> tuple[Decision, GatesConfig | None]:
    """The gates' answer, kept on the version, and what they were; None: it is champion already, nobody was asked."""
    if chain.head.champion == candidate.number:
        return Decision(True, ("it is the champion already",)), None
    versions = registry.versions(candidate.name)
    champion = next((one for one in versions if one.number == chain.head.champion), None)
    deleted = champion is None and chain.head.champion is not None
    if not deleted:  # with a version MLflow deletes its aliases
        _check_alias(registry, chain)
    decision, gates = _ask(registry, candidate, champion, chain, list(overrides), progress)
    if deleted:
        gone = f"version {chain.head.champion}, the champion so far, was deleted from the server"
        decision = replace(decision, reasons=(*decision.reasons, gone))
    verdict = f"{'passed' if decision.passed else 'refused'}: {'; '.join(decision.reasons)}"
    with registry.translated():
        registry.client.set_model_version_tag(candidate.name, str(candidate.number), GATE, verdict)
    return decision, gates


def _ask(
    registry: Registry,
    candidate: Version,
    champion: Version | None,
    chain: Chain,
    overrides: list[str],
    progress: Progress | None,
) -> tuple[Decision, GatesConfig]:
    """Ask the gates of the candidate's configuration, with as many images as it takes."""
    with ExitStack() as stack:
        ours = stack.enter_context(registry.fetched(candidate))
        try:
            check(candidate, ours)
        except RegistryError as error:
            return Decision(False, (f"its package does not prove what it is: {error}",)), GatesConfig()
        gates = override(Model.load(ours / FOLDER).config, overrides).gates
        if champion is not None and (reason := _fault(champion, chain)) is not None:
            return Decision(False, (reason,)), gates
        theirs = None if champion is None else champion.scorecard
        decision = decide(candidate.scorecard, theirs, gates)
        if champion is None or candidate.scorecard is None or decision.is_clear or not gates.max_sets:
            return decision, gates
        package = stack.enter_context(registry.package(champion))
        sets = further_differences(ours / FOLDER, package, candidate.scorecard.protocol, overrides, progress)
        found: list[float] = []
        while not decision.is_clear and len(found) < gates.max_sets:
            found.append(next(sets))
            decision = decide(candidate.scorecard, theirs, gates, found)
        return decision, gates


def _fault(champion: Version, chain: Chain) -> str | None:
    """What is wrong with a champion's score card, if anything is."""
    if champion.scorecard is None:
        return f"the champion, version {champion.number}, has no readable score card"
    told = chain.in_force[-1].scorecard_digest
    if told and told != champion.scorecard_digest:
        return f"the score card of the champion, version {champion.number}, was changed after it was promoted"
    return None


def _move(registry: Registry, history: History, chain: Chain, version: Version, **values: object) -> None:
    digests = {
        "model_digest": version.model_digest,
        "proof_digest": version.proof_digest,
        "scorecard_digest": version.scorecard_digest,
    }
    history.append(chain, champion=version.number, **digests, **values)
    _settle(registry, history)


def _settle(registry: Registry, history: History) -> None:
    """Let the alias follow the history. Who set it looks again: the last one to set it has seen the last entry."""
    name, said = history.model, None
    while (head := history.read().head) != said:
        with registry.translated():
            registry.client.set_registered_model_alias(name, CHAMPION, str(head.champion))
        said = head


def _check_alias(registry: Registry, chain: Chain) -> None:
    """The alias may be one move behind, where somebody died or is about to set it; other places are a person's.

    Raises:
        RegistryError: with what to do.
    """
    head = chain.head
    with registry.translated():
        told = (registry.aliases(head.model) or {}).get(CHAMPION)
    stands = None if told is None else int(told)
    if stands in (head.champion, head.before):
        return
    mend = f"`cdrl registry promote {head.model} {head.champion}` sets it back"
    raise RegistryError(
        f"{head.model}: the alias {CHAMPION} stands at version {stands or 'none'}, but the history knows version "
        f"{head.champion or 'none'}: somebody moved it by hand; " + (mend if head.champion else "remove it in MLflow")
    )
