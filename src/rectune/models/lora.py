"""LoRA adapters through peft: put on, and merged into the weights. Saving and loading is peft's own.

An adapter on the language-model head is refused: the head's log-probabilities are computed from its weight
(`logprobs.py`), which would leave the adapter out.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from rectune.config import LoraConfig
from rectune.errors import UserError, unknown_name

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


def need_peft() -> None:
    """Raise `UserError` where peft is not installed."""
    if find_spec("peft") is None:
        raise UserError("LoRA adapters need the package peft", hint="pip install 'rectune[peft]'")


def add_lora(model: PreTrainedModel, config: LoraConfig, seed: int) -> PeftModel:
    """The model with fresh adapters on it, alone trainable. The random state of the caller is left as it was.

    Args:
        model: Changed in place.
        config: `rank` above 0; `targets` is `all-linear` or names of linear modules separated by commas.
        seed: Of the adapters' initial weights.

    Raises:
        UserError: peft is missing, a target is no linear module of the model, or is its head.
    """
    need_peft()
    if config.rank == 0:
        raise UserError("is 0, which means no adapter", where="lora.rank")
    import warnings

    import peft
    import torch

    targets = check_targets(model, config.targets)
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]
        lora_dropout=config.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft 0.21 reads an old attribute of transformers
        torch.manual_seed(seed)
        return peft.get_peft_model(model, settings)  # type: ignore[return-value]


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
            raise UserError(f"an adapter on the head ({name}) is not supported", where="lora.targets")
        if not matched:
            known = {path.rsplit(".", 1)[-1] for path, m in linear.items() if m is not head}
            raise unknown_name("module", name, known, where="lora.targets")
    return names
