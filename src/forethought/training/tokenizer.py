"""Training a tokenizer: a byte-level BPE with DeepSeek-R1's special tokens and its chat template.

What comes out is a set of files for :func:`forethought.checkpoints.save_folder.save_folder`, and
gives the same ids here, in transformers and, exported as GGUF, in llama.cpp. For that it cuts words
by Qwen2's rule, which makes every digit a word of its own, and has no normaliser: with Qwen2's NFC
llama.cpp gives other ids for combining marks.

Special tokens have R1's texts and the first ids, in a fixed order, whatever the texts. As in R1's
releases the turns' marks and the tags are not "special" to transformers, so that
`skip_special_tokens` keeps a thought's tags. The price: transformers finds them in every text it
is given, and `split_special_tokens=True` keeps it only from BOS, EOS and padding. Text of a person
or a model is therefore encoded here, by :func:`render_conversation`, and never through a template.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from forethought.checkpoints.folder import JSON, TOKENIZER_FILES
from forethought.checkpoints.hf_tokenizer import HFTokenizer, added_tokens, merge_pairs
from forethought.checkpoints.pre_tokenizers import pre_tokenizer_json
from forethought.checkpoints.tokenizer_files import read_tokenizer_folder
from forethought.dialogue.messages import Conversation, HistoryPolicy, Message
from forethought.dialogue.tags import ThinkTags
from forethought.dialogue.templates import R1_ASSISTANT, R1_END, R1_USER
from forethought.errors import UserError

BOS: Final = "<｜begin▁of▁sentence｜>"
PAD: Final = "<｜▁pad▁｜>"
TAGS: Final = ThinkTags()
PRE: Final = "qwen2"
"""llama.cpp's name of the rule that cuts a text into words."""

ROW_MULTIPLE: Final = 64
"""Embeddings get a multiple of this many rows: matrix products on a GPU are fastest then."""

# The field that holds a token's id, and its text; the order is that of the ids.
_SPECIAL: Final = {
    "bos_id": BOS,
    "eos_id": R1_END,
    "pad_id": PAD,
    "user_id": R1_USER,
    "assistant_id": R1_ASSISTANT,
    "think_id": TAGS.open,
    "end_think_id": TAGS.close,
}
_SPECIAL_TO_TRANSFORMERS: Final = frozenset({BOS, R1_END, PAD})
_ANY_SPECIAL: Final = re.compile("|".join(map(re.escape, _SPECIAL.values())))

MIN_VOCABULARY: Final = 256 + len(_SPECIAL) + 1
"""Every byte, the special tokens, and the one merge without which llama.cpp loads no vocabulary."""

_CONFIG: Final[Mapping[str, JSON]] = {
    # The class that takes tokenizer.json as it is; a model's own class would rebuild it.
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": BOS,
    "eos_token": R1_END,
    "pad_token": PAD,
    # The template writes BOS: a second one would stand before it.
    "add_bos_token": False,
    "add_eos_token": False,
    "clean_up_tokenization_spaces": False,
}

# A merge that was seen once tells nothing of other texts.
_MIN_FREQUENCY: Final = 2


def _template(reply: str) -> str:
    """R1's template as it was first released, with `reply` for what an assistant's turn becomes.

    The last system text stands bare after BOS, and no newlines stand between turns.
    """
    return (
        "{%- set ns = namespace(system='') -%}"
        "{%- for message in messages -%}"
        "{%- if message['role'] == 'system' -%}"
        "{%- set ns.system = message['content'] -%}"
        "{%- endif -%}"
        "{%- endfor -%}"
        "{{- bos_token + ns.system -}}"
        "{%- for message in messages -%}"
        "{%- if message['role'] == 'user' -%}"
        "{{- '" + R1_USER + "' + message['content'] -}}"
        "{%- elif message['role'] == 'assistant' -%}"
        "{{- '" + R1_ASSISTANT + "' -}}" + reply + "{%- elif message['role'] != 'system' -%}"
        "{{- raise_exception('a message is of the system, the user or the assistant') -}}"
        "{%- endif -%}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '" + R1_ASSISTANT + "' -}}{%- endif -%}"
    )


CHAT_TEMPLATE: Final = _template(
    "{{- message['content'].split('" + TAGS.close + "')[-1] + eos_token -}}"
)
"""The template of the folder, for asking: thoughts of earlier turns are cut off.

The generation prompt ends with `<｜Assistant｜>` and opens no thought, unlike R1's later releases:
R1-Zero is rewarded for writing the tags itself (arXiv:2501.12948v2, section 2.2), which a tag in
the prompt would take from it. Who wants the thought opened appends the tag, as
:func:`forethought.dialogue.prompt.build_prompt` does for a model that thinks.
"""

TRAINING_TEMPLATE: Final = _template(
    "{%- generation -%}{{- message['content'] + eos_token -}}{%- endgeneration -%}"
)
"""The template for SFT with other trainers (`apply_chat_template(chat_template=...)`).

An assistant's content stays whole, `<think>\\n...\\n</think>\\n\\nanswer` as it is: on
`CHAT_TEMPLATE`, as on R1's own, the thought would be missing from what is learnt. What is to be
learnt, EOS included, is marked for transformers' `return_assistant_tokens_mask`. It lies beside the
folder, not in it, so that nobody asks with it by accident. Our own SFT takes
:func:`render_conversation`, which gives the same ids.
"""


@dataclass(frozen=True, slots=True)
class TrainedTokenizer:
    """A tokenizer with R1's special tokens, open, and the files it was opened from.

    `files`: bytes by name, as `save_folder(tokenizer_files=...)` takes them.
    """

    files: Mapping[str, bytes] = field(repr=False)
    tokenizer: HFTokenizer = field(repr=False, compare=False)
    bos_id: int
    eos_id: int
    pad_id: int
    user_id: int
    assistant_id: int
    think_id: int
    end_think_id: int

    @property
    def size(self) -> int:
        """Entries of the vocabulary: one more than the last id."""
        return self.tokenizer.size

    @property
    def padded_size(self) -> int:
        """Rows of the embedding: `size` rounded up to a multiple of `ROW_MULTIPLE`."""
        return -(-self.size // ROW_MULTIPLE) * ROW_MULTIPLE


def train_tokenizer(texts: Iterable[str], vocab_size: int = 4096) -> TrainedTokenizer:
    """Learn a byte-level BPE (arXiv:1508.07909, over bytes) of at most `vocab_size` entries.

    Every byte has an entry, so every text can be written; texts in which fewer pairs occur twice
    give fewer entries. The same texts give the same bytes, in whatever order and however many
    processes and threads. Special tokens in the texts are cut out, as when a text is encoded.

    Raises UserError for a `vocab_size` below `MIN_VOCABULARY`, for texts without one pair to merge,
    and for a text with half a character.
    """
    if vocab_size < MIN_VOCABULARY:
        raise UserError(
            f"vocab_size is {vocab_size}, and a byte-level vocabulary has at least "
            f"{MIN_VOCABULARY} entries (256 bytes, {len(_SPECIAL)} special tokens, one merge): "
            "raise it."
        )
    definition = _learn(texts, vocab_size)
    if not merge_pairs(definition):
        raise UserError(
            "The texts to train a tokenizer on hold no two characters that occur together twice: "
            "give more text."
        )
    definition["added_tokens"] = [
        {
            "id": number,
            "content": text,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": text in _SPECIAL_TO_TRANSFORMERS,
        }
        for number, text in enumerate(_SPECIAL.values())
    ]
    files = {
        "tokenizer.json": _dump(definition, indent=None),
        "tokenizer_config.json": _dump(_CONFIG, indent=2),
        "chat_template.jinja": CHAT_TEMPLATE.encode(),
    }
    where = "the trained tokenizer"
    opened = HFTokenizer(definition, where, raw=files["tokenizer.json"])
    return TrainedTokenizer(files, opened, **_special_ids(definition, where))


def _learn(texts: Iterable[str], vocab_size: int) -> dict[str, JSON]:
    """A tokenizer.json: special tokens, bytes, and merges learnt from the texts."""
    blank = json.loads(Tokenizer(models.BPE()).to_str())
    tokenizer = Tokenizer.from_str(
        json.dumps({**blank, "pre_tokenizer": pre_tokenizer_json(PRE)}, ensure_ascii=False)
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=_MIN_FREQUENCY,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=list(_SPECIAL.values()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_ordinary_text(texts), trainer)
    definition: dict[str, JSON] = json.loads(tokenizer.to_str())
    return definition


def _ordinary_text(texts: Iterable[str]) -> Iterator[str]:
    """What of the texts merges are learnt from: all but the special tokens."""
    for text in texts:
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError:
                raise UserError(
                    f"The text {text[:40]!a} to train a tokenizer on holds half a character (a "
                    "lone surrogate): remove it."
                ) from None
        yield from filter(None, _ANY_SPECIAL.split(text))


def _dump(value: Mapping[str, JSON], indent: int | None) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=indent) + "\n").encode()


def _special_ids(definition: Mapping[str, JSON], where: str) -> dict[str, int]:
    """The ids of the special tokens by field. Raises UserError where one of them is missing."""
    ids = {token.text: token.id for token in added_tokens(definition, where)}
    missing = [text for text in _SPECIAL.values() if text not in ids]
    if missing:
        raise UserError(
            f"{where} lacks the special token{'s' if len(missing) > 1 else ''} "
            f"{', '.join(missing)}, which training here needs: take the folder of a model that "
            "was trained here, or train a tokenizer."
        )
    return {name: ids[text] for name, text in _SPECIAL.items()}


def read_tokenizer(folder: str | os.PathLike[str]) -> TrainedTokenizer:
    """Open the tokenizer of a folder that a run saved.

    Raises UserError where there is no such folder, or its tokenizer lacks the special tokens;
    ModelError for a tokenizer that is damaged or no byte-level BPE.
    """
    root = Path(folder)
    found = read_tokenizer_folder(root)
    ids = _special_ids(found.tokenizer_json, found.where)
    files = {
        name: (root / name).read_bytes() for name in TOKENIZER_FILES if (root / name).is_file()
    }
    return TrainedTokenizer(
        {**files, "tokenizer.json": found.raw}, HFTokenizer.from_files(found), **ids
    )


class Segment(NamedTuple):
    """Token ids that follow one another in a sample, and whether they are to be learnt."""

    ids: list[int]
    trained: bool


def render_conversation(
    tokenizer: TrainedTokenizer, messages: Conversation, *, history: HistoryPolicy = "keep"
) -> list[Segment]:
    """A conversation as token ids, in the order of R1's template; joined, they are the sample.

    What the assistant writes is trained: opening tag, thought, closing tag, answer and EOS. The
    rest is not. All texts are encoded as text: tags and marks in them are characters, so that
    neither a user's `<think>` nor a thought's `</think>` becomes the token. Joined ids are those of
    the text that `TRAINING_TEMPLATE` gives, where no text holds one.

    `history` "keep" keeps every thought and trains every turn of the assistant. "strip" is how a
    model is asked by default: earlier turns have no thoughts, and only a last turn that is the
    assistant's is trained, as the others would teach it not to think. A conversation that ends with
    the user ends with `<｜Assistant｜>`, where a sample begins; with "strip" it is one segment, the
    prompt of that sample.
    """

    def encode(text: str) -> list[int]:
        return tokenizer.tokenizer.encode(text, parse_special=False)

    def reply(message: Message, thought: str | None) -> list[int]:
        if thought is None:
            return [*encode(message.content), tokenizer.eos_id]
        return [
            tokenizer.think_id,
            *encode(f"\n{thought}\n"),
            tokenizer.end_think_id,
            *encode(f"\n\n{message.content}"),
            tokenizer.eos_id,
        ]

    segments: list[Segment] = []
    systems = [message.content for message in messages if message.role == "system"]
    turns = [message for message in messages if message.role != "system"]
    context = [tokenizer.bos_id, *encode(systems[-1] if systems else "")]
    for position, message in enumerate(turns, 1):
        if message.role == "user":
            context += [tokenizer.user_id, *encode(message.content)]
            continue
        context.append(tokenizer.assistant_id)
        if history == "keep" or position == len(turns):
            segments += [Segment(context, False), Segment(reply(message, message.thought), True)]
            context = []
        else:
            context += reply(message, None)
    if turns and turns[-1].role == "user":
        context.append(tokenizer.assistant_id)
    if context:
        segments.append(Segment(context, False))
    return segments
