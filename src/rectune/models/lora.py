"""LoRA adapters through peft: put on, trained on, and merged into the weights. Saving and loading is peft's own.

An adapter on the language-model head is refused: the head's log-probabilities are computed from its weight
(`logprobs/__init__.py`), which would leave the adapter out.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rectune.config import LoraConfig
from rectune.errors import UserError, unknown_name
from rectune.models.load import adapter_folder, need_peft

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


Run = TypeVar("Run", bound=Any)
"""Settings of a run, with `model` and `lora`."""


def starts_from_adapter(config: Any) -> bool:
    """Whether the run's model is an adapter, which is then trained on; without it the model is another one."""
    return adapter_folder(config.model) is not None


def with_own_lora(config: Run) -> Run:
    """The settings of a run; where its model is an adapter, with the adapter's own settings of LoRA.

    Raises:
        UserError: A setting of LoRA was given that is not the adapter's, or it is no LoRA adapter.
    """
    folder = adapter_folder(config.model)
    if folder is None:
        return config
    try:
        saved = json.loads((folder / "adapter_config.json").read_bytes())
        targets = saved["target_modules"]
        own = {
            "lora_r": int(saved["r"]),
            "lora_alpha": float(saved["lora_alpha"]),
            "lora_dropout": float(saved.get("lora_dropout", 0.0)),
            "lora_target_modules": targets if isinstance(targets, str) else ",".join(sorted(targets or ())),
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError("is no LoRA adapter that can be trained on", where=config.model) from None
    for name, value in own.items():
        given, default = getattr(config, name), LoraConfig.model_fields[name].default
        sorted_names = (
            ",".join(sorted(part.strip() for part in given.split(",")))
            if name == "lora_target_modules"
            else given
        )
        if given not in (default, value) and sorted_names != value:
            what = f"is {given}, but the adapter {config.model} has {value}"
            raise UserError(what, where=name, hint="leave it out, or merge the adapter first")
    return config.model_copy(update=own)


def add_lora(model: PreTrainedModel, config: LoraConfig, seed: int) -> PeftModel:
    """The model with fresh adapters on it, alone trainable; one that has an adapter keeps it, to be trained on.

    The random state of the caller is left as it was.

    Args:
        model: Changed in place.
        config: `rank` above 0; `targets` is `all-linear` or names of linear modules separated by commas.
        seed: Of the adapters' initial weights.

    Raises:
        UserError: peft is missing, a target is no linear module of the model, or is its head.
    """
    need_peft()
    if config.lora_r == 0:
        raise UserError("is 0, which means no adapter", where="lora_r")
    if hasattr(model, "peft_config"):
        return unfreeze(model)  # type: ignore[return-value]
    import warnings

    import peft
    import torch

    targets = check_targets(model, config.lora_target_modules)
    settings = peft.LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,  # type: ignore[arg-type]
        lora_dropout=config.lora_dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft 0.21 reads an old attribute of transformers
        torch.manual_seed(seed)
        return peft.get_peft_model(model, settings)  # type: ignore[return-value]


def unfreeze(model: Any) -> Any:
    """The model, and where it was loaded with an adapter, that alone trainable; loading leaves it frozen."""
    if hasattr(model, "peft_config"):
        model.set_adapter(model.active_adapter)
    return model


def merge_lora(model: PeftModel) -> PreTrainedModel:
    """The plain model with its adapters added to its weights. Uses up `model`."""
    return model.merge_and_unload()  # type: ignore[return-value,operator]


def load_adapter_weights(model: PeftModel, folder: Path) -> None:
    """Put the adapter saved in `folder` in place of the model's own of the same shape."""
    import peft
    from safetensors.torch import load_file

    peft.set_peft_model_state_dict(model, load_file(folder / "adapter_model.safetensors"))


def check_targets(model: PreTrainedModel, targets: str) -> str | list[str]:
    """What peft calls target_modules. Raises `UserError` for the head and for what is no linear module."""
    if targets == "all-linear":
        return targets
    import torch
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    linear = {name: m for name, m in model.named_modules() if isinstance(m, (torch.nn.Linear, Conv1D))}
    names = [name.strip() for name in targets.split(",") if name.strip()]
    for name in names:
        matched = [m for path, m in linear.items() if path == name or path.endswith(f".{name}")]
        if any(m is head for m in matched):
            raise UserError(f"an adapter on the head ({name}) is not supported", where="lora_target_modules")
        if not matched:
            known = {path.rsplit(".", 1)[-1] for path, m in linear.items() if m is not head}
            raise unknown_name("module", name, known, where="lora_target_modules")
    return names
