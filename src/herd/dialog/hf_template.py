"""The dialects as chat templates for Hugging Face's ``apply_chat_template`` (Jinja).

Each gives the ids of :func:`herd.dialog.render.render` in its dialect, for messages with the same keys (`role`, `content`,
`call`, `tool_calls`, `end_of_message`); definitions of tools are the argument `tools`, in dialect hf names of built-in ones
`builtin_tools`. A template makes text first, which is then encoded as a whole, so in three places it cannot follow:

- The name of a special token in a message would become that token; `render` keeps it text.
- Blanks with a line break at the beginning of a message would be encoded together with the header's blank line; `render` keeps
  them apart.
- Text beside a call that no tag parts from it would be encoded together with the call.

A template refuses all three rather than change ids, and what its dialect has no form for. (Bodies of runs beyond 25,000
characters, which our tokenizer cuts, may differ.)
"""

from collections.abc import Iterable

from herd.config.errors import UserError, nearest
from herd.dialog.dialects import DATES, ENVIRONMENT, HF_TOOLS, META_TOOLS, TAG_TOOLS

_RESERVED = "<|reserved_special_token_"

# What all begin with. `plain`: text that stays text; `first`: such text right after a header; `named`: the message's one call by
# name, or nothing.
_COMMON = """\
{%- set special = [SPECIAL] %}
{%- set roles = ['system', 'user', 'assistant', 'ipython', 'tool'] %}
{%- macro plain(text) %}
    {%- if text is not string %}
        {{- raise_exception('`content` must be text.') }}
    {%- endif %}
    {%- for name in special %}
        {%- if name in text %}
            {{- raise_exception('A message spells the special token ' + name + ', which a template cannot keep as text.') }}
        {%- endif %}
    {%- endfor %}
    {{- text }}
{%- endmacro %}
{%- macro first(given) %}
    {%- set text = plain(given) %}
    {%- set blank = text[:text | length - text.lstrip() | length] %}
    {%- if '\\n' in blank or '\\r' in blank %}
        {{- raise_exception('A message begins with a blank line, which a template cannot keep from the header: strip it.') }}
    {%- endif %}
    {{- text }}
{%- endmacro %}
{%- macro header(role) %}
    {{- '<|start_header_id|>' + role + '<|end_header_id|>\\n\\n' }}
{%- endmacro %}
{%- macro arguments(call) %}
    {%- if call['arguments'] is not mapping %}
        {{- raise_exception('Give the arguments of a tool call as an object, not as text.') }}
    {%- endif %}
{%- endmacro %}
{%- for message in messages %}
    {%- if message['role'] not in roles %}
        {{- raise_exception('Unknown role: ' + message['role']) }}
    {%- endif %}
    {%- if message.get('tools') %}
        {{- raise_exception('Give tools as the argument `tools`, not within a message.') }}
    {%- endif %}
    {%- if message.get('tool_calls') and message['tool_calls'] | length > 1 %}
        {{- raise_exception('Llama 3.1 calls one tool at a time.') }}
    {%- endif %}
{%- endfor %}
{{- '<|begin_of_text|>' }}
"""

_TYPED_CALL = """\
'{"type": "function", "name": ' + named['name'] | tojson(ensure_ascii=True) \
+ ', "parameters": ' + named['arguments'] | tojson(ensure_ascii=True) + '}'"""
_TAG_CALL = "'<function=' + named['name'] + '>' + named['arguments'] | tojson(ensure_ascii=True) + '</function>'"

_NAMED = """\
    {%- set named = none %}
    {%- if message.get('tool_calls') %}
        {%- set named = message['tool_calls'][0].get('function', message['tool_calls'][0]) %}
        {{- arguments(named) }}
    {%- endif %}
"""

_META = """\
{%- if builtin_tools is defined and builtin_tools %}
    {{- raise_exception('Built-in tools are named in the system message: Environment: ipython, Tools: NAME, NAME.') }}
{%- endif %}
{%- set state = namespace(ipython=false, offered=false) %}
{%- for message in messages %}
    {%- if message['role'] == 'system' and 'ENVIRONMENT' in message['content'] %}
        {%- set state.ipython = true %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set role = 'ipython' if message['role'] == 'tool' else message['role'] %}
    {%- if role == 'user' and tools is defined and tools and not state.offered %}
        {%- set state.offered = true %}
        {{- header('user') + 'BEFORE' }}
        {%- for tool in tools %}
            {{- plain(tool | tojson(indent=4)) + '\\n\\n' }}
        {%- endfor %}
        {{- 'AFTER<|eot_id|>' }}
    {%- endif %}
    {%- set content = message.get('content') if message.get('content') is not none else '' %}
    {{- header(role) + first(content) }}
NAMED\
    {%- set tagged = message.get('call') is not none %}
    {%- set text = message['call'] if tagged else '' %}
    {%- set waits = tagged %}
    {%- if named is not none %}
        {%- if named['name'] == 'code_interpreter' %}
            {%- set tagged = true %}
            {%- set waits = true %}
            {%- set text = named['arguments']['code'] %}
        {%- elif named['name'] in ['brave_search', 'wolfram_alpha', 'photogen'] %}
            {%- set tagged = true %}
            {%- set waits = true %}
            {%- set text = named['name'] + '.call(query="' + named['arguments']['query'] + '")' %}
        {%- else %}
            {%- set tagged = IN_ENVIRONMENT %}
            {%- set waits = tagged %}
            {%- set text = CALL %}
        {%- endif %}
        {%- if content and not tagged %}
            {{- raise_exception('Text beside a call, which a template cannot keep apart from it: take the text out.') }}
        {%- endif %}
    {%- endif %}
    {%- if tagged %}
        {{- '<|python_tag|>' }}
    {%- endif %}
    {{- plain(text) }}
    {%- set waits = message['end_of_message'] if message.get('end_of_message') is not none else waits %}
    {{- '<|eom_id|>' if waits else '<|eot_id|>' }}
{%- endfor %}
{%- if tools is defined and tools and not state.offered %}
    {{- raise_exception('Tools need a message of the user.') }}
{%- endif %}
"""

_HF = """\
{%- set built_in = builtin_tools if builtin_tools is defined and builtin_tools else [] %}
{%- set custom = tools if tools is defined and tools else [] %}
{%- set given = messages | length > 0 and messages[0]['role'] == 'system' %}
{%- set rest = messages[1:] if given else messages %}
{%- if (custom or built_in) and (not rest or rest[0]['role'] != 'user') %}
    {{- raise_exception('Tools need a message of the user after that of the system.') }}
{%- endif %}
{{- header('system') }}
{%- if custom or built_in %}
    {{- 'ENVIRONMENT\\n' }}
{%- endif %}
{%- if built_in %}
    {{- 'Tools: ' + built_in | reject('equalto', 'code_interpreter') | join(', ') + '\\n\\n' }}
{%- endif %}
{{- 'DATES' + (plain(messages[0]['content']) | trim if given else '') + '<|eot_id|>' }}
{%- for message in rest %}
    {%- set role = 'ipython' if message['role'] == 'tool' else message['role'] %}
    {{- header(role) }}
    {%- if message.get('tool_calls') is not none and not message['tool_calls'] %}
        {{- raise_exception('An empty list of tool calls: leave `tool_calls` out.') }}
    {%- endif %}
NAMED\
    {%- if named is not none and named['name'] in built_in %}
        {{- '<|python_tag|>' + named['name'] + '.call(' }}
        {%- for name, value in named['arguments'].items() %}
            {{- (', ' if not loop.first else '') + name + '="' + plain(value) + '"' }}
        {%- endfor %}
        {{- ')' }}
    {%- elif named is not none %}
        {{- plain('{"name": "' + named['name'] + '", "parameters": ' + named['arguments'] | tojson + '}') }}
    {%- elif message.get('call') is not none %}
        {{- '<|python_tag|>' + plain(message['call']) }}
    {%- elif role == 'ipython' %}
        {{- plain(message['content']) | tojson }}
    {%- else %}
        {%- if custom and loop.first %}
            {{- 'TOOLS' }}
            {%- for tool in custom %}
                {{- plain(tool | tojson(indent=4)) + '\\n\\n' }}
            {%- endfor %}
        {%- endif %}
        {{- plain(message.get('content') if message.get('content') is not none else '') | trim }}
    {%- endif %}
    {{- '<|eom_id|>' if built_in and (named is not none or message.get('call') is not none) else '<|eot_id|>' }}
{%- endfor %}
"""

_TORCHTUNE = """\
{%- if (tools is defined and tools) or (builtin_tools is defined and builtin_tools) %}
    {{- raise_exception("This model's chat format has no place for `tools`: describe them in the system message.") }}
{%- endif %}
{%- for message in messages %}
    {{- header(message['role']) }}
NAMED\
    {%- set called = named is not none or message.get('call') is not none %}
    {%- set content = plain(message.get('content') if message.get('content') is not none else '') | trim %}
    {%- if called and content %}
        {{- raise_exception('Text beside a call, which a template cannot keep apart from it: take the text out.') }}
    {%- endif %}
    {%- if called %}
        {{- '<|python_tag|>' + plain(CALL if named is not none else message['call']) | trim }}
    {%- else %}
        {{- content }}
    {%- endif %}
    {%- set waits = called or message['role'] in ['tool', 'ipython'] %}
    {%- set waits = message['end_of_message'] if message.get('end_of_message') is not none else waits %}
    {{- '<|eom_id|>' if waits else '<|eot_id|>' }}
{%- endfor %}
{%- if not add_generation_prompt %}
    {{- '<|end_of_text|>' }}
{%- endif %}
"""

_END = """\
{%- if add_generation_prompt %}
    {{- header('assistant') }}
{%- endif %}
"""


def _quoted(text: str) -> str:
    """`text` as it stands within a Jinja literal in single quotes."""
    return text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")


def _meta(tools: str, call: str, in_environment: str) -> str:
    before, after = (_quoted(part.replace("{{", "{").replace("}}", "}")) for part in tools.split("{}"))
    filled = _META.replace("BEFORE", before).replace("AFTER", after)
    return filled.replace("CALL", call).replace("IN_ENVIRONMENT", in_environment)


_TEMPLATES = {
    "meta": _meta(META_TOOLS, _TYPED_CALL, "state.ipython"),
    "meta_tag": _meta(TAG_TOOLS, _TAG_CALL, "false"),
    "hf": _HF.replace("DATES", _quoted(DATES)).replace("TOOLS", _quoted(HF_TOOLS)),
    "torchtune": _TORCHTUNE.replace("CALL", f"({_TYPED_CALL})"),
}


def chat_template(special_tokens: Iterable[str], dialect: str = "meta") -> str:
    """The template of a dialect for a tokenizer with these special tokens; reserved ones are refused by their common beginning.

    Raises:
        UserError: a dialect without a template.
    """
    if dialect not in _TEMPLATES:
        raise UserError(
            f"No chat template for dialect '{dialect}'.{nearest(dialect, _TEMPLATES)} Choices: {', '.join(_TEMPLATES)}."
        )
    names = dict.fromkeys(_RESERVED if name.startswith(_RESERVED) else name for name in special_tokens)
    template = _COMMON.replace("SPECIAL", ", ".join(f"'{name}'" for name in names)) + _TEMPLATES[dialect] + _END
    return template.replace("NAMED", _NAMED).replace("ENVIRONMENT", _quoted(ENVIRONMENT))
