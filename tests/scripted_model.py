"""A tiny real GGUF that says what a table says: a bigram model in a llama.

The embedding of token t is the unit vector t, attention and feed-forward add nothing, and row u of
the output matrix holds a weight at t where u may follow t. So the next token depends on the last
one alone, and greedy text is known beforehand. It has what small real models lack: ``<think>`` and
``</think>`` as single user-defined tokens, as DeepSeek-R1 and Qwen3 have them.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import gguf
import numpy as np

THINK, CLOSE, BOS, EOS, USER, ASSISTANT = range(257, 263)
MERGED = 256  # one merge: the tokenizer of llama.cpp wants one
WIDTH = 288
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'assistant' %}<|A|>{{ m['content'].split('</think>')[-1] }}</s>"
    "{% else %}<|U|>{{ m['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|A|><think>\n{% endif %}"
)

THOUGHT = "abcdefgh"
ANSWER = "XYZ🎉W"
"""Greedy: after a newline the thought, the closing tag, the answer, the end. The emoji is four
tokens, of which llama.cpp's stream shows the last."""


def byte_texts() -> list[str]:
    """GPT-2's printable character of each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {byte: chr(byte) for byte in printable}
    shift = 256
    for byte in range(256):
        if byte not in table:
            table[byte] = chr(shift)
            shift += 1
    return [table[byte] for byte in range(256)]


def successors() -> dict[int, list[int]]:
    """What may follow each token, the likeliest first; two entries are equally likely."""
    follows: dict[int, list[int]] = {}

    def chain(*tokens: int) -> None:
        for last, following in itertools.pairwise(tokens):
            follows.setdefault(last, []).append(following)

    newline = ord("\n")
    chain(THINK, newline, *THOUGHT.encode(), CLOSE, *ANSWER.encode(), EOS)
    chain(ord(","), ord("a"))  # after "Wait,"
    chain(ord("?"), ord("0"), ord("1"), ord("0"))  # bare prompts that end in "?": coin flips
    chain(ord("0"), ord("0"))
    chain(ord("1"), ord("1"))
    chain(ord("~"), EOS)
    return follows


def write_scripted_model(path: Path, architecture: str = "llama") -> Path:
    """Write the model to ``path`` and return it."""
    texts = [*byte_texts(), "ab", "<think>", "</think>", "<s>", "</s>", "<|U|>", "<|A|>"]
    count = len(texts)
    kinds = [gguf.TokenType.NORMAL] * count
    for token in (THINK, CLOSE, USER, ASSISTANT):
        kinds[token] = gguf.TokenType.USER_DEFINED
    for token in (BOS, EOS):
        kinds[token] = gguf.TokenType.CONTROL
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("scripted")
    writer.add_context_length(2048)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(4)
    writer.add_head_count_kv(1)
    writer.add_rope_dimension_count(WIDTH // 4)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(texts)
    writer.add_token_types(kinds)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)

    embedding = np.zeros((count, WIDTH), np.float32)
    embedding[np.arange(count), np.arange(count)] = 1
    output = np.zeros((count, WIDTH), np.float32)
    for last, following in successors().items():
        for token in following:
            output[token, last] = 1.5  # RMSNorm scales the unit vector by sqrt(WIDTH), about 17
    key = WIDTH // 4
    tensors = {
        "token_embd.weight": embedding,
        "output.weight": output,
        "output_norm.weight": np.ones(WIDTH, np.float32),
        "blk.0.attn_norm.weight": np.ones(WIDTH, np.float32),
        "blk.0.ffn_norm.weight": np.ones(WIDTH, np.float32),
        "blk.0.attn_q.weight": np.zeros((WIDTH, WIDTH), np.float32),
        "blk.0.attn_k.weight": np.zeros((key, WIDTH), np.float32),
        "blk.0.attn_v.weight": np.zeros((key, WIDTH), np.float32),
        "blk.0.attn_output.weight": np.zeros((WIDTH, WIDTH), np.float32),
        "blk.0.ffn_gate.weight": np.zeros((32, WIDTH), np.float32),
        "blk.0.ffn_up.weight": np.zeros((32, WIDTH), np.float32),
        "blk.0.ffn_down.weight": np.zeros((WIDTH, 32), np.float32),
    }
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_scripted_lora(path: Path, after: str, comes: str) -> Path:
    """A LoRA for the scripted model: after one character now comes another."""
    count = len(byte_texts()) + 7
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 1.0)
    down = np.zeros((1, WIDTH), np.float32)
    down[0, ord(after)] = 1
    up = np.zeros((count, 1), np.float32)
    up[ord(comes), 0] = 8
    writer.add_tensor("output.weight.lora_a", down)
    writer.add_tensor("output.weight.lora_b", up)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
