"""Packed, padded and one-by-one rows agree on real architectures; what cannot be scored exactly is refused by name."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from rectune.data.packing import Batch, collate
from rectune.data.tokenization import Encoded
from rectune.errors import UserError
from rectune.models.scorer import Scorer
from rectune.objective_spec import apply_objective
from toys import tiny_model, tiny_vision_model

ARCHITECTURES = ["llama", "qwen2", "qwen3", "gemma2", "gemma3"]
V = 272


def row(length: int, prompt: int, seed: int) -> Encoded:
    """Random ids; targets after the prompt, with a hole of two, as in a conversation of several turns."""
    ids = torch.randint(3, V, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
    target = [i >= max(1, prompt) and i not in (length // 2, length // 2 + 1) for i in range(length)]
    labels = [i if t else -100 for i, t in zip(ids, target, strict=True)]
    return Encoded(ids, labels, [t and i == length - 1 for i, t in enumerate(target)])


ROWS = [row(23, 5, 1), row(1, 1, 2), row(9, 3, 3), row(40, 25, 4), row(6, 6, 5), row(12, 0, 6), row(6, 5, 7)]
"""Longer and shorter than the Gemmas' window of 8, one token alone, and a row without any target."""


def gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found  # type: ignore[return-value]


Result = tuple[float, dict[str, Tensor]]


def scored(model: Any, objective: str, batches: list[list[Encoded]], **settings: Any) -> Result:
    """Sum of the objective over batches of rows, and its gradients."""
    scorer, total = Scorer(model, **settings), 0.0
    for rows in batches:
        loss = apply_objective(objective, scorer.columns(collate(rows))).sum()
        loss.backward()
        total += loss.item()
    return total, gradients(model)


def padded(model: Any, objective: str) -> Result:
    """The same from transformers' own forward: rows padded on the right, eager attention, all logits."""
    model.set_attn_implementation("eager")
    longest = max(len(r.input_ids) for r in ROWS)
    ids = torch.tensor([r.input_ids + [0] * (longest - len(r.input_ids)) for r in ROWS])
    labels = torch.tensor([r.labels + [-100] * (longest - len(r.labels)) for r in ROWS])
    mask = torch.tensor([[1] * len(r.input_ids) + [0] * (longest - len(r.input_ids)) for r in ROWS])
    logits = model(input_ids=ids, attention_mask=mask).logits.float()
    where = labels[:, 1:] != -100
    logp = logits[:, :-1].log_softmax(-1).gather(2, labels[:, 1:, None].clamp(min=0)).squeeze(2)[where]
    rows = torch.arange(len(ROWS))[:, None].expand_as(where)[where]
    loss = apply_objective(objective, {"logp": logp, "row": rows}).sum()
    loss.backward()
    return loss.item(), gradients(model)


def assert_same(a: Result, b: Result) -> None:
    assert a[0] == pytest.approx(b[0], rel=1e-5, abs=0)
    assert a[1].keys() == b[1].keys()
    largest = max(gradient.abs().max().item() for gradient in b[1].values())
    for name, gradient in b[1].items():
        torch.testing.assert_close(
            a[1][name], gradient, rtol=1e-4, atol=2e-6 * largest, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("objective", ["sft", "dft", "sequence_dft"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_packed_padded_and_alone_agree(arch: str, objective: str) -> None:
    model = tiny_model(arch)
    expected = padded(model, objective)
    assert expected[0] > 0 and len(expected[1]) >= 20
    assert_same(scored(model, objective, [ROWS]), expected)
    assert_same(scored(model, objective, [[r] for r in ROWS]), expected)
    order = [ROWS[i] for i in (3, 5, 0, 4, 6, 2, 1)]
    assert_same(scored(model, objective, [order[:2], order[2:]], memory_budget=5 * V * 4), expected)


def test_the_comparison_sees_a_leak() -> None:
    """Rows that attend to the rows before them give another loss."""
    model = tiny_model("llama")
    expected = padded(model, "sft")
    scorer = Scorer(model)
    batch = collate(ROWS)
    loss = apply_objective("sft", scorer.columns(batch)).sum().item()
    assert loss == pytest.approx(expected[0], rel=1e-5)
    batch.row_lengths[:] = [sum(batch.row_lengths)]
    assert apply_objective("sft", scorer.columns(batch)).sum().item() != pytest.approx(expected[0], rel=1e-5)


def test_columns_are_in_order_and_say_their_row() -> None:
    model = tiny_model("qwen3")
    names = ("logp", "entropy", "entropy20", "top1")
    with torch.no_grad():
        columns = Scorer(model).columns(collate(ROWS), names)
        alone = [Scorer(model).columns(collate([r]), names) for r in ROWS]
    assert set(columns) == {*names, "row", "structural", "weight"}
    for name in (*names, "structural"):
        torch.testing.assert_close(columns[name], torch.cat([c[name] for c in alone]))
    counts = [sum(label != -100 for label in r.labels) for r in ROWS]
    assert columns["row"].tolist() == [i for i, n in enumerate(counts) for _ in range(n)]
    assert columns["structural"].sum() == sum(any(r.structural) for r in ROWS)
    assert columns["row"].dtype == torch.int64 and columns["structural"].dtype == torch.bool


@pytest.mark.parametrize("rows", [[ROWS[4]], [ROWS[1], ROWS[4]], []])
def test_no_target_gives_zeros_connected_to_the_parameters(rows: list[Encoded]) -> None:
    model = tiny_model("llama")
    scorer = Scorer(model)
    columns = scorer.columns(collate(rows), ("logp", "kl", "entropy", "top1"), reference=scorer.frozen())
    assert all(len(column) == 0 for column in columns.values())
    loss = apply_objective("asft", columns).sum()
    loss.backward()
    assert loss == 0
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and (parameter.grad == 0).all(), name


def test_gradient_checkpointing_gives_equal_gradients() -> None:
    for arch in ("llama", "gemma2"):
        model = tiny_model(arch).train()
        plain = scored(model, "dft", [ROWS])
        model.activation_checkpointing_enable()
        assert model.is_gradient_checkpointing
        assert_same(scored(model, "dft", [ROWS]), plain)


def test_a_check_leaves_mode_and_gradients_alone() -> None:
    model = tiny_model("llama").train()
    Scorer(model)
    assert model.training and all(p.grad is None for p in model.parameters())


# --- References -----------------------------------------------------------------------------------------


def adapted(arch: str = "llama", targets: tuple[str, ...] = ("q_proj", "v_proj", "down_proj")) -> Any:
    model = get_peft_model(tiny_model(arch), LoraConfig(r=4, target_modules=list(targets)))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.3)
    return model


def test_without_adapter_is_the_base_model() -> None:
    batch = collate(ROWS)
    base = Scorer(tiny_model("llama")).columns(batch)["logp"].detach()
    model = adapted()
    scorer = Scorer(model)
    columns = scorer.columns(batch, ("logp", "ref_logp", "kl"), reference=scorer.without_adapter())
    torch.testing.assert_close(columns["ref_logp"], base)
    assert not columns["ref_logp"].requires_grad and columns["kl"].requires_grad
    assert (columns["logp"] - base).abs().max() > 0.1 and columns["kl"].min() > 0
    apply_objective("asft", columns, anchor=1.0).sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    with torch.no_grad():  # and afterwards the adapter is on again
        torch.testing.assert_close(scorer.columns(batch)["logp"], columns["logp"].detach())
    with pytest.raises(UserError, match="has no adapter"):
        Scorer(tiny_model("llama")).without_adapter()


def test_frozen_does_not_move() -> None:
    batch = collate(ROWS)
    for model in (tiny_model("gemma2"), adapted()):
        scorer = Scorer(model)
        before = scorer.columns(batch)["logp"].detach()
        reference = scorer.frozen()
        assert not any(p.requires_grad for p in reference.model.parameters())
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.2)
        columns = scorer.columns(batch, ("logp", "ref_logp", "kl"), reference=reference)
        torch.testing.assert_close(columns["ref_logp"], before)
        assert (columns["logp"] - before).abs().max() > 0.01 and columns["kl"].min() > 0


# --- Families -------------------------------------------------------------------------------------------

SMALL: dict[str, Any] = {
    "vocab_size": V, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "initializer_range": 0.1,
}  # fmt: skip


ROPE = {"rope_type": "default", "rope_theta": 1e4}


def small(config: str, **settings: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = getattr(transformers, config)(**SMALL | settings)
        return transformers.AutoModelForCausalLM.from_config(made).eval()


WINDOW = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
DEEPSEEK = {
    "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
    "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "num_key_value_heads": 4, "first_k_dense_replace": 1,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "GPT2Config": {},
    "OPTConfig": {"word_embed_proj_dim": 32, "ffn_dim": 64},
    "GPTNeoXConfig": {},
    "GPTBigCodeConfig": {},
    "CTRLConfig": {"dff": 64},
    "Starcoder2Config": {},
    "SmolLM3Config": {},
    "Olmo2Config": {},
    "Olmo3Config": WINDOW,
    "Exaone4Config": WINDOW,
    "Glm4Config": {"head_dim": 8},
    "Gemma3nTextConfig": {
        "head_dim": 8, "vocab_size_per_layer_input": V, "hidden_size_per_layer_input": 8, "laurel_rank": 8,
        "altup_num_inputs": 2, "intermediate_size": [64, 64], "activation_sparsity_pattern": [0.0, 0.0],
        "num_kv_shared_layers": 0, **WINDOW,
    },
    "Qwen2Config": {"use_sliding_window": True, "max_window_layers": 1, **WINDOW},
    "MixtralConfig": {"num_local_experts": 4},
    "Qwen3MoeConfig": {"num_experts": 4, "head_dim": 8, **EXPERTS},
    "OlmoeConfig": {"num_experts": 4, "num_experts_per_tok": 2},
    "JetMoeConfig": {"kv_channels": 8, "num_local_experts": 4, "num_experts_per_tok": 2},
    "DeepseekV2Config": DEEPSEEK | EXPERTS,
    "DeepseekV3Config": DEEPSEEK | EXPERTS,
}  # fmt: skip


def assert_packed_is_alone(model: Any) -> None:
    """Log-probs of packed rows are those that the model's own forward gives of each row alone."""
    plain = copy.deepcopy(model)
    with torch.no_grad():
        found = Scorer(model).columns(collate(ROWS))
        for i, one in enumerate(ROWS):
            logits = plain(torch.tensor([one.input_ids]), use_cache=False).logits[0].log_softmax(-1)
            expected = [logits[k - 1, t] for k, t in enumerate(one.labels) if t != -100]
            packed = found["logp"][found["row"] == i]
            assert len(packed) == len(expected)
            if expected:
                torch.testing.assert_close(packed, torch.stack(expected), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("config", FAMILIES)
def test_packed_is_alone_in_every_family(config: str) -> None:
    assert_packed_is_alone(small(config, **FAMILIES[config]))


def test_a_model_of_text_and_images_is_packed_as_text() -> None:
    assert_packed_is_alone(tiny_vision_model())


# --- Heads ----------------------------------------------------------------------------------------------

HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    "cohere": ("CohereConfig", {"logit_scale": 0.25}),
    "cohere2": ("Cohere2Config", {"logit_scale": 2.0, "sliding_window": 8}),
    "granite": (
        "GraniteConfig",
        {"logits_scaling": 8.0, "attention_multiplier": 0.2, "embedding_multiplier": 3.0},
    ),
    "phi": ("PhiConfig", {"num_key_value_heads": 4}),
    "untied": ("LlamaConfig", {"tie_word_embeddings": False}),
    "mistral": ("MistralConfig", {"sliding_window": 8}),
}


@pytest.mark.parametrize("family", HEADS)
def test_heads_of_other_families(family: str) -> None:
    config, settings = HEADS[family]
    model = small(config, **settings)
    if family == "phi":
        nn.init.normal_(model.lm_head.bias)
    expected = padded(model, "dft")
    found = scored(model, "dft", [ROWS])
    assert_same(found, expected)
    head = Scorer(model).head()
    assert head.logit_scale == {"cohere": 0.25, "cohere2": 2.0, "granite": 0.125}.get(family, 1.0)
    assert (head.bias is not None) == (family == "phi")
    assert ("lm_head.bias" in found[1]) == (family == "phi")


def test_the_soft_cap_of_the_head_is_read() -> None:
    assert Scorer(tiny_model("gemma2")).head().softcap == 30.0
    assert Scorer(tiny_model("llama")).head().softcap is None


@pytest.mark.parametrize("family", ["gemma2", "phi"])
def test_a_reference_with_a_head_of_its_own(family: str) -> None:
    """log p and KL(reference || model), with soft-caps and with two biases, from both models' own logits."""
    if family == "gemma2":
        model, other = tiny_model("gemma2"), tiny_model("gemma2", seed=1)
    else:
        model, other = (small("PhiConfig", num_key_value_heads=4) for _ in range(2))
        for seed, m in enumerate((model, other)):
            nn.init.normal_(m.lm_head.bias, generator=torch.Generator().manual_seed(seed))
    names = ("kl", "ref_logp")
    columns = Scorer(model).columns(collate([ROWS[0]]), names, reference=Scorer(other))
    ids = torch.tensor([ROWS[0].input_ids])
    where = torch.tensor(ROWS[0].labels[1:]) != -100
    logps = [m(ids).logits[0, :-1].log_softmax(-1)[where] for m in (model, other)]
    expected = (logps[1].exp() * (logps[1] - logps[0])).sum(1)
    torch.testing.assert_close(columns["kl"], expected, rtol=1e-4, atol=1e-5)
    at_target = logps[1].gather(1, ids[0, 1:][where, None]).squeeze(1).detach()
    torch.testing.assert_close(columns["ref_logp"], at_target, rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="need a reference model"):
        Scorer(model).columns(collate([ROWS[0]]), ("kl",))


# --- Refused by name ------------------------------------------------------------------------------------


def doctored(change: str) -> Any:
    """A llama with something that an unaware scorer would train wrongly."""
    model = tiny_model("llama")
    layer = model.model.layers[0].mlp
    forward = layer.forward
    if change == "rows leak":
        layer.forward = lambda x: forward(x) + x.cumsum(1) / 10
    elif change == "rows leak a little":
        layer.forward = lambda x: forward(x) + 2e-3 * x.roll(1, 1)
    elif change == "logits scaled":
        head = model.lm_head.forward
        model.lm_head.forward = lambda x: head(x) * 1.1
    elif change == "head not linear":
        model.set_output_embeddings(nn.Sequential(nn.Linear(32, V)))
    return model


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("rows leak", "LlamaForCausalLM lets the rows of a pack attend to each other"),
        ("rows leak a little", "LlamaForCausalLM lets the rows of a pack attend to each other"),
        ("logits scaled", "LlamaForCausalLM: log-probabilities computed from the head's weight differ"),
        ("head not linear", "the head of LlamaForCausalLM is not a linear layer but Sequential"),
    ],
)
def test_doctored_models_are_refused(change: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Scorer(doctored(change))
    Scorer(doctored("nothing"))


def test_a_leak_is_seen_in_bfloat16() -> None:
    with pytest.raises(UserError, match="attend to each other"):
        Scorer(doctored("rows leak").bfloat16())
    for arch in ARCHITECTURES:
        Scorer(tiny_model(arch).bfloat16())


@pytest.mark.parametrize(
    ("config", "settings"),
    [
        ("MambaConfig", {"state_size": 4}),
        ("RecurrentGemmaConfig", {"lru_width": 32, "attention_window_size": 8, "block_types": ("recurrent",)}),
        ("Lfm2Config", {"layer_types": ["conv", "full_attention"]}),
        ("FalconH1Config", {"mamba_d_ssm": 64, "mamba_n_heads": 8, "mamba_d_head": 8}),
        ("GptOssConfig", {"num_local_experts": 2, "head_dim": 8, "rope_parameters": ROPE}),
        ("BloomConfig", {"n_layer": 2, "n_head": 4}),
    ],
)  # fmt: skip
def test_architectures_that_cannot_be_packed(config: str, settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="pack"):
        Scorer(small(config, **settings))


def test_adapters_on_the_head_are_refused() -> None:
    for arguments in (
        {"target_modules": ["lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    ):
        model = get_peft_model(small("LlamaConfig", tie_word_embeddings=False), LoraConfig(r=2, **arguments))
        with pytest.raises(UserError, match="adapter on the language-model head"):
            Scorer(model)


def test_batch_rows_are_known_to_the_scorer() -> None:
    batch: Batch = collate(ROWS)
    hidden = Scorer(tiny_model("llama")).hidden(batch)
    assert hidden.shape == (sum(len(r.input_ids) for r in ROWS), 32)
