"""A model's name becomes a model: only causal language models, only safetensors weights.

Names become folders in `folder.py`, adapters are put on in `lora.py`, and what a model computes is read in `scorer.py`.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rectune.errors import UserError, unknown_name
from rectune.models.folder import (
    PACKAGED,
    TOKENIZER_FILES,
    adapter_folder,
    base_of,
    check_folder,
    check_weights,
    find_folder,
    quantised,
)
from rectune.models.lora import check_adapter, load_adapter, need_peft

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger("rectune")

DTYPES = ("bfloat16", "float32")

_OTHER_TASKS = ("ForMaskedLM", "Classification", "ForQuestionAnswering", "RewardModel")


def load_model(
    name: str | Path,
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    trust_remote_code: bool = False,
    attn_implementation: str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model in eval mode, and its tokenizer.

    Args:
        name: `smollm2-135m` (packaged), a local folder, or a hub id. A folder with only a LoRA adapter gives
            its base model with the adapter on it.
        dtype: Of the weights; None takes the one they are stored in.
        device: Where to put the model; None leaves it on the CPU.
        trust_remote_code: Run Python code that comes with the model.
        attn_implementation: As in transformers; None takes its default.

    Raises:
        UserError: No such model or no network, not a causal language model, incomplete, or stored as pickle.
    """
    from rectune.models.limits import say_beyond

    trust = {"trust_remote_code": trust_remote_code}
    adapter = adapter_folder(str(name)) or _hub_adapter(str(name))
    base = name if adapter is None else _check_adapter(adapter, name, **trust)
    model = _load_whole(base, dtype=dtype, device=device, attn_implementation=attn_implementation, **trust)
    if adapter is not None:
        model = _put_on(adapter, model)
    tokenizer = load_tokenizer(adapter or name, **trust)
    say_beyond(tokenizer, model)
    return model.to(device).eval(), tokenizer  # type: ignore[arg-type]


def load_tokenizer(name: str | Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, without its weights: of an adapter its own if it has one, else its base model's.

    Raises:
        UserError: There is none, or it is damaged.
    """
    from transformers import AutoTokenizer

    adapter = adapter_folder(str(name))
    if adapter is not None and not any((adapter / file).is_file() for file in TOKENIZER_FILES):
        name = base_of(adapter)
    source = str(find_folder(str(name)) or name)
    return _pretrained(AutoTokenizer.from_pretrained, name, source, trust_remote_code=trust_remote_code)  # type: ignore[no-any-return]


def load_config(name: str | Path, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The config of a model that can be loaded: causal, of whole numbers, and all in its folder.

    Raises:
        UserError: As `load_model`, as far as it shows without reading weights.
    """
    import transformers

    folder = find_folder(str(name))
    if folder is not None:
        check_folder(folder)
    source, trust = str(folder or name), {"trust_remote_code": trust_remote_code}
    config = _pretrained(transformers.AutoConfig.from_pretrained, name, source, **trust)
    check_causal(config, str(name), trusted=trust_remote_code)
    check_whole(config, str(name))
    return config  # type: ignore[no-any-return]


def load_outline(name: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model without its weights (on the meta device), and its tokenizer: enough to write rows as it reads them.

    Raises:
        UserError: As `load_model`, as far as the weights do not matter.
    """
    import torch
    import transformers

    from rectune.models.limits import say_beyond

    adapter = adapter_folder(str(name))
    config = load_config(name if adapter is None else _check_adapter(adapter, name))
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    tokenizer = load_tokenizer(name)
    say_beyond(tokenizer, model)
    return model, tokenizer


def _load_whole(
    name: str | Path,
    *,
    dtype: torch.dtype | str | None,
    device: torch.device | str | None,
    trust_remote_code: bool,
    attn_implementation: str | None,
) -> PreTrainedModel:
    """A model with all of its weights, read straight onto its device."""
    import torch
    import transformers

    source = str(find_folder(str(name)) or name)
    log.info("loading %s%s", name, "" if str(name) == source else f" from {source}")
    config = load_config(name, trust_remote_code=trust_remote_code)
    if attn_implementation is None and "/" in str(
        config._attn_implementation
    ):  # transformers would fetch and run it
        what = f"the config requires attention code from elsewhere ({config._attn_implementation})"
        raise UserError(what, where=name, hint="remove attn_implementation from its config.json")
    model, info = _pretrained(
        transformers.AutoModelForCausalLM.from_pretrained,
        name,
        source,
        config=config,
        dtype="auto" if dtype is None else dtype,
        device_map=None if torch.device(device or "cpu").type == "cpu" else {"": device},
        attn_implementation=attn_implementation,
        use_safetensors=True,  # pickle can run code
        ignore_mismatched_sizes=True,  # refused below, with names
        output_loading_info=True,
        trust_remote_code=trust_remote_code,
    )
    _check_loaded(info, name)
    if str(name) in PACKAGED:
        model.config._name_or_path = model.name_or_path = str(name)  # what an adapter notes down as its base
    return model  # type: ignore[no-any-return]


def _check_loaded(info: Mapping[str, Any], name: str | Path) -> None:
    """Raise `UserError` for tensors of another shape than the config's, or absent; warn of those without a place."""
    if wrong := sorted(info["mismatched_keys"]):
        tensor, here, there = wrong[0]
        what = f"{len(wrong)} tensors are not of the shape in config.json: {tensor} is {list(here)}, not {list(there)}"
        hint = "config.json and weights are of different models, or one was changed"
        if 0 in here:
            hint = "the weights are empty: they were saved sharded (ZeRO-3, FSDP) and not gathered"
        raise UserError(what, where=name, hint=hint)
    surplus = sorted(info["unexpected_keys"])
    if any("lora_" in tensor or ".base_layer." in tensor for tensor in surplus):
        what = f"the weights contain an unmerged adapter ({surplus[0]})"
        raise UserError(
            what, where=name, hint="merge_and_unload it before saving, or save the adapter by itself"
        )
    if absent := sorted(info["missing_keys"]):
        listed = ", ".join(absent[:3]) + (" ..." if len(absent) > 3 else "")
        raise UserError(f"the weights lack {len(absent)} tensors of the model: {listed}", where=name)
    if surplus:
        what = "%s: %d tensors of the weights are unknown to the model of config.json: %s%s"
        log.warning(what, name, len(surplus), surplus[0], " ..." if len(surplus) > 1 else "")


def check_model(name: str | Path) -> None:
    """Look at the folder that a name stands for, without reading weights; hub ids and packaged names pass.

    Raises:
        UserError: No such folder, or what shows of what `load_model` refuses: it lacks something, is quantised or not
            causal, or an adapter that does not fit its base model.
    """
    if str(name) in PACKAGED:
        return
    if (adapter := adapter_folder(str(name))) is not None:
        _check_adapter(adapter, name)
    elif find_folder(str(name)) is not None:
        load_config(name)


def check_causal(config: PreTrainedConfig, name: str, *, trusted: bool = False) -> None:
    """Raise `UserError` unless the config is that of a causal language model."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    known = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING or (trusted and hasattr(config, "auto_map"))
    # BERT and reward models have a causal class, but with their weights it would compute nonsense.
    other = any(a.endswith(_OTHER_TASKS) for a in config.architectures or ())
    if not known or other or config.is_encoder_decoder:
        architecture = ", ".join(config.architectures or ()) or config.model_type
        raise UserError(f"{architecture} is not a causal language model", where=name)


def check_whole(config: PreTrainedConfig, name: str) -> None:
    """Raise `UserError` for a model whose weights are stored as codes: quantised, by whichever method."""
    for part in (config, config.get_text_config()):
        for key in ("quantization_config", "compression_config", "quantization"):
            given = getattr(part, key, None)
            if given:
                raise quantised(_method(key, given if isinstance(given, dict) else given.to_dict()), name)


def _method(key: str, given: dict[str, Any]) -> str:
    """What an entry of a config says about how weights were quantised."""
    loads = [bits for bits in (4, 8) if given.get(f"load_in_{bits}bit") or given.get(f"_load_in_{bits}bit")]
    name = given.get("quant_method") or given.get("quant_algo") or ("bitsandbytes" if loads else key)
    bits = given.get("bits") or next(iter(loads), None)
    return f"{getattr(name, 'value', name)}{f', {bits} bits' if bits else ''}"


def choose_dtype(dtype: str, device: torch.device) -> tuple[torch.dtype, str]:
    """The dtype of a model on `device`, and why; "auto" takes bfloat16 where the device multiplies it in hardware.

    Raises:
        UserError: `dtype` is neither "auto" nor one of `DTYPES`.
    """
    import torch

    if dtype in DTYPES:
        return getattr(torch, dtype), "as configured"
    if dtype != "auto":
        raise unknown_name("dtype", dtype, ("auto", *DTYPES))
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
    if fast:
        return torch.bfloat16, f"the {device.type} multiplies bfloat16 in hardware"
    return torch.float32, f"the {device.type} has no bfloat16 products in hardware"


def fingerprint(model: PreTrainedModel, *, dtype: torch.dtype | None = None) -> str:
    """16 hex digits that identify a model: its config and a sample of its weights.

    A SHA-256 over the config (without paths and library versions) and, for every tensor, its name, dtype,
    shape and 64 elements spread evenly over it. Takes milliseconds; training changes it, copying does not.

    Args:
        dtype: Take weights that are stored in another dtype for this one, as if the model had been loaded in it.
    """
    config = model.config.to_dict()
    for key in ("_name_or_path", "transformers_version", "architectures", "dtype", "use_cache"):
        config.pop(key, None)
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(_sampled(name, tensor, dtype if dtype and tensor.is_floating_point() else tensor.dtype))
    return digest.hexdigest()[:16]


def fingerprint_of_files(name: str) -> str | None:
    """As `fingerprint`, of a folder's or downloaded model's files; None where there are no safetensors.

    The same weights have another one than by `fingerprint`, which knows them by the names that they have in a model.
    """
    from huggingface_hub import snapshot_download
    from safetensors import safe_open

    folder = find_folder(name)
    if folder is None:
        try:
            folder = Path(snapshot_download(name, local_files_only=True))
        except (OSError, ValueError):
            return None
    files = sorted(folder.glob("*.safetensors"))
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for path in files:
        with safe_open(path, "pt") as file:
            for tensor in sorted(file.keys()):
                weight = file.get_tensor(tensor)
                digest.update(_sampled(tensor, weight, weight.dtype))
    return digest.hexdigest()[:16] if files else None


def _sampled(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> bytes:
    """What identifies a tensor: name, dtype, shape, and 64 of its elements."""
    import torch

    flat = tensor.reshape(-1)
    sample = flat[:: max(1, flat.numel() // 64)][:64].contiguous().to("cpu", dtype)
    values = sample.view(torch.uint8).numpy().tobytes() if sample.numel() else b""
    return f"{name} {dtype} {tuple(tensor.shape)}".encode() + values


@contextmanager
def quiet_bars() -> Iterator[None]:
    """Without transformers' bars for reading and writing weights, which takes seconds; downloads keep theirs."""
    from transformers.utils import logging as bars

    before = bars.set_tqdm_hook(lambda bar, args, settings: bar(*args, **{**settings, "disable": True}))
    try:
        yield
    finally:
        bars.set_tqdm_hook(before)


def _put_on(folder: Path, model: PreTrainedModel) -> PreTrainedModel:
    """The base model with the adapter of a folder on it."""
    log.info("with the adapter %s", folder)
    if whole := sorted(file.name for file in folder.glob("model*.safetensors")):
        log.warning(
            "%s has an adapter and whole weights (%s); the adapter is used. For the weights, move them to a folder "
            "without adapter_config.json", folder, whole[0],
        )  # fmt: skip
    return _pretrained(lambda source: load_adapter(model, Path(source)), folder, str(folder))  # type: ignore[no-any-return]


def _check_adapter(folder: Path, name: str | Path, *, trust_remote_code: bool = False) -> str:
    """The name of the base model of an adapter that fits it. Raises `UserError`, without reading the base's weights."""
    need_peft()
    weights = folder / "adapter_model.safetensors"
    if not weights.is_file():
        hint = None
        if whole := sorted(file.name for file in folder.glob("model*.safetensors")):
            hint = f"to use the weights in this folder ({whole[0]}), remove adapter_config.json"
        if (folder / "adapters.safetensors").is_file():
            hint = "adapters.safetensors is MLX's, which uses other tensor names: fuse it into its model"
        if (folder / "adapter_model.bin").is_file():
            hint = (
                "adapter_model.bin is pickle, which can run code: save the adapter again with a current peft"
            )
        raise UserError(
            "the folder has adapter_config.json, but no adapter_model.safetensors", where=folder, hint=hint
        )
    check_weights(weights)
    trust = {"trust_remote_code": trust_remote_code}
    try:
        base = base_of(folder)
        config = load_config(base, **trust)
    except UserError as error:
        hint = "set base_model_name_or_path in its adapter_config.json to where the base model is"
        raise UserError(
            f"the base model of the adapter cannot be loaded ({error})", where=name, hint=hint
        ) from error
    check_adapter(folder, base, config, **trust)
    return base


def _hub_adapter(name: str) -> Path | None:
    """The folder of an adapter that a hub id stands for, downloaded; None for a model."""
    if name in PACKAGED or find_folder(name) is not None:
        return None
    from huggingface_hub import snapshot_download
    from transformers.utils.peft_utils import find_adapter_config_file

    try:
        if find_adapter_config_file(name) is None:
            return None
        files = [
            "adapter_config.json",
            "adapter_model.safetensors",
            *TOKENIZER_FILES,
            "*.jinja",
            "*token*.json",
        ]
        return Path(snapshot_download(name, allow_patterns=files))
    except (OSError, ValueError):  # no such repository, or no network: said where the model is loaded
        return None


def _pretrained(function: Any, name: str | Path, source: str, **settings: Any) -> Any:
    """Call one of transformers' `from_pretrained`; what is wrong with the model becomes a `UserError`.

    OSError and ValueError are its words for: no such model, no network, gated, unknown architecture, remote code.
    Anything can be raised over files that are damaged, also by the Rust of tokenizers and safetensors.
    """
    try:
        with quiet_bars():
            return function(source, **settings)
    except Exception as error:
        if not isinstance(error, (OSError, ValueError)) and not Path(source).is_dir():
            raise
        line = next(iter(str(error).splitlines()), type(error).__name__)
        hint = None
        if "trust_remote_code" in str(error):
            line, hint = "comes with code of its own", "read it, then pass trust_remote_code=True"
        elif not Path(source).is_dir():
            hint = f"neither a local folder nor one of the packaged models: {', '.join(PACKAGED)}"
        raise UserError(line, where=name, hint=hint) from error
