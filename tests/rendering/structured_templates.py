"""Small chat templates with the traits of real ones for reasoning, tool calls and tool results."""

# Like Qwen3: think blocks in the last turn only, calls as JSON in tags, results as user messages.
QWEN3_TOOLS = (
    "{%- if tools %}{{- '<|im_start|>system\\n# Tools\\n' }}{%- for tool in tools %}{{- tool | tojson + '\\n' }}{%- endfor %}"
    "{{- '<|im_end|>\\n' }}{%- endif %}"
    "{%- set ns = namespace(last=-1) %}{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}"
    "{%- endfor %}"
    "{%- for m in messages %}"
    "{%- if m.role == 'assistant' %}"
    "{%- set reasoning = m.reasoning_content if m.reasoning_content is string else '' %}{%- set content = m.content %}"
    "{%- if not reasoning and '</think>' in content %}"
    "{%- set reasoning = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}"
    "{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}"
    "{%- if loop.index0 > ns.last and (loop.last or reasoning) %}"
    "{{- '<|im_start|>assistant\\n<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}"
    "{%- else %}{{- '<|im_start|>assistant\\n' + content }}{%- endif %}"
    "{%- for call in m.tool_calls or [] %}"
    "{%- if (loop.first and content) or not loop.first %}{{- '\\n' }}{%- endif %}"
    "{%- if call.function %}{%- set call = call.function %}{%- endif %}"
    '{{- \'<tool_call>\\n{"name": "\' + call.name + \'", "arguments": \' }}'
    "{{- call.arguments if call.arguments is string else call.arguments | tojson }}{{- '}\\n</tool_call>' }}{%- endfor %}"
    "{{- '<|im_end|>\\n' }}"
    "{%- elif m.role == 'tool' %}{{- '<|im_start|>user\\n<tool_response>\\n' + m.content + '\\n</tool_response><|im_end|>\\n' }}"
    "{%- else %}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{%- endif %}"
)
# Like gpt-oss: channels, a different end for each kind of message, reasoning of calls dropped if an answer follows, one call per message.
HARMONY = (
    "{{- '<|start|>system<|message|>Reasoning: ' + (reasoning_effort or 'medium') + '<|end|>' }}"
    "{%- if tools %}{{- '<|start|>developer<|message|>' + tools | tojson + '<|end|>' }}{%- endif %}"
    "{%- set last = namespace(name=none) %}{%- for m in messages %}"
    "{%- if m.role == 'assistant' %}"
    "{%- if 'tool_calls' in m %}{%- set future = namespace(final=false) %}"
    "{%- for n in messages[loop.index:] %}{%- if n.role == 'assistant' and 'tool_calls' not in n %}{%- set future.final = true %}"
    "{%- endif %}{%- endfor %}"
    "{%- if m.content and m.thinking %}{{- raise_exception('Cannot pass both content and thinking') }}"
    "{%- elif (m.content or m.thinking) and not future.final %}"
    "{{- '<|start|>assistant<|channel|>analysis<|message|>' + (m.content or m.thinking) + '<|end|>' }}{%- endif %}"
    "{%- set call = m.tool_calls[0].function %}"
    "{{- '<|start|>assistant to=functions.' + call.name + '<|channel|>commentary json<|message|>' + call.arguments|tojson + '<|call|>' }}"
    "{%- set last.name = call.name %}"
    "{%- elif loop.last and not add_generation_prompt %}"
    "{%- if 'thinking' in m %}{{- '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' }}{%- endif %}"
    "{{- '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|return|>' }}"
    "{%- else %}{{- '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|end|>' }}{%- endif %}"
    "{%- elif m.role == 'tool' %}{{- '<|start|>functions.' + last.name + ' to=assistant<|message|>' + m.content|tojson + '<|end|>' }}"
    "{%- else %}{{- '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{%- endif %}"
)
# Like Mistral: ids of nine characters, calls as one JSON list, no generation prompt.
MISTRAL_TOOLS = (
    "{{- bos_token }}{%- for m in messages %}"
    "{%- if m.role == 'user' %}{%- if tools and loop.last %}{{- '[AVAILABLE_TOOLS]' + tools|tojson + '[/AVAILABLE_TOOLS]' }}{%- endif %}"
    "{{- '[INST]' + m.content + '[/INST]' }}"
    "{%- elif m.tool_calls %}{{- '[TOOL_CALLS][' }}{%- for call in m.tool_calls %}"
    "{%- if call.id is not defined or call.id|length != 9 %}{{- raise_exception('ids have nine characters') }}{%- endif %}"
    "{{- (call.function|tojson)[:-1] + ', \"id\": \"' + call.id + '\"}' }}{{- ', ' if not loop.last }}{%- endfor %}{{- ']' + eos_token }}"
    "{%- elif m.role == 'tool' %}"
    "{%- if m.tool_call_id is not defined or m.tool_call_id|length != 9 %}{{- raise_exception('ids have nine characters') }}{%- endif %}"
    "{{- '[TOOL_RESULTS]{\"content\": ' + m.content + ', \"call_id\": \"' + m.tool_call_id + '\"}[/TOOL_RESULTS]' }}"
    "{%- else %}{{- m.content + eos_token }}{%- endif %}{%- endfor %}"
)
# Like early DeepSeek: arguments are concatenated as text, and a message of calls has no content.
DEEPSEEK = (
    "{{- bos_token }}{%- for m in messages %}"
    "{%- if m.role == 'user' %}{{- '<|User|>' + m.content }}"
    "{%- elif m.role == 'assistant' and m.content is none %}{{- '<|Assistant|>' }}{%- for call in m.tool_calls %}"
    "{{- '<|call_begin|>' + call.function.name + '\\n```json\\n' + call.function.arguments + '\\n```<|call_end|>' }}{%- endfor %}"
    "{{- eos_token }}"
    "{%- elif m.role == 'assistant' %}{{- '<|Assistant|>' + m.content + eos_token }}"
    "{%- elif m.role == 'tool' %}{{- '<|output|>' + m.content + '<|output_end|>' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|Assistant|>' }}{%- endif %}"
)
# Like GLM: arguments as tags, and only the next header ends a message.
GLM_XML = (
    "[gMASK]<sop>{%- for m in messages %}"
    "{%- if m.role == 'assistant' %}{{- '<|assistant|>\\n<think>' + (m.reasoning_content or '') + '</think>' }}"
    "{%- if m.content.strip() %}{{- '\\n' + m.content.strip() }}{%- endif %}"
    "{%- for call in m.tool_calls or [] %}{{- '\\n<tool_call>' + call.function.name }}"
    "{%- for k, v in call.function.arguments.items() %}"
    "{{- '\\n<arg_key>' + k + '</arg_key>\\n<arg_value>' + (v if v is string else v|tojson) + '</arg_value>' }}{%- endfor %}"
    "{{- '\\n</tool_call>' }}{%- endfor %}"
    "{%- elif m.role == 'tool' %}{{- '<|observation|>\\n<tool_response>\\n' + m.content + '\\n</tool_response>' }}"
    "{%- else %}{{- '<|' + m.role + '|>\\n' + m.content }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}"
)
# Like Magistral: reasoning as parts of the content.
MAGISTRAL = (
    "{{- bos_token }}{%- for m in messages %}"
    "{%- if m.role == 'user' %}{{- '[INST]' + m.content + '[/INST]' }}"
    "{%- else %}{%- if m.content is string %}{{- m.content }}{%- else %}{%- for part in m.content %}"
    "{{- '[THINK]' + part.thinking + '[/THINK]' if part.type == 'thinking' else part.text }}{%- endfor %}{%- endif %}"
    "{{- eos_token }}{%- endif %}{%- endfor %}"
)
# Like Kimi K2 Thinking: a call is written by its id, and reasoning is kept before calls without a following answer.
KIMI = (
    "{%- set ns = namespace(last=-1) %}{%- for m in messages %}{%- if m.role == 'assistant' and not m.tool_calls %}"
    "{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}"
    "{%- for m in messages %}"
    "{%- if m.role == 'assistant' %}{{- '<|im_start|>assistant\\n<think>' }}"
    "{{- m.reasoning_content if m.reasoning_content and loop.index0 > ns.last }}{{- '</think>' + m.content }}"
    "{%- for call in m.tool_calls or [] %}"
    "{{- '<|call|>' + call.id + '<|arguments|>' + call.function.arguments|tojson + '<|call_end|>' }}{%- endfor %}"
    "{%- elif m.role == 'tool' %}{{- '<|im_start|>tool\\n## Return of ' + m.tool_call_id + '\\n' + m.content }}"
    "{%- else %}{{- '<|im_start|>' + m.role + '\\n' + m.content }}{%- endif %}{{- '<|im_end|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
# Like Command-R7B: the next header is always written, and answers and turns end with different tokens.
RESPONSE_TOOLS = (
    "{%- for m in messages %}"
    "{%- if m.role == 'assistant' and m.tool_calls %}{{- '<|ACTION|>' }}{%- for call in m.tool_calls %}"
    "{{- call.function.name + call.function.arguments|tojson }}{%- endfor %}{{- '<|/ACTION|><|END|>' }}"
    "{%- elif m.role == 'assistant' %}{{- '<|RESPONSE|>' + m.content + '<|/RESPONSE|><|END|>' }}"
    "{%- elif m.role == 'tool' %}{{- '<|START|><|TOOL|>' + m.content + '<|END|><|START|><|BOT|><|THINK|>' }}"
    "{%- else %}{{- '<|START|><|USER|>' + m.content + '<|END|><|START|><|BOT|><|THINK|>' }}{%- endif %}{%- endfor %}"
)
