"""Who is she? The character card, the dialogues she learns from, her expressions and the format of a prompt.

Facts about her are data (`data/persona/ohlora.yaml`); nothing here knows a model or a tokenizer.
"""

from ohlora.persona.card import Card, CardError, ExpressionSpec, load_card
from ohlora.persona.dialogues import DialogueError, DialogueRow, import_original_csv, load_dialogues
from ohlora.persona.expressions import expression_of, fallback_expression
from ohlora.persona.prompt import (
    STOP_SEQUENCES,
    EmptyReply,
    ParsedReply,
    parse_completion,
    render_completion,
    render_prompt,
    sanitize,
)

__all__ = [
    "STOP_SEQUENCES",
    "Card",
    "CardError",
    "DialogueError",
    "DialogueRow",
    "EmptyReply",
    "ExpressionSpec",
    "ParsedReply",
    "expression_of",
    "fallback_expression",
    "import_original_csv",
    "load_card",
    "load_dialogues",
    "parse_completion",
    "render_completion",
    "render_prompt",
    "sanitize",
]
