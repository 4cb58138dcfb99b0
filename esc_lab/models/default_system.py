"""Chat templates that write a default system message where a chat has none."""

from __future__ import annotations

from esc_lab.tokens import ChatEncoder

_SYSTEM_ROLE = """\
{%- if messages and messages[0]['role'] != 'system' -%}
{%- set messages = [{'role': 'system', 'content': DEFAULT}] + messages -%}
{%- endif -%}
"""
# A template without that role gets the text at the head of the first user message, as `without_system_role` has it.
_NO_SYSTEM_ROLE = """\
{%- if messages and messages[0]['role'] == 'system' -%}
{%- set system = messages[0]['content'] -%}
{%- set messages = messages[1:] -%}
{%- else -%}
{%- set system = DEFAULT -%}
{%- endif -%}
{%- if messages and messages[0]['role'] == 'user' -%}
{%- set head = {'role': 'user', 'content': system + '\\n\\n' + messages[0]['content']} -%}
{%- set messages = [head] + messages[1:] -%}
{%- endif -%}
"""


def add_default_system(encoder: ChatEncoder, text: str) -> str:
    """The encoder's chat template with `text` as the system message of chats that bring none of their own."""
    before = _SYSTEM_ROLE if encoder.system_role else _NO_SYSTEM_ROLE
    # Jinja reads escapes in a string as Python does.
    return before.replace("DEFAULT", repr(text)) + str(encoder.tokenizer.chat_template)
