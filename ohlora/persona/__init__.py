"""Who is she? The character card, the dialogues she learns from, her expressions and the format of a prompt.

Facts about her are data (`data/persona/ohlora.yaml`); nothing here knows a model or a tokenizer.
"""

from ohlora.persona.card import Card, CardError, ExpressionSpec, Fact, School, load_card
from ohlora.persona.dialogues import DialogueError, DialogueRow, import_original_csv, load_dialogues
from ohlora.persona.expressions import expression_of, fallback_expression
from ohlora.persona.prompt import (
    STOP_SEQUENCES,
    EmptyReply,
    ParsedTurn,
    TurnError,
    TurnGrammar,
    expression_levels,
    expression_of_levels,
    parse_completion,
    parse_turn,
    render_completion,
    render_prompt,
    sanitize,
    turn_grammar,
)

__all__ = [
    "STOP_SEQUENCES",
    "Card",
    "CardError",
    "DialogueError",
    "DialogueRow",
    "EmptyReply",
    "ExpressionSpec",
    "Fact",
    "ParsedTurn",
    "School",
    "TurnError",
    "TurnGrammar",
    "expression_levels",
    "expression_of",
    "expression_of_levels",
    "fallback_expression",
    "import_original_csv",
    "load_card",
    "load_dialogues",
    "parse_completion",
    "parse_turn",
    "render_completion",
    "render_prompt",
    "sanitize",
    "turn_grammar",
]
