"""bfloat16 or float32."""

from __future__ import annotations

import pytest
import torch

from rectune.errors import UserError
from rectune.models import precision
from rectune.models.precision import choose_precision


def test_what_is_configured_is_taken() -> None:
    assert choose_precision("bf16", torch.device("cpu"))[0] == torch.bfloat16
    assert choose_precision("fp32", torch.device("cpu"))[0] == torch.float32


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
@pytest.mark.parametrize("fast", [True, False])
def test_auto_takes_bfloat16_where_the_hardware_multiplies_it(
    kind: str, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision.torch.cpu, "_is_avx512_bf16_supported", lambda: fast)
    monkeypatch.setattr(precision.torch.cuda, "is_bf16_supported", lambda including_emulation: fast)
    dtype, why = choose_precision("auto", torch.device(kind))
    assert dtype == (torch.bfloat16 if fast else torch.float32)
    assert f"the {kind}" in why


def test_another_name_is_refused() -> None:
    with pytest.raises(UserError, match="fp8"):
        choose_precision("fp8", torch.device("cpu"))
