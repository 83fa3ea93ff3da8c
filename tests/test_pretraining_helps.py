"""The demo over three seeds: what the README's table promises, from scratch."""

import json
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SENSORS = ("s1", "s2", "s1,s2")
# Points of macro mAP; measured when this was set: 3.8 at the least, 5.1 to 8.9 on average.
MIN_GAIN = 3.0


@pytest.mark.slow
def test_pretraining_beats_random_weights_for_every_sensor_and_seed(tmp_path):
    command = ["make", "demo-seeds", f"DEMO={tmp_path}"]
    subprocess.run(command, cwd=ROOT, check=True, timeout=3500, stdin=subprocess.DEVNULL)
    for sensors in SENSORS:
        gains = [
            macro_map(tmp_path, seed, "pretrained", sensors)
            - macro_map(tmp_path, seed, "random", sensors)
            for seed in range(3)
        ]
        assert min(gains) >= MIN_GAIN, (sensors, gains)


def macro_map(demo: Path, seed: int, features: str, sensors: str) -> float:
    """Test macro mAP in percent of a probe on mean-pooled tokens."""
    path = demo / "probes" / f"seed-{seed}" / f"{features}-{sensors}" / "metrics.json"
    result = json.loads(path.read_text())
    assert result["simulated"] and result["num_labels"] >= 1000
    return 100 * result["results"]["mean_tokens"]["macro_map"]
