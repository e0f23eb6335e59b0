"""Text on one side, token ids on the other: tokenizer, chat templates, text from tokens as they arrive."""

from headrace.text.chat import ChatPrompt, ChatTemplate, encode_chat, encode_rendered, find_template_faults
from headrace.text.incremental import Piece, TextStream
from headrace.text.loading import load_tokenizer
from headrace.text.stop_matcher import StopMatcher
from headrace.text.template_files import load_chat_template
from headrace.text.tokenizer import Tokenizer

__all__ = [
    "ChatPrompt",
    "ChatTemplate",
    "Piece",
    "StopMatcher",
    "TextStream",
    "Tokenizer",
    "encode_chat",
    "encode_rendered",
    "find_template_faults",
    "load_chat_template",
    "load_tokenizer",
]
