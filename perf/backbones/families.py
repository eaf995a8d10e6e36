"""The smallest model of each family."""

from __future__ import annotations

from typing import Any

from model.libraries.names import library_of


def smallest_models(models: dict[str, dict[str, Any]]) -> dict[tuple[str, str], str]:
    """Library ("": timm) and family -> name of its smallest model that works, ascending."""
    works = [name for name, entry in models.items() if "sizes" in entry]
    chosen: dict[tuple[str, str], str] = {}
    for name in sorted(works, key=lambda name: (models[name]["parameters"], name)):
        chosen.setdefault((library_of(name)[0], models[name]["family"]), name)
    return chosen
