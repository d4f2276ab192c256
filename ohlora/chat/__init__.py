"""What happens in one turn? Recall, prompt, reply, expression, face, remember. No web framework in here."""

from ohlora.chat.companion import Companion, Turn, TurnEvent
from ohlora.chat.message import MessageError, check_message
from ohlora.chat.product import Product, load_product

__all__ = ["Companion", "MessageError", "Product", "Turn", "TurnEvent", "check_message", "load_product"]
