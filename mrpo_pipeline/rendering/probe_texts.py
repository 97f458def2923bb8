"""Fixed texts that distinguish models, rendered by each model's own tokenizer and template."""

from __future__ import annotations

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.pairs import dump_prompt
from mrpo_pipeline.rendering.encoding_split import Rendered
from mrpo_pipeline.rendering.renderer import Renderer

# (prompt, completion) of different kinds: a fine-tuned copy differs in the answers, another model in all texts. Stored probes depend
# on these texts, so they must not change.
TEXTS = (
    (
        "The lighthouse keeper wrote in his diary every evening.",
        " On the third of March the wind turned north, and by midnight two fishing boats had come in to shelter behind the mole.",
    ),
    (
        "def median(values):",
        "\n    ordered = sorted(values)\n    middle = len(ordered) // 2\n    return ordered[middle] if len(ordered) % 2 else "
        "(ordered[middle - 1] + ordered[middle]) / 2\n",
    ),
    (
        "Frage: Warum ist der Himmel blau? Antwort:",
        " Weil die Luft kurzwelliges Licht stärker streut als langwelliges, kommt Blau aus allen Richtungen zu uns.",
    ),
)
CONVERSATION = (
    "How do I tell a friend that I cannot come to her wedding?",
    "Tell her soon, and in person if you can. Say how much it means to you that she asked, give the reason in one sentence, and "
    "offer to celebrate with her on another day. I would not make up an excuse: she will remember that you were honest.",
)


def rendered_probe(renderer: Renderer) -> list[Rendered]:
    """Renderings of the raw texts, and of one conversation if the template supports it."""
    found = renderer.render([(dump_prompt(prompt), completion) for prompt, completion in TEXTS])
    question, answer = CONVERSATION
    (last,) = renderer.render_each([(dump_prompt([{"role": "user", "content": question}]), answer)])
    return found if isinstance(last, UserError) else [*found, last]
