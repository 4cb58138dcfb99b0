"""Prompts of supporter and trained seeker: layouts, words, chat messages with spans, and what replies look like."""

from esc_lab.prompts.chat import (
    Message,
    Prompt,
    Role,
    build_prompt,
    drop_reasoning,
    history_messages,
    label_text,
    parse_reply,
    reply_content,
    without_system_role,
)
from esc_lab.prompts.layouts import Baseline, Layout, build_layout, load_layout
from esc_lab.prompts.seeker import END, SeekerProfile, seeker_messages, seeker_reply, seeker_system
from esc_lab.prompts.wording import Span, check_wording

__all__ = [
    "END",
    "Baseline",
    "Layout",
    "Message",
    "Prompt",
    "Role",
    "SeekerProfile",
    "Span",
    "build_layout",
    "build_prompt",
    "check_wording",
    "drop_reasoning",
    "history_messages",
    "label_text",
    "load_layout",
    "parse_reply",
    "reply_content",
    "seeker_messages",
    "seeker_reply",
    "seeker_system",
    "without_system_role",
]
