"""Chat templates: built-in, known by hash, and foreign ones behind caps."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forethought.dialogue import template_worker
from forethought.dialogue.template_process import TemplateWorker, shared_worker
from forethought.dialogue.templates import (
    KNOWN_TEMPLATES,
    ChatTemplate,
    render_r1,
    render_r1_zero,
    request_variables,
)
from forethought.errors import ModelError, UserError
from forethought.training.prompting import ZERO_TEMPLATE

R1_FILE = Path(__file__).parents[2] / "../shared/data/templates/deepseek-r1-distill-qwen.jinja"
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% endif %}"
)
USER = [{"role": "user", "content": "Are tomatoes fruits?"}]
needs_r1 = pytest.mark.skipif(not R1_FILE.exists(), reason="the R1 template is not here")

texts = st.sampled_from(["", "Hi", " a\n", "x</think>\n\ny", "<think>", "{{ bos_token }}", "é🤔"])
conversations = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant"]), "content": texts}
    ),
    min_size=1,
    max_size=6,
)


@pytest.mark.parametrize(
    "source",
    [SMOLLM2, ZERO_TEMPLATE, pytest.param("R1", marks=needs_r1)],
    ids=["smollm2", "trained here with r1-zero", "r1"],
)
def test_known_templates_equal_their_source(source):
    if source == "R1":
        source = R1_FILE.read_text(encoding="utf-8")
    template = ChatTemplate(source)
    assert template.known
    assert template.sha256 in KNOWN_TEMPLATES

    @settings(max_examples=200, deadline=None)
    @given(conversations, st.booleans(), st.sampled_from(["", "<s>"]))
    def check(messages, generate, bos):
        variables = {
            "messages": messages,
            "add_generation_prompt": generate,
            "bos_token": bos,
            "eos_token": "</s>",
        }
        assert template.render(
            messages, add_generation_prompt=generate, bos_token=bos, eos_token="</s>"
        ) == template_worker.render(source, variables, 10_000)

    check()


def test_known_templates_start_no_process_and_import_no_jinja():
    code = (
        "import sys\n"
        "from forethought.dialogue.templates import ChatTemplate\n"
        "from forethought.dialogue import prompt, reader, parse\n"
        f"ChatTemplate({SMOLLM2!r}).render([{{'role': 'user', 'content': 'Hi'}}])\n"
        "assert not {'jinja2', 'subprocess', 'torch', 'pydantic', 'numpy'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_r1_by_hand():
    turns = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "Q"},
        {"role": "assistant", "content": "t</think>\n\nA"},
        {"role": "user", "content": "R"},
    ]
    assert render_r1(turns, True, "<B>") == (
        "<B>S<｜User｜>Q<｜Assistant｜>\n\nA<｜end▁of▁sentence｜><｜User｜>R<｜Assistant｜><think>\n"
    )


def test_r1_zero_is_the_papers_table():
    assert render_r1_zero(USER, True, "<B>") == (
        "<B>A conversation between User and Assistant. The user asks a question, and the Assistant "
        "solves it. The assistant first thinks about the reasoning process in the mind and then "
        "provides the user with the answer. The reasoning process and answer are enclosed within "
        "<think> </think> and <answer> </answer> tags, respectively, i.e., <think> reasoning "
        "process here </think> <answer> answer here </answer>. User: Are tomatoes fruits?. "
        "Assistant: <think>\n"
    )


def render(source):
    return ChatTemplate(source).render(USER, bos_token="<s>", eos_token="</s>")


def test_a_foreign_template_is_rendered_as_transformers_does():
    source = (
        "{{ bos_token }}\n"
        "{% for message in messages %}\n"
        "    {% if message.role == 'tool' %}{% continue %}{% endif %}\n"
        "{{ message.role }}: {{ message.content | trim }}{% generation %}!{% endgeneration %}\n"
        "{% endfor %}\n"
        "{{ {'a': '<é>'} | tojson }} {{ tools is none }} {{ enable_thinking is defined }}"
        "{% if add_generation_prompt %} >{% endif %}"
    )
    assert render(source) == '<s>\nuser: Are tomatoes fruits?!{"a": "<é>"} True False >'
    assert ChatTemplate("{{ enable_thinking }}").render(USER, enable_thinking=False) == "False"
    assert render("{{ strftime_now('%Y') }}").isdigit()


ESCAPES = [
    "{{''.__class__}}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ lipsum.__globals__['os'] }}",
    "{{ lipsum.__globals__ }}",
    "{{ self.__init__.__globals__ }}",
    "{{ joiner.__init__ }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ raise_exception.__globals__ }}",
    "{{ strftime_now.__globals__ }}",
    "{{ ''|attr('__class__') }}",
    "{{ '{0.__class__}'.format('') }}",
    "{{ '{0.__class__}'.format_map({'0': ''}) }}",
    "{% set f = '{0.__class__}'.format %}{{ f('') }}",
    "{{ ['']|map(attribute='__class__')|list }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update({'role': 'system'}) }}",
    "{{ messages.__class__ }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{{ range(999999999) }}",
    "{{ open('/etc/passwd') }}",
    "{{ config }}{{ config.x }}",
    "{% for x in ().__class__.__base__.__subclasses__() %}{{ x }}{% endfor %}",
]


@pytest.mark.parametrize("source", ESCAPES)
def test_escapes_are_one_sentence(source):
    with pytest.raises(ModelError, match="chat template of the model") as caught:
        render(source)
    assert "\n" not in str(caught.value)


BOMBS = [
    "{{ 'a'*300000000 }}",
    "{{ 'a'*100000000 }}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% for a in range(99999) %}{{ 'aaaaaaaaaa'*99999 }}{% endfor %}",
    "{{ [0]*999999999 }}",
    "{{ 'x'.ljust(10**9) }}",
    "{{ '%1000000000d' % 5 }}",
    "{{ 9**(9**(9**9)) }}",
    "{% set x = namespace(s='aaaaaaaaaaaaaaaa') %}"
    "{% for a in range(60) %}{% set x.s = x.s ~ x.s %}{% endfor %}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{{" + "(" * 5000 + "1" + ")" * 5000 + "}}",
]


@pytest.mark.parametrize("source", BOMBS, ids=range(len(BOMBS)))
@pytest.mark.alone
def test_bombs_end_in_a_sentence_in_about_two_seconds(source):
    shared_worker().start()
    start = time.perf_counter()
    with pytest.raises(ModelError, match="chat template of the model") as caught:
        render(source)
    assert time.perf_counter() - start < 3.5
    assert "\n" not in str(caught.value)
    assert render("{{ messages[0].content }}") == "Are tomatoes fruits?"


def test_a_stopped_worker_is_gone():
    worker = TemplateWorker(render_seconds=0.3)
    worker.start()
    pid = worker.pid
    assert pid is not None
    os.kill(pid, 0)
    variables = {"messages": USER}
    bomb = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(ModelError, match=r"longer than 0\.3 s"):
        worker.render(bomb, variables, "the model")
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert worker.pid is None
    assert worker.render("ok", variables, "the model") == "ok"
    worker.close()


def test_the_worker_sees_no_secrets_of_the_environment(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    worker = TemplateWorker()
    worker.start()
    environment = Path(f"/proc/{worker.pid}/environ")
    if environment.exists():
        assert b"secret" not in environment.read_bytes()
    worker.close()


def test_mistakes_are_sentences():
    with pytest.raises(UserError, match="refuses this conversation: Roles must alternate, please"):
        render("{{ raise_exception('Roles must alternate,\x1b\n please.') }}")
    with pytest.raises(ModelError, match="line 2"):
        render("a\n{% if %}")
    with pytest.raises(ModelError, match="'x' is undefined"):
        render("{{ x.y }}")
    with pytest.raises(ModelError, match="ZeroDivisionError"):
        render("{{ 1/0 }}")
    with pytest.raises(ModelError, match="megabyte"):
        ChatTemplate("x" * 2_000_000)


def test_a_megabyte_of_question_passes():
    messages = [{"role": "user", "content": "é" * 1_000_000}]
    text = ChatTemplate("{{ messages[0].content }}!").render(messages)
    assert len(text) == 1_000_001


def test_only_roles_and_contents_reach_a_template():
    messages = [{"role": "user", "content": "Q", "thought": "T"}]
    assert ChatTemplate("{{ messages[0] | tojson }}").render(messages) == (
        '{"role": "user", "content": "Q"}'
    )
    with pytest.raises(TypeError):
        ChatTemplate("x").render(USER, tokenize=True)


@pytest.mark.parametrize(
    "name",
    ["messages", "add_generation_prompt", "bos_token", "eos_token", "tokenize", "tools", "__x"],
)
def test_requests_set_no_internal_variable(name):
    with pytest.raises(UserError, match="template variable"):
        request_variables({name: True})


def test_request_variables():
    assert request_variables({"enable_thinking": False}) == {"enable_thinking": False}
    with pytest.raises(UserError, match="bool"):
        request_variables({"enable_thinking": 1})
    with pytest.raises(UserError, match="Did you mean enable_thinking"):
        request_variables({"enable_thinkin": True})
