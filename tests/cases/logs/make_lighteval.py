"""Write the logs of lighteval-0.13.0 with its EvaluationTracker, from documents, answers and scores given here.

`python make_lighteval.py FOLDER`, with lighteval.
"""

import sys
from pathlib import Path

from lighteval.logging.evaluation_tracker import EvaluationTracker
from lighteval.models.dummy.dummy_model import DummyModelConfig
from lighteval.models.model_output import ModelResponse
from lighteval.tasks.requests import Doc

TASK = "toy_sums|0"
ARMS = {"base": (0, 1, 2), "sft-0": (0, 1, 2, 3, 4, 5), "sft-1": (0, 1, 2, 3, 4, 6)}

for arm, right in ARMS.items():
    tracker = EvaluationTracker(output_dir=str(Path(sys.argv[1]) / arm), save_details=True)
    tracker.general_config_logger.model_name = "scripted"
    tracker.general_config_logger.model_config = DummyModelConfig(model_name="scripted", seed=0)
    for i in range(8):
        doc = Doc(
            query=f"What is {i} + {i}?",
            choices=[str(2 * i)],
            gold_index=0,
            id=str(i),
            task_name=TASK,
            specific={"family": i // 2},
        )
        answer = ModelResponse(
            text=[str(2 * i) if i in right else "no idea"], input_tokens=[1], output_tokens=[[2]]
        )
        score = {"extractive_match": float(i in right)}
        tracker.details_logger.details[TASK].append(tracker.details_logger.Detail(doc, answer, score))
    tracker.save()
