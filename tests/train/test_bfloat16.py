"""Whether a training computes in bfloat16 follows from the device, unless the recipe says it."""

import pytest

from kandinsky.runtime import devices
from kandinsky.train import loop


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize(("said", "meant"), [(None, None), (True, True), (False, False)])
def test_what_is_not_said_follows_the_device(
    fast: bool, said: bool | None, meant: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "multiplies_bfloat16", lambda device: fast)
    settings = loop.LoopSettings.from_dict({"steps": 1, "lr": 0.1} | ({} if said is None else {"bf16": said}))
    assert settings.computes_bf16("cpu") is (fast if meant is None else meant)


def test_the_processor_at_hand_is_asked() -> None:
    assert isinstance(devices.multiplies_bfloat16("cpu"), bool)
