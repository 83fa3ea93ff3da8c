"""What a dataset lacks of its archive, and why: for the end of a run, the card and `info`.

All of it stands in the manifest: a run notes the counts in its plan, under `left_out`.
"""

from fusmae.manifest import Manifest


def left_out_counts(manifest: Manifest) -> dict[str, int | None]:
    """Samples left out by reason, none of them 0; None where an older run did not count them.

    The reasons: `without_s2` (no S2 patch in the archive), `exclude`, `no_split` (the split rule
    covers them not), `known_bad` (published so), `limit`, `bad` (quarantined).
    """
    plan = manifest.options["plan"]
    noted: dict[str, int] | None = plan.get("left_out")
    counts: dict[str, int | None] = {"without_s2": plan.get("without_s2", 0), **(noted or {})}
    if noted is None:
        counts |= {name: None for name in ("exclude", "limit") if plan.get(name)}
    counts["bad"] = plan["num_samples"] - manifest.num_samples
    return {reason: count for reason, count in counts.items() if count != 0}


def left_out_told(manifest: Manifest) -> list[str]:
    """A phrase for each reason, such as `70 by --limit 30`; none where nothing was left out."""
    plan = manifest.options["plan"]
    why = {
        "without_s2": "without an S2 patch in the archive",
        "exclude": f"with {' or '.join(plan.get('exclude') or ())} (--exclude)",
        "no_split": f"in no split by the rule {plan.get('split')}",
        "known_bad": "published with NaN in its S1",
        "limit": f"by --limit {plan.get('limit')}",
        "bad": "as bad, each named with its reason in quarantine.jsonl",
    }
    return [
        f"{'some' if count is None else f'{count:,}'} {why.get(reason, reason)}"
        for reason, count in left_out_counts(manifest).items()
    ]
