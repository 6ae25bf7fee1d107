"""The shipped ZeRO settings with `dft_loss` in a transformers `Trainer`: two processes train what one does.

Needs DeepSpeed, which builds on a CPU: `DS_BUILD_OPS=0 pip install --no-build-isolation deepspeed`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from toys import tiny_model
from training_runs import TORCHRUN, weights

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed is not installed"),
]

ROOT = Path(__file__).parents[2]
DRIVER = """
import os, sys
from transformers import Trainer, TrainingArguments
from rectune.integrations import dft_loss
from rectune.runtime.distributed import exit_process
from toys import tiny_model

out, config = sys.argv[1:]
ids = [[(7 * i + j) % 250 + 5 for j in range(6)] for i in range(16)]
rows = [{"input_ids": row, "labels": [-100, -100, *row[2:]], "attention_mask": [1] * 6} for row in ids]
model = tiny_model()  # before ZeRO 3 would make it in pieces
settings = TrainingArguments(
    output_dir=out, per_device_train_batch_size=4 // int(os.environ.get("WORLD_SIZE", 1)), max_steps=4,
    learning_rate=1e-2, lr_scheduler_type="constant", report_to=[], save_strategy="no", use_cpu=True,
    deepspeed=config or None,
)
trainer = Trainer(model=model, args=settings, train_dataset=rows, compute_loss_func=dft_loss)
trainer.train()
trainer.save_model(out)
exit_process(0)
"""


def trained(out: Path, config: str = "") -> None:
    (out.parent / "driver.py").write_text(DRIVER)
    launch = [*TORCHRUN, "2"] if config else [sys.executable]
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "ACCELERATE_USE_CPU": "true",
        "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]),
    }  # fmt: skip
    done = subprocess.run(
        [*launch, str(out.parent / "driver.py"), str(out), config],
        env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zero_trains_what_one_process_does(tmp_path: Path, stage: int) -> None:
    trained(tmp_path / "one")
    trained(tmp_path / "two", str(ROOT / f"examples/launch/zero{stage}.json"))
    one, two = (weights(tmp_path / name, "model.safetensors") for name in ("one", "two"))
    start = tiny_model().state_dict()
    off = sum(float((one[name] - two[name]).square().sum()) for name in one)
    moved = sum(float((one[name] - start[name]).square().sum()) for name in one)
    assert moved > 0
    assert (off / moved) ** 0.5 < 1e-3
