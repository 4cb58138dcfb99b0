"""From chat messages to token trees: encode, trie, packing."""

from esc_lab.tokens.encode import ChatEncoder, EncodedChat, TokenSpan, encode_labels
from esc_lab.tokens.examples import EncodeReport, Example, ReplyTokens, TokenSequence, encode_examples
from esc_lab.tokens.packing import PackedRow, pack_rows, pack_trees, pack_units, split_units
from esc_lab.tokens.trie import TokenTree, build_tree

__all__ = [
    "ChatEncoder",
    "EncodeReport",
    "EncodedChat",
    "Example",
    "PackedRow",
    "ReplyTokens",
    "TokenSequence",
    "TokenSpan",
    "TokenTree",
    "build_tree",
    "encode_examples",
    "encode_labels",
    "pack_rows",
    "pack_trees",
    "pack_units",
    "split_units",
]
