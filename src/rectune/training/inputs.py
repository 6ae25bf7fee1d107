"""What a run reads is looked at before weights are loaded and before there is a folder: a wrong path costs nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from rectune.config import TrainConfig, TrainerConfig
from rectune.data.chat_template import check_template
from rectune.data.trained_prompt import as_trained
from rectune.errors import UserError
from rectune.models.load import check_model
from rectune.models.lora import with_own_lora
from rectune.objective_spec import make_phases
from rectune.runtime.io import check_writable
from rectune.training.dataloader import Texts, read_texts
from rectune.training.reference import SUFFIX
from rectune.training.trackers import check_trackers

Trained = TypeVar("Trained", bound=TrainerConfig)


def with_models_own(config: Trained) -> Trained:
    """The settings with what comes from the model where it is not given: LoRA of an adapter, the prompt of a run.

    Raises:
        UserError: A setting of LoRA that is not the adapter's, or a model that is not there.
    """
    return as_trained(config.model, with_own_lora(config))


def read_inputs(config: TrainConfig) -> Texts:
    """The rows of a config as text, once all other paths in it were looked at.

    Raises:
        UserError: A path that leads nowhere, or rows that cannot be used.
    """
    check_named(config)
    return read_texts(config, paired="pair" in make_phases(config)[0].columns)


def check_named(config: TrainerConfig) -> None:
    """Raise `UserError` for a model, reference, template or tracker that is not there."""
    check_trackers(config.report_to)
    if config.report_to and config.logging_dir is not None:
        check_writable(config.logging_dir)
    check_model(config.model)
    check_template(config.chat_template)
    if config.reference_model is None:
        return
    if not config.reference_model.endswith(SUFFIX):
        check_model(config.reference_model)
    elif not Path(config.reference_model).expanduser().is_file():
        raise UserError(f"no such file: {config.reference_model}", where="reference_model")
