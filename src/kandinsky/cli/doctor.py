"""`kandinsky doctor`: what this machine has and what is missing."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from kandinsky.cli.settings import Settings
from kandinsky.cli.streams import emit_json
from kandinsky.printing import escaped


def doctor(
    context: typer.Context, as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False
) -> None:
    """Report versions, devices, attention backends, packages, codecs, memory, disk, hub settings, option defaults."""
    from kandinsky.runtime.doctor import report

    found = report()
    defaults: Settings = context.find_root().obj
    if defaults.problem is not None:
        found["problems"].append(str(defaults.problem))
    found["defaults"] = [{"option": o.option, "value": o.value, "from": o.origin} for o in defaults.distinct()]
    if as_json:
        emit_json(found, indent=1)
        return
    torch = found["torch"]
    _line("kandinsky", found["kandinsky"])
    _line("python", f"{found['python']} on {found['platform']}")
    _line("torch", f"{torch['version']}, {torch.get('threads', '?')} threads of {found['processors']} cores")
    _line("threads", _threads(found["threads"]))
    for device in torch.get("devices", ()):
        facts = [device["name"], *map(device.get, ("model", "vectors", "capability")), _room(device.get("memory"))]
        if "bfloat16" in device:
            facts.append(f"bfloat16 {device['bfloat16']}")
        _line("device", ", ".join(fact for fact in facts if fact))
    _line("default", torch.get("default_device"))
    _line("attention", ", ".join(torch.get("attention", ())))
    for name, package in found["packages"].items():
        _line("package", f"{name} {package['version'] or '– not installed'} ({package['for']})")
    _line("codecs", ", ".join(f"{name} {'yes' if there else 'NO'}" for name, there in found["codecs"].items()))
    _line("memory", _room(found["memory"]) or "unknown")
    for name, disk in found["disk"].items():
        _line("disk", f"{disk['free_gb']} GB free for the {name} {disk['path']}")
    hub = found["hub"]
    _line("hub", f"cache {hub['cache']}, token {'set' if hub['token'] else 'not set'}")
    for name, value in hub["settings"].items():
        _line("setting", f"{name}={value}")
    for one in found["defaults"]:
        value = ", ".join(one["value"]) if isinstance(one["value"], list) else one["value"]
        _line("option", f"{one['option']} = {value}, from {one['from']}")
    for problem in found["problems"]:
        _line("PROBLEM", problem)
    print("all is well" if not found["problems"] else f"{len(found['problems'])} problem(s)")


def _line(key: str, value: Any) -> None:
    print(f"{key:<10} {escaped(value)}")


def _threads(found: dict[str, Any]) -> str:
    """How threads share the machine, in words."""
    cores = f"{found['allowed']} of {found['machine']} cores allowed"
    quota = "no quota" if found["quota"] is None else f"quota of {found['quota']:g} cores"
    asked = f", OMP_NUM_THREADS={found['asked']}" if found["asked"] else ""
    named = " ".join(f"{name}={value}" for name, value in found["waiting"].items())
    waiting = "sleep while they wait" if found["passive"] else "spin while they wait"
    load = "" if found["load"] is None else f"; load {found['load']:g}"
    return f"{cores}, {quota}{asked}; they {waiting} ({named or 'nothing set'}){load}"


def _room(room: dict[str, float] | None) -> str | None:
    return None if room is None else f"{room['free_gb']} of {room['total_gb']} GB free"
