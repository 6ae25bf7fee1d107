"""Dynamic Fine-Tuning in a training loop of your own: only `token_logprobs` and `dft` are rectune's."""

import torch

from rectune import dft, load_model, token_logprobs

model, tokenizer = load_model("smollm2-135m", dtype=torch.float32)
optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5)
prompt, answer = "Question: 48 apples, half are sold. How many remain?\nCalculation: ", "48 - (48 / 2)"

for step in range(10):
    ids = tokenizer(prompt)["input_ids"]
    targets = tokenizer(answer)["input_ids"] + [tokenizer.eos_token_id]
    hidden = model.model(torch.tensor([ids + targets])).last_hidden_state[0]
    hidden = hidden[len(ids) - 1 : -1]  # position t predicts token t + 1
    logp = token_logprobs(hidden, model.lm_head.weight, torch.tensor(targets))
    dft(logp).mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    print(step, f"nll {-logp.mean():.3f}  mean p {logp.exp().mean():.3f}")
