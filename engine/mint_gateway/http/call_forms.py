"""The forms in which models write function calls between marks: one entry for each.

They are those of the models' chat templates. Engines find out which of them a template has.
"""

import msgspec

from mint_contracts.sampling_pb2 import Chat


class CallForm(msgspec.Struct, frozen=True):
    """The marks of one form. White space may be around them.

    A call is `begin`, the function's name, `named`, the arguments and `end`. The arguments are a JSON object or, if
    there is a `key`, any number of these: `key`, a name, `keyed`, `value`, the value and `ended`.
    """

    begin: str
    end: str
    named: str = ""
    key: str = ""
    keyed: str = ""
    value: str = ""
    ended: str = ""
    opening: str = ""  # before the first call; models may leave it out
    closing: str = ""  # after the last one; models may leave it out
    is_named_inside: bool = False  # the JSON object has the name, and the arguments as `arguments`
    has_lines: bool = False  # a line end before and after a value is not part of it


CALL_FORMS: dict[int, CallForm] = {
    Chat.HERMES: CallForm(begin="<tool_call>", end="</tool_call>", is_named_inside=True),
    Chat.GLM: CallForm(
        begin="<tool_call>",
        key="<arg_key>",
        keyed="</arg_key>",
        value="<arg_value>",
        ended="</arg_value>",
        end="</tool_call>",
    ),
    Chat.QWEN_CODER: CallForm(
        opening="<tool_call>",
        begin="<function=",
        named=">",
        key="<parameter=",
        keyed=">",
        ended="</parameter>",
        end="</function>",
        closing="</tool_call>",
        has_lines=True,
    ),
    Chat.KIMI: CallForm(
        opening="<|tool_calls_section_begin|>",
        begin="<|tool_call_begin|>",
        named="<|tool_call_argument_begin|>",
        end="<|tool_call_end|>",
        closing="<|tool_calls_section_end|>",
    ),
    Chat.DEEPSEEK: CallForm(
        opening="<｜tool▁calls▁begin｜>",
        begin="<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
        named="```json",
        end="```<｜tool▁call▁end｜>",
        closing="<｜tool▁calls▁end｜>",
    ),
    Chat.DEEPSEEK_V31: CallForm(
        opening="<｜tool▁calls▁begin｜>",
        begin="<｜tool▁call▁begin｜>",
        named="<｜tool▁sep｜>",
        end="<｜tool▁call▁end｜>",
        closing="<｜tool▁calls▁end｜>",
    ),
    Chat.DEEPSEEK_V32: CallForm(
        opening="<｜DSML｜function_calls>",
        begin='<｜DSML｜invoke name="',
        named='">',
        key='<｜DSML｜parameter name="',
        keyed='">',
        ended="</｜DSML｜parameter>",
        end="</｜DSML｜invoke>",
        closing="</｜DSML｜function_calls>",
    ),
    Chat.MINIMAX: CallForm(
        opening="<minimax:tool_call>",
        begin='<invoke name="',
        named='">',
        key='<parameter name="',
        keyed='">',
        ended="</parameter>",
        end="</invoke>",
        closing="</minimax:tool_call>",
    ),
}
