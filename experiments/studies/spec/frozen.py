"""What of a study may not change once an evaluation has been seen, and what has."""

from collections.abc import Mapping
from typing import Any

from experiments.studies.spec.comparisons import is_reference
from experiments.studies.spec.study import Study

HYPOTHESIS = "hypothesis"


def frozen(study: Study) -> dict[str, Any]:
    """What may not change once an evaluation has been seen, as plain values.

    Arms and fixed learning rates may still come: they add comparisons and change none of those that were planned. Of
    the arms of a `hypothesis` none may come: with more adapters another question would be asked.
    A caller may add maps of its own (content hashes, say): `changes` compares every one.
    """
    protocol = study.protocol.model_dump(mode="json")
    protocol["fixed_learning_rates"] = {f"{rate:.6g}": True for rate in study.protocol.fixed_learning_rates}
    score = {"name": study.score_name, "higher_is_better": study.higher_is_better}
    search = {} if study.config.search is None else {"search": study.config.search.model_dump(mode="json")}
    reference = study.protocol.reference
    arms = {
        arm.config_hash: {"label": arm.label, "centre": arm.centre, "reference": is_reference(arm, reference)}
        for arm in study.arms
    }
    asked, roles = study.config.hypothesis, study.roles()
    hypothesis = {}
    if asked is not None and roles is not None:
        hypothesis = {HYPOTHESIS: asked.model_dump(mode="json") | {"arms": roles.named()}}
    return {"score": score, "protocol": protocol, **search, **hypothesis, "arms": arms}


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """In words, what of `before` is other in `after` (both of `frozen`); empty where only arms or rates came."""
    before = _with_looks(before)
    settled = [key for key in before if key not in ("arms", HYPOTHESIS)]
    found = [
        f"{key}: was {_describe(old)}, is {_describe(new)}"
        for section in settled
        for key, old, new in _differences(before[section], after.get(section, {}), section)
    ]
    was, now_is = before.get(HYPOTHESIS, {}), after.get(HYPOTHESIS, {})
    if bool(was) != bool(now_is):
        found.append(f"the section {HYPOTHESIS} was {'taken out' if was else 'added after the first evaluation'}")
    found += [
        f"{HYPOTHESIS}.{key}: was {_describe(was.get(key))}, is {_describe(now_is.get(key))}"
        for key in [key for key in (was | now_is if was and now_is else {}) if key != "arms"]
        if was.get(key) != now_is.get(key) or (key in was) != (key in now_is)
    ]
    arms_now = now_is.get("arms", {})
    found += [
        f"the arms of {HYPOTHESIS}.{role}: were {_describe(arms)}, are {_describe(arms_now.get(role))}"
        for role, arms in was.get("arms", {}).items()
        if now_is and arms != arms_now.get(role)
    ]
    same_reference = before["protocol"].get("reference") == after["protocol"].get("reference")
    for config_hash, arm in before["arms"].items():
        now = after["arms"].get(config_hash)
        if now is None:
            found.append(f"arm {arm['label']!r} ({config_hash}) is gone: taken out, or another configuration now")
        elif now["centre"] != arm["centre"]:
            found.append(f"arm {arm['label']!r}: its learning rates were around {arm['centre']}, are {now['centre']}")
        elif same_reference and now["reference"] != arm.get("reference", now["reference"]):
            words = ("a reference", "none") if arm["reference"] else ("no reference", "one")
            found.append(
                f"arm {arm['label']!r} ({config_hash}) was {words[0]}, and is {words[1]} under the labels of now"
            )
    return found


def _with_looks(before: Mapping[str, Any]) -> Mapping[str, Any]:
    """What an earlier version settled, which looked once, at all seeds, and did not say so."""
    evaluation = before["protocol"].get("evaluation", {})
    if "seeds" not in evaluation or "looks" in evaluation:
        return before
    once = evaluation | {"looks": [len(evaluation["seeds"])]}
    return {**before, "protocol": {**before["protocol"], "evaluation": once}}


def _differences(before: Mapping[str, Any], after: Mapping[str, Any], path: str) -> list[tuple[str, Any, Any]]:
    found = []
    for key, old in before.items():
        new = after.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping) and key != "reference":
            found += _differences(old, new, f"{path}.{key}")
        elif old != new:
            found.append((f"{path}.{key}", old, new))
    return found


def _describe(value: object) -> str:
    return "nothing" if value is None else str(value)
