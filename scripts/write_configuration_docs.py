"""Write docs/configuration.md from the typed configuration: python scripts/write_configuration_docs.py"""

from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ohlora.config import Config, load_config

ROOT = Path(__file__).parents[1]
INTRODUCTION = """# Configuration

Made by `scripts/write_configuration_docs.py` from `ohlora/config.py`; do not edit by hand.

`params.yaml` holds every setting. A profile (`profiles/NAME.yaml`) changes values of it, and
`--set key=value` changes single ones; both run in a workspace of their own under `.ohlora/workspaces/`,
so that neither rewrites your `params.yaml` nor the outputs in `artifacts/`. An unknown key or a bad value
is an error that names the key, the file and what is allowed. `ohlora config` prints the effective values.
"""


def kind_of(field: FieldInfo) -> str:
    text = str(field.annotation).replace("typing.", "").replace("<class '", "").replace("'>", "")
    bounds = ", ".join(str(m) for m in field.metadata)
    text = text.replace("|", "or")
    return f"{text} ({bounds})" if bounds else text


def rows(model: type[BaseModel], values: dict[str, Any], prefix: str) -> list[str]:
    lines = []
    for key, field in model.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            lines += rows(annotation, values[key], f"{prefix}{key}.")
        else:
            lines.append(
                f"| `{prefix}{key}` | {kind_of(field)} | `{values[key]}` | {field.description or ''} |"
            )
    return lines


def main() -> None:
    values = load_config(ROOT).model_dump(mode="json")
    parts = [INTRODUCTION]
    for section, field in Config.model_fields.items():
        annotation = field.annotation
        header = "\n| Setting | Type | In params.yaml | Meaning |\n| --- | --- | --- | --- |\n"
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            body = rows(annotation, values[section], f"{section}.")
        else:
            body = [f"| `{section}` | {kind_of(field)} | `{values[section]}` | {field.description or ''} |"]
        parts.append(f"\n## {section}\n{header}" + "\n".join(body) + "\n")
    (ROOT / "docs" / "configuration.md").write_text("".join(parts), encoding="utf-8")


if __name__ == "__main__":
    main()
