"""How an exported model is run without esc-lab: the part of its card, and the Modelfile that Ollama makes it from."""

from __future__ import annotations

from dataclasses import dataclass

from esc_lab.errors import UserError
from esc_lab.prompts import Role
from esc_lab.tokens import ChatEncoder

MODELFILE = "Modelfile"
GGUF = "model.gguf"


@dataclass(frozen=True)
class ServedModel:
    """What a server has to know of an exported model beside its directory.

    Attributes:
        system: system message of chats that bring none; empty where each chat needs one of its own.
        row_tokens: longest sequence of the training.
        reply_tokens: longest reply.
    """

    system: str
    row_tokens: int
    reply_tokens: int


def write_modelfile(encoder: ChatEncoder, served: ServedModel) -> str | None:
    """The text of a Modelfile for the model as GGUF; None where Ollama's template cannot write what the model's does.

    Ollama reads no Jinja, so the chat template is written anew in its language.
    """
    template = _ollama_template(encoder)
    if template is None or '"""' in served.system:
        return None
    stops = sorted(encoder.tokenizer.convert_ids_to_tokens([*encoder.stop_tokens]))
    lines = [
        f"FROM ./{GGUF}",
        f'TEMPLATE """{template}"""',
        *([f'SYSTEM """{served.system}"""'] if served.system else []),
        "PARAMETER temperature 0",
        f"PARAMETER num_ctx {served.row_tokens + served.reply_tokens}",
        f"PARAMETER num_predict {served.reply_tokens}",
        *(f'PARAMETER stop "{stop}"' for stop in stops),
    ]
    return "\n".join(lines)


def describe_serving(served: ServedModel, *, modelfile: bool, gguf: bool) -> str:
    """The part of the model card that says how it is run.

    Args:
        modelfile: there is a Modelfile.
        gguf: the GGUF file is there.
    """
    system = (
        "Chats without a system message get that of the training."
        if served.system
        else "Every chat needs a system message of its own; without one the model is not asked as in its training."
    )
    ollama = (
        f"Ollama, with `{MODELFILE}` of this directory, beside which `{GGUF}` lies:\n\n"
        f"    ollama create NAME -f {MODELFILE}\n    ollama run NAME"
        if modelfile
        else "Ollama: its template language cannot write this chat template exactly, so there is no Modelfile; serve "
        "the GGUF file with llama.cpp."
    )
    llama_cpp = (
        f"llama.cpp, with `{GGUF}` of this directory:\n\n"
        if gguf
        else "llama.cpp, whose repository has the script that makes a GGUF file of the weights:\n\n"
        f"    python convert_hf_to_gguf.py DIRECTORY --outfile {GGUF} --outtype bf16\n"
    )
    return (
        "## Running it\n\n"
        f"DIRECTORY is where these files are, or their name on the hub. Replies are greedy. {system}\n\n"
        "transformers:\n\n"
        "    from transformers import pipeline\n\n"
        '    chat = pipeline("text-generation", "DIRECTORY")\n'
        '    talk = [{"role": "user", "content": "I lost my job last week."}]\n'
        '    print(chat(talk)[0]["generated_text"][-1]["content"])\n\n'
        "vLLM:\n\n"
        "    vllm serve DIRECTORY --override-generation-config '{\"temperature\": 0}'\n\n"
        f"{llama_cpp}    llama-server -m {GGUF} --jinja --temp 0\n\n"
        f"{ollama}"
    )


def _ollama_template(encoder: ChatEncoder) -> str | None:
    """The chat template in Ollama's language; None where the two would differ within a talk.

    Ollama runs it once for each exchange, with the system message in the first, and for the last one up to the reply
    (https://docs.ollama.com/template, and the ends of older exchanges in its source, `template/template.go`).
    """
    try:
        start, after_system, before_reply, between, again, end = _pieces(encoder)
        if encoder.system_role:
            first, *_, asked = encoder.render_pieces(("system", "user"), generation=True)
        else:
            first, asked = encoder.render_pieces(("user",), generation=True)
    except UserError:
        return None
    same = before_reply == again == asked and first == start and between.startswith(end)
    texts = (start, after_system, before_reply, between)
    if not same or any(mark in text for mark in ("{{", '"""') for text in texts):
        return None
    tokenizer = encoder.tokenizer
    if tokenizer("").input_ids == [tokenizer.bos_token_id]:  # llama.cpp then puts it there, too
        start = start.removeprefix(tokenizer.bos_token)
    before_user = between.removeprefix(end)
    opening = f"{{{{ if .System }}}}{start}{{{{ .System }}}}{after_system}{{{{ else }}}}{before_user}{{{{ end }}}}"
    return f"{opening}{{{{ .Prompt }}}}{before_reply}{{{{ .Response }}}}{end}"


def _pieces(encoder: ChatEncoder) -> tuple[str, ...]:
    """What the template writes around a system message and two exchanges."""
    talk: tuple[Role, ...] = ("user", "assistant", "user", "assistant")
    if encoder.system_role:
        return encoder.render_pieces(("system", *talk))
    start, *rest = encoder.render_pieces(talk)
    return (start, "\n\n", *rest)  # the system text stands at the head of the first message
