"""How a table's page names metrics and sensors, and writes numbers and lines."""

import statistics
from collections.abc import Iterable, Sequence

_METRIC_NAMES = {
    "macro_map": "macro mAP",
    "micro_map": "micro mAP",
    "macro_f1": "macro F1",
    "micro_f1": "micro F1",
    "top1": "top-1",
    "top3": "top-3",
    "weighted_precision": "weighted precision",
    "weighted_recall": "weighted recall",
    "weighted_f1": "weighted F1",
}


def metric_name(metric: str) -> str:
    return _METRIC_NAMES.get(metric, metric)


def sensor_title(sensors: str) -> str:
    return sensors.upper().replace(",", "+")


def table_head(title: str, names: Sequence[str]) -> list[str]:
    return [table_line(title, names), "|---" * (len(names) + 1) + "|"]


def table_line(name: str, texts: Iterable[str]) -> str:
    return f"| {name} | {' | '.join(texts)} |"


def mean_text(values: Sequence[float]) -> str:
    """The mean and, of several, the standard deviation."""
    if not values:
        return "-"
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"
