"""What a result's row is called in a table, and which row it has to beat."""

from typing import Any

from fusmae.evaluation.results import FINETUNE_FORMAT

# Rows of a folder given without a name, in the order of the table.
_ROW_NAMES = {
    "pretrained": "pretrained",
    "random": "random weights",
    "band-statistics": "band statistics",
}
# Other ways to a score stand in rows of their own.
_KNN = ", kNN"
_FINETUNED = {"pretrained": "fine-tuned", "random": "fine-tuned from random weights"}
# Of weights that are no longer those that were pretrained or published.
_TUNED = " (tuned before)"


def encoder_label(result: dict[str, Any]) -> str:
    """Which encoder of ours a result is of, by its fusion; "" for others' and for none."""
    options = result["options"]
    if "backbone" in options or options.get("features") == "band-statistics":
        return ""
    label: str = result.get("backbone", {}).get("label", "")
    return label


def row_name(result: dict[str, Any], several: bool) -> str:
    """`several` says that encoders of ours with different fusions are to be told apart."""
    options = result["options"]
    finetuned = result["format"] == FINETUNE_FORMAT
    start = options["init"] if finetuned else options["features"]
    row = (_FINETUNED if finetuned else _ROW_NAMES)[start]
    knn = _KNN if options.get("head") == "knn" else ""
    tuned = _TUNED if start == "pretrained" and result.get("backbone", {}).get("tuned") else ""
    label = (
        result["backbone"]["label"] if "backbone" in options else several * encoder_label(result)
    )
    # Statistics of bands are nobody's.
    if not label or start == "band-statistics":
        return f"{row}{tuned}{knn}"
    if row == "pretrained":
        return f"{label}{tuned}{knn}"
    return f"{label}{tuned}, {row}{knn}"


def rival_name(result: dict[str, Any], several: bool) -> str:
    """The row that pretraining alone tells from this one; "" where labels do, too."""
    options = result["options"]
    start = "init" if result["format"] == FINETUNE_FORMAT else "features"
    if options[start] != "pretrained" or result.get("backbone", {}).get("tuned"):
        return ""
    return row_name({**result, "options": {**options, start: "random"}}, several)


def row_order(row: str) -> tuple[int, str]:
    names = list(_ROW_NAMES.values())
    kind = row.partition(",")[0]
    return (names.index(kind) if kind in names else -1), row
