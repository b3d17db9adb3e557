"""Chat templates of models that write calls between marks, by the form: shortened to what writes these."""

from mint_contracts.sampling_pb2 import Chat

_TOOLS = "{% for tool in tools or [] %}{{ tool | tojson }}\n{% endfor %}"
_SAID = "<|start|>{{ m.role }}\n{{ m.content }}"

GLM = (
    _TOOLS + "{% if tools %}Call one by:\n<tool_call>{function-name}\n<arg_key>{arg-key-1}</arg_key>\n"
    "<arg_value>{arg-value-1}</arg_value>\n</tool_call>\n{% endif %}"
    "{% for m in messages %}" + _SAID + "{% for call in m.tool_calls %}{{ '\n<tool_call>' + call.function.name }}\n"
    "{% for k, v in call.function.arguments.items() %}<arg_key>{{ k }}</arg_key>\n"
    "<arg_value>{{ v if v is string else v | tojson }}</arg_value>\n{% endfor %}</tool_call>{% endfor %}"
    "<|end|>\n{% endfor %}<|start|>assistant\n"
)
QWEN_CODER = (
    _TOOLS + "{% for m in messages %}" + _SAID + "{% for call in m.tool_calls %}"
    "{{- '\\n<tool_call>\\n<function=' + call.function.name + '>\\n' }}"
    "{% for k, v in call.function.arguments | items %}{{- '<parameter=' + k + '>\\n' }}"
    "{{- v | string if v is string else v | tojson }}{{- '\\n</parameter>\\n' }}{% endfor %}"
    "{{- '</function>\\n</tool_call>' }}{% endfor %}<|end|>\n{% endfor %}<|start|>assistant\n"
)
KIMI = (
    _TOOLS
    + "{% for m in messages %}<|start|>{{ m.role }}\n{% if m.role == 'tool' %}## Return of {{ m.tool_call_id }}\n"
    "{% endif %}{{ m.content }}{% if m.tool_calls %}<|tool_calls_section_begin|>{% for call in m['tool_calls'] %}"
    "<|tool_call_begin|>{{ call['id'] }}<|tool_call_argument_begin|>{{ call['function']['arguments'] | tojson }}"
    "<|tool_call_end|>{% endfor %}<|tool_calls_section_end|>{% endif %}<|end|>\n{% endfor %}<|start|>assistant\n"
)
DEEPSEEK = (
    _TOOLS + "{% for m in messages %}" + _SAID + "{% if m['tool_calls'] is defined %}{{ '<｜tool▁calls▁begin｜>' }}"
    "{% for tool in m['tool_calls'] %}{{ '<｜tool▁call▁begin｜>' + tool['type'] + '<｜tool▁sep｜>' + "
    "tool['function']['name'] + '\\n' + '```json' + '\\n' + tool['function']['arguments'] + '\\n' + '```' + "
    "'<｜tool▁call▁end｜>' + '\\n' }}{% endfor %}{{ '<｜tool▁calls▁end｜>' }}{% endif %}<|end|>\n{% endfor %}"
    "<|start|>assistant\n"
)
DEEPSEEK_V31 = (
    _TOOLS + "{% for m in messages %}" + _SAID + "{% if m['tool_calls'] is defined %}{{ '<｜tool▁calls▁begin｜>' }}"
    "{% for tool in m['tool_calls'] %}{{ '<｜tool▁call▁begin｜>' + tool['function']['name'] + '<｜tool▁sep｜>' + "
    "tool['function']['arguments'] + '<｜tool▁call▁end｜>' }}{% endfor %}{{ '<｜tool▁calls▁end｜>' }}{% endif %}"
    "<|end|>\n{% endfor %}<|start|>assistant\n"
)
DEEPSEEK_V32 = (
    "{% set dsml = '｜DSML｜' %}"
    + _TOOLS
    + "{% for m in messages %}"
    + _SAID
    + "{% if m.tool_calls %}{{ '\\n\\n' }}<{{ dsml }}function_calls>\n{% for call in m.tool_calls %}"
    '<{{ dsml }}invoke name="{{ call.function.name }}">\n{% for k, v in call.function.arguments.items() %}'
    "<{{ dsml }}parameter name=\"{{ k }}\" string=\"{{ 'true' if v is string else 'false' }}\">"
    "{{ v if v is string else v | tojson }}</{{ dsml }}parameter>\n{% endfor %}</{{ dsml }}invoke>\n{% endfor %}"
    "</{{ dsml }}function_calls>{% endif %}<|end|>\n{% endfor %}<|start|>assistant\n"
)
MINIMAX = (
    "{% set begin = '<minimax:tool_call>' %}{% set end = '</minimax:tool_call>' %}"
    + _TOOLS
    + "{% for m in messages %}"
    + _SAID
    + "{% if m.tool_calls %}{{ '\\n' ~ begin ~ '\\n' }}{% for call in m.tool_calls %}"
    "{{ '<invoke name=\"' + call.function.name + '\">\\n' }}{% for k, v in call.function.arguments.items() %}"
    "{{ '<parameter name=\"' + k + '\">' }}{{ v if v is string else v | tojson }}{{ '</parameter>' }}\n{% endfor %}"
    "{{ '</invoke>' ~ '\\n' }}{% endfor %}{{ end }}{% endif %}<|end|>\n{% endfor %}<|start|>assistant\n"
)

TEMPLATES = {
    Chat.GLM: GLM,
    Chat.QWEN_CODER: QWEN_CODER,
    Chat.KIMI: KIMI,
    Chat.DEEPSEEK: DEEPSEEK,
    Chat.DEEPSEEK_V31: DEEPSEEK_V31,
    Chat.DEEPSEEK_V32: DEEPSEEK_V32,
    Chat.MINIMAX: MINIMAX,
}
