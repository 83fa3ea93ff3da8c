"""What the Makefile's targets for tables would run, as `make -n` prints it."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from fusmae.evaluation.experiment import load_experiment, weights_key

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")


def printed(target: str, *variables: str) -> str:
    """`GPUS`, given, keeps make from asking the environment, which there may not be."""
    command = ["make", "-n", "-C", str(ROOT), target, "GPUS=2", *variables]
    plain = {"PATH": os.environ["PATH"]}  # no SEEDS, nor the flags of a make around this
    done = subprocess.run(command, env=plain, capture_output=True, text=True, check=True)
    return done.stdout.replace("\\\n", " ")


@pytest.mark.parametrize(("gpus", "ranks"), [(0, 2), (1, 1), (2, 2), (4, 4), (8, 4)])
def test_the_simulated_table_has_a_rank_a_gpu_as_far_as_its_batch_allows(
    gpus: int, ranks: int
) -> None:
    assert f'--num_accelerators {ranks}"' in printed("table-simulated", f"GPUS={gpus}")


def table_words(*arguments: str) -> list[str]:
    (line,) = [line for line in printed(*arguments).splitlines() if "train/table.py" in line]
    return shlex.split(line)


def weights(*arguments: str) -> dict[str, str]:
    words = table_words(*arguments)
    pairs = [words[place + 1] for place, word in enumerate(words) if word == "--weights"]
    return dict(pair.split("=") for pair in pairs)


def test_tables_take_seeds_a_launcher_and_weights() -> None:
    words = table_words("table1", "SEEDS=0,1,2", "LAUNCHER=deepspeed --num_accelerators 2")
    assert words[words.index("--seeds") + 1] == "0,1,2"
    assert words[words.index("--launcher") + 1] == "deepspeed --num_accelerators 2"
    assert words[words.index("--out") + 1] == "results/table1"
    plain = table_words("table2")
    assert plain[plain.index("--seeds") + 1] == "0"
    assert plain[plain.index("--launcher") + 1] == "deepspeed"
    assert weights("table1", "WEIGHTS=--weights dino-mm=FILE") == {"dino-mm": "FILE"}
    assert "--seeds 0,1 " in printed("table-simulated", "SEEDS=0,1")


def test_table_2_takes_table_1s_encoders_where_there_is_one_of_each_seed(tmp_path: Path) -> None:
    def finished(system: str, seed: int) -> None:
        folder = tmp_path / "pretraining" / system / f"seed-{seed}" / "encoder"
        folder.mkdir(parents=True)
        (folder / "config.json").touch()

    mine = f"TABLE1={tmp_path}"
    assert weights("table2", mine) == {}
    finished("fus-mae-xad", 0)
    taken = {"fus-mae-xad": f"{tmp_path}/pretraining/fus-mae-xad/seed-{{seed}}/encoder"}
    assert weights("table2", mine) == taken
    assert weights("table2", mine, "SEEDS=0,1") == {}
    finished("fus-mae-xad", 1)
    finished("fus-mae-xae-d", 0)
    assert weights("table2", mine, "SEEDS=0,1") == taken
    assert set(weights("table2", mine)) == {"fus-mae-xad", "fus-mae-xae-d"}
    # The names are those by which the table knows its systems.
    systems = load_experiment(ROOT / "train" / "tables" / "table2.toml").systems
    assert {weights_key(one) for one in systems if not one.weights} == set(weights("table2", mine))
    assert weights("table2", mine, "WEIGHTS=--weights fus-mae-xad=W")["fus-mae-xad"] == "W"
