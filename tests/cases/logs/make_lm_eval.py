"""Write the logs of lm-eval-0.4.13: two local tasks and a scripted model.

`python make_lm_eval.py FOLDER`, with lm-eval.
"""

import json
import sys
import tempfile
from pathlib import Path

import lm_eval
from lm_eval.api.model import LM
from lm_eval.loggers import EvaluationTracker
from lm_eval.tasks import TaskManager

SUMS = r"""task: toy_sums
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/sums.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\n"]}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
filter_list:
  - {name: strict-match, filter: [{function: regex, regex_pattern: "^(\\d+)$"}, {function: take_first}]}
  - {name: flexible-extract, filter: [{function: regex, regex_pattern: "(\\d+)"}, {function: take_first}]}
"""
CHOICES = """task: toy_choices
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/choices.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""
ARMS = {"base": (0, 1, 2, 3), "sft-0": (0, 1, 2, 3, 4, 5, 6), "sft-1": (0, 1, 2, 3, 4, 5, 7)}


class Scripted(LM):
    def __init__(self, right):
        super().__init__()
        self.right = right

    def generate_until(self, requests, disable_tqdm=False):
        numbers = [int(request.args[0].split(" + ")[0].split()[-1]) for request in requests]
        wrong = {11: "It is 22."}
        return [str(2 * i) if i in self.right else wrong.get(i, "no idea") for i in numbers]

    def loglikelihood(self, requests, disable_tqdm=False):
        def value(question, choice):
            i = int(question.split()[1])
            return -1.0 if ("yes" in choice) == ((i % 2 == 0) == (i in self.right)) else -2.0

        return [(value(*request.args), False) for request in requests]

    def loglikelihood_rolling(self, requests, disable_tqdm=False):
        raise NotImplementedError


with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    sums = [{"question": f"What is {i} + {i}?", "answer": str(2 * i), "family": i // 2} for i in range(12)]
    choices = [{"question": f"Is {i} even?", "choices": ["yes", "no"], "answer": i % 2} for i in range(10)]
    for task, text, docs in (("sums", SUMS, sums), ("choices", CHOICES, choices)):
        (folder / f"{task}.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
        (folder / f"{task}.yaml").write_text(text.replace("FOLDER", name))
    for arm, right in ARMS.items():
        tracker = EvaluationTracker(output_path=str(Path(sys.argv[1]) / arm))
        manager = TaskManager(include_path=name, include_defaults=False)
        tasks = ["toy_sums", "toy_choices"]
        results = lm_eval.simple_evaluate(
            Scripted(right), tasks=tasks, task_manager=manager, log_samples=True
        )
        for task, samples in results.pop("samples").items():
            tracker.save_results_aggregated(results=results, samples={})
            tracker.save_results_samples(task_name=task, samples=samples)
