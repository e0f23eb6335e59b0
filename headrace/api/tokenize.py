"""POST /tokenize and /detokenize, in vLLM's shapes."""

from __future__ import annotations

import msgspec
from starlette.responses import Response

from headrace.api.body import read_body
from headrace.api.openai_replies import DetokenizeReply, TokenizeReply
from headrace.api.openai_types import DetokenizeBody, TokenizeBody
from headrace.api.prompts import encode_chat, encode_text, off_loop
from headrace.api.visit import Visit
from headrace.core.errors import InvalidRequest


async def tokenize(visit: Visit) -> Response:
    """Return the token ids of a text or of messages put through the chat template."""
    state = visit.state
    body = await read_body(visit, TokenizeBody, state.max_body_bytes)
    model = state.models.find_local(body.model)
    if (body.prompt is None) == (body.messages is None):
        raise InvalidRequest("send either 'prompt' or 'messages'", param="prompt")
    if body.messages is not None:
        continue_final = bool(body.continue_final_message)
        add_prompt = body.add_generation_prompt
        tokens = await encode_chat(
            model,
            body.messages,
            add_generation_prompt=not continue_final if add_prompt is None else add_prompt,
            continue_final=continue_final,
            add_special=bool(body.add_special_tokens),
            variables=body.chat_template_kwargs or {},
        )
    else:
        add_special = True if body.add_special_tokens is None else body.add_special_tokens
        tokens = await encode_text(model, body.prompt or "", add_special=add_special)
    texts = [model.tokenizer.token_text(token_id) for token_id in tokens] if body.return_token_strs else None
    return _json(TokenizeReply(len(tokens), model.max_context, tokens, texts))


async def detokenize(visit: Visit) -> Response:
    """Return the text of token ids, special tokens spelled out."""
    state = visit.state
    body = await read_body(visit, DetokenizeBody, state.max_body_bytes)
    model = state.models.find_local(body.model)
    model.check_token_ids(body.tokens, "tokens")
    text = await off_loop(len(body.tokens), lambda: model.tokenizer.decode(body.tokens, skip_special=False))
    return _json(DetokenizeReply(text))


def _json(reply: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(reply), media_type="application/json")
