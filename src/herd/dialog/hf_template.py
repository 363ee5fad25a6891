"""The dialect `meta` as a chat template for Hugging Face's ``apply_chat_template`` (Jinja).

It gives the ids of :func:`herd.dialog.render.render`, for messages with the same keys (`role`, `content`, `call`,
`end_of_message`). A template makes text first, which is then encoded as a whole, so in two places it cannot follow:

- The name of a special token in a message would become that token; `render` keeps it text.
- Blanks with a line break at the beginning of a message would be encoded together with the header's blank line; `render` keeps
  them apart.

The template refuses both rather than change ids. (Bodies of runs beyond 25,000 characters, which our tokenizer cuts, may differ.)
It also refuses what the dialect has no form for: `tools` (describe them in the system message) and `tool_calls` (give `call`).
"""

from collections.abc import Iterable

_RESERVED = "<|reserved_special_token_"

_TEMPLATE = """\
{%- if tools is defined and tools %}
    {{- raise_exception("This model's chat format has no place for `tools`: describe them in the system message.") }}
{%- endif %}
{%- set special = [SPECIAL] %}
{{- '<|begin_of_text|>' }}
{%- for message in messages %}
    {%- set role = 'ipython' if message['role'] == 'tool' else message['role'] %}
    {%- if role not in ['system', 'user', 'assistant', 'ipython'] %}
        {{- raise_exception('Unknown role: ' + role) }}
    {%- endif %}
    {%- if message['tool_calls'] is defined and message['tool_calls'] %}
        {{- raise_exception("Give the text of a tool call as `call`, not as `tool_calls`.") }}
    {%- endif %}
    {%- set content = message['content'] if message['content'] is defined and message['content'] is not none else '' %}
    {%- if content is not string %}
        {{- raise_exception('`content` must be text.') }}
    {%- endif %}
    {%- set called = message['call'] is defined and message['call'] is not none %}
    {%- set call = message['call'] if called else '' %}
    {%- for name in special %}
        {%- if name in content or name in call %}
            {{- raise_exception('A message spells the special token ' + name + ', which a template cannot keep as text.') }}
        {%- endif %}
    {%- endfor %}
    {%- set blank = content[:content | length - content.lstrip() | length] %}
    {%- if '\\n' in blank or '\\r' in blank %}
        {{- raise_exception('A message begins with a blank line, which a template cannot keep from the header: strip it.') }}
    {%- endif %}
    {{- '<|start_header_id|>' + role + '<|end_header_id|>\\n\\n' + content }}
    {%- if called %}
        {{- '<|python_tag|>' + call }}
    {%- endif %}
    {%- set waits = called %}
    {%- if message['end_of_message'] is defined and message['end_of_message'] is not none %}
        {%- set waits = message['end_of_message'] %}
    {%- endif %}
    {{- '<|eom_id|>' if waits else '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""


def chat_template(special_tokens: Iterable[str]) -> str:
    """The template for a tokenizer with these special tokens; reserved ones are refused by their common beginning."""
    names = dict.fromkeys(_RESERVED if name.startswith(_RESERVED) else name for name in special_tokens)
    return _TEMPLATE.replace("SPECIAL", ", ".join(f"'{name}'" for name in names))
