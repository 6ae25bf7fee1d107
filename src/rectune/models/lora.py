"""LoRA adapters through peft: read and checked, put on, trained on, and merged. Saving is peft's own.

Whether an adapter's tensors fit its base model is checked before the base's weights are read: peft leaves out what fits
nothing, so that the base model would answer under the adapter's name. An adapter on the language-model head is refused:
the head's log-probabilities are computed from its weight (`logprobs/__init__.py`), which would leave the adapter out.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rectune.config import LoraConfig
from rectune.errors import UserError, unknown_name
from rectune.models.folder import adapter_folder

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedModel

Run = TypeVar("Run", bound=Any)
"""Settings of a run, with `model` and those of `LoraConfig`."""


def need_peft() -> None:
    """Raise `UserError` where peft is not installed."""
    if find_spec("peft") is None:
        raise UserError("LoRA adapters need the package peft", hint="pip install 'rectune[peft]'")


def starts_from_adapter(config: Any) -> bool:
    """Whether the run's model is an adapter, which is then trained further."""
    return adapter_folder(config.model) is not None


def with_own_lora(config: Run) -> Run:
    """The settings of a run; if its model is an adapter, with the LoRA settings of the adapter.

    Raises:
        UserError: A LoRA setting was given that is not the adapter's, or it is not a LoRA adapter.
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
        raise UserError(
            "this is not a LoRA adapter, so it cannot be trained further", where=config.model
        ) from None
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
    result: Run = config.model_copy(update=own)
    return result


def add_lora(model: PreTrainedModel, config: LoraConfig, seed: int) -> PeftModel:
    """The model with new adapters, of which alone the weights are trainable; a model with an adapter keeps that one.

    The caller's random state is unchanged.

    Args:
        model: Changed in place.
        config: With `lora_r` above 0.
        seed: Of the adapters' initial weights.

    Raises:
        UserError: peft is missing, a target is not a linear module of the model, or is its head.
    """
    need_peft()
    if config.lora_r == 0:
        raise UserError("lora_r is 0, which means no adapter", where="lora_r")
    if hasattr(model, "peft_config"):
        return unfreeze(model)  # type: ignore[no-any-return]
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
        return peft.get_peft_model(model, settings)


def unfreeze(model: Any) -> Any:
    """The model; if it was loaded with an adapter, which is frozen then, with that alone trainable."""
    if hasattr(model, "peft_config"):
        model.set_adapter(model.active_adapter)
    return model


def merge_lora(model: PeftModel) -> PreTrainedModel:
    """The plain model with its adapters added to its weights. Uses up `model`."""
    return model.merge_and_unload()  # type: ignore[no-any-return]


def load_adapter_weights(model: PeftModel, folder: Path) -> None:
    """Replace the weights of the model's adapter by those saved in `folder`."""
    import peft
    from safetensors.torch import load_file

    peft.set_peft_model_state_dict(model, load_file(folder / "adapter_model.safetensors"))


def check_targets(model: PreTrainedModel, targets: str) -> str | list[str]:
    """peft's target_modules. Raises `UserError` for the head and for a name that is not a linear module."""
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


@dataclass(frozen=True)
class AdapterMisfit:
    """The tensors of an adapter that do not fit its base model.

    Attributes:
        unknown: Tensors that no module of the model has a place for.
        absent: Tensors that the model's adapter has and the file lacks.
        shapes: Name to shape in the file and shape in the model.
        expected: Names that the model's adapter has, as files have them.
        modules: Names of all tensors of the model with the adapter on it.
    """

    unknown: list[str]
    absent: list[str]
    shapes: dict[str, tuple[list[int], list[int]]]
    expected: list[str]
    modules: Collection[str]


def check_adapter(folder: Path, base: str, config: PreTrainedConfig, *, trust_remote_code: bool) -> None:
    """Raise `UserError` unless every tensor of the adapter has its place in a model of this config, and the reverse."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    settings = read_settings(folder)
    if settings.is_prompt_learning:
        kind = getattr(settings.peft_type, "value", settings.peft_type)
        raise UserError(
            f"this is a {kind} adapter, which adds tokens to the prompt", where=folder, hint="use LoRA"
        )
    if settings.task_type not in (None, "CAUSAL_LM"):
        raise UserError(f"this adapter is for {settings.task_type}, not for a causal model", where=folder)
    try:
        with quiet(), torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
            settings.init_lora_weights = False  # the others compute with the base's weights
            wrapped: Any = peft.PeftModelForCausalLM(model, settings)
        renamed = getattr(model, "_checkpoint_conversion_mapping", {})  # what peft's from_pretrained hands on
        state = peft.load_peft_weights(str(folder), device="cpu", key_mapping=renamed)
        with quiet():
            misfit = _compare(wrapped, state, settings)
    except Exception as error:
        # peft's words for targets that the model lacks, and for settings it does not know
        line = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"the adapter does not match its base model {base}: {line[:300]}", where=folder
        ) from error
    if misfit.unknown or misfit.absent or misfit.shapes:
        layers = getattr(config.get_text_config(), "num_hidden_layers", None)
        raise _error(misfit, len(state), folder, base, layers, int(getattr(settings, "r", 0)))


def load_adapter(model: Any, folder: Path) -> Any:
    """The model with the adapter of a folder on it, frozen."""
    import peft

    with quiet():
        return peft.PeftModel.from_pretrained(model, str(folder))


def read_settings(folder: Path) -> Any:
    """peft's config of an adapter. Raises `UserError` where the installed peft cannot read it."""
    import peft

    try:
        with quiet():
            return peft.PeftConfig.from_pretrained(str(folder))
    except Exception as error:  # also KeyError and TypeError, for kinds and fields of another version
        line = next(iter(str(error).splitlines()), "")
        what = f"the adapter cannot be read by the installed peft ({type(error).__name__}: {line[:200]})"
        raise UserError(what, where=folder / "adapter_config.json") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Without peft's warnings, whose content is checked here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _compare(wrapped: Any, state: dict[str, Tensor], settings: Any) -> AdapterMisfit:
    """Load the tensors into a model without weights, as peft would, and see what is left over on either side."""
    import peft

    own = {name: list(tensor.shape) for name, tensor in wrapped.state_dict().items()}
    names = {name: _saved(name) for name in own}
    expected = [saved for name, saved in names.items() if saved != name and "trainable_tokens" not in name]
    shapes = {
        saved: (list(state[saved].shape), own[name])
        for name, saved in names.items()
        if saved in state and list(state[saved].shape) != own[name]
    }
    absent = [name for name in expected if name not in state]
    if not shapes and set(expected) == set(state):
        return AdapterMisfit([], [], {}, expected, own)
    try:
        result: Any = peft.set_peft_model_state_dict(wrapped, state, ignore_mismatched_sizes=True)
    except KeyError:  # a module that was trained whole and is not in the file
        return AdapterMisfit([name for name in state if name not in expected], absent, shapes, expected, own)
    unknown = [_saved(name) for name in result.unexpected_keys if _saved(name) not in shapes]
    lacking = {names.get(name, name) for name in result.missing_keys}  # names of the file may be converted
    lora = str(getattr(settings.peft_type, "value", settings.peft_type)) == "LORA"
    absent = [name for name in absent if name in lacking and name not in shapes] if lora else []
    return AdapterMisfit(unknown, absent, shapes, expected, own)


def _saved(name: str) -> str:
    """What a tensor of a model is called in an adapter's file."""
    return name.replace(".modules_to_save", "").replace(".default", "")


def _error(
    misfit: AdapterMisfit, total: int, folder: Path, base: str, layers: int | None, rank: int
) -> UserError:
    """One line: a tensor, how many more, and what is the likely reason."""
    of = f"of the base model {base}"
    if misfit.unknown:
        name = _first(misfit.unknown)
        what = f"{len(misfit.unknown)} of the adapter's {total} tensors match nothing {of}: {name}"
        return UserError(what, where=folder, hint=_reason(name, misfit, layers))
    if misfit.shapes:
        name, (here, there) = next(iter(misfit.shapes.items()))
        what = f"{len(misfit.shapes)} of the adapter's {total} tensors have another shape than those {of}"
        what += f": {name} is {here}, not {there}"
        return UserError(what, where=folder, hint=_reason_of_shape(name, here, there, rank))
    what = f"the adapter lacks {len(misfit.absent)} of the {len(misfit.expected)} tensors {of}: {_first(misfit.absent)}"
    hint = "it belongs to a base with fewer modules, or was saved incompletely"
    if any("lora_" not in name for name in misfit.absent):
        hint = "modules_to_save are not in the file"
    return UserError(what, where=folder, hint=hint)


def _first(names: list[str]) -> str:
    return min(names, key=lambda name: [int(p) if p.isdigit() else -1 for p in name.split(".")])


def _reason(name: str, misfit: AdapterMisfit, layers: int | None) -> str:
    """Why a tensor fits nothing, from the longest ending that it has in common with an expected name."""
    parts = name.split(".")
    for start in range(1, len(parts)):
        ending = "." + ".".join(parts[start:])
        match = next((other for other in misfit.expected if other.endswith(ending)), None)
        if match is None:
            continue
        before, there = parts[:start], match.removesuffix(ending).split(".")
        if parts[start - 1].isdigit() and layers is not None and int(parts[start - 1]) >= layers:
            most = 1 + max(int(p) for n in misfit.unknown for p in n.split(".") if p.isdigit())
            return f"the adapter is for {most} layers, the base has {layers}: another size of the model?"
        if start < len(parts) - 2 and not parts[start - 1].isdigit():
            begin = f"its names begin with '{'.'.join(before)}.' where '{'.'.join(there)}.' is expected"
            return f"{begin}: {_prefix(before, there)}"
        break
    if not any(part.startswith(("lora_", "modules_to_save")) for part in parts):
        return "the file also holds other weights than the adapter's"
    module = name.partition(".lora_")[0]
    if any(other.startswith(f"{module}.") for other in misfit.modules):
        return f"adapter_config.json does not have {module.rpartition('.')[2]} of this layer among its target_modules"
    return "the base has no such module: is it another architecture?"


def _prefix(here: list[str], there: list[str]) -> str:
    """What two beginnings of names differ in."""
    while here and there and here[-1] == there[-1]:
        here, there = here[:-1], there[:-1]
    while here and there and here[0] == there[0]:
        here, there = here[1:], there[1:]
    if not there:
        return f"'{'.'.join(here)}.' is too much"
    return f"'{'.'.join(there)}.' is missing" if not here else "another class of model was trained"


def _reason_of_shape(name: str, here: list[int], there: list[int], rank: int) -> str:
    if 0 in here:
        return "its tensors are empty: saved from sharded weights (ZeRO-3, FSDP) that were not gathered"
    if ("lora_" not in name or "embed" in name or "lm_head" in name) and here[1:] == there[1:]:
        return f"the vocabulary was resized to {here[0]} for training: resize and save the base model first"
    side = 0 if "lora_A" in name else -1
    if "lora_" in name and len(here) == len(there) and here[side] != there[side]:
        return f"adapter_config.json says r = {rank}, the tensors have rank {here[side]}"
    return "the adapter was trained on another size of the base model"
