"""To which endpoint a job goes: those that serve its model, and among those with room by weight. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

ANY = -1  # the set of all endpoints, as of a job whose model is not known yet


def serves(patterns: Collection[str], model: str) -> bool:
    """Whether one of the patterns names the model: its whole name, or a `*` after its beginning. None names any."""
    return not patterns or any(
        model.startswith(one[:-1]) if one.endswith("*") else model == one for one in patterns
    )


def find_servers(
    models: Sequence[Collection[str]], model: str, lacking: Collection[int] = frozenset()
) -> int:
    """The endpoints that serve the model, as a set of bits: bit `i` is the endpoint whose patterns are `models[i]`.

    Those that said that they do not have it, `lacking`, are left out, unless no other one serves it.
    """
    found = sum(1 << i for i, patterns in enumerate(models) if serves(patterns, model))
    others = found & ~sum(1 << i for i in set(lacking))
    return others or found


def list_groups(
    models: Sequence[Collection[str]], lacking: Mapping[str, Collection[int]] | None = None
) -> tuple[int, ...]:
    """All different sets of endpoints that a model may have, ascending; without the empty one."""
    told = {one for patterns in models for one in patterns} | set(lacking or ())
    # A model that only the longest pattern names begins with it, and ends as no other name does.
    samples = {""} | {one[:-1] + "\0" if one.endswith("*") else one for one in told}
    return tuple(
        sorted({find_servers(models, one, (lacking or {}).get(one, ())) for one in samples or {""}} - {0})
    )


def choose_by_weight(
    credit: Mapping[int, float], weights: Mapping[int, float]
) -> tuple[int, dict[int, float]]:
    """One of the endpoints in `weights`, and what each has to its credit afterwards.

    Smooth: with weights 3 and 1, the one is not chosen three times in a row. An endpoint without room is not among
    `weights`: it keeps its credit and gains none.
    """
    after = {**credit, **{one: credit.get(one, 0.0) + weight for one, weight in weights.items()}}
    chosen = max(weights, key=lambda one: (after[one], weights[one], -one))
    after[chosen] -= sum(weights.values())
    return chosen, after


def has(group: int, index: int) -> bool:
    """Whether the endpoint is in the set."""
    return bool(group >> index & 1)
