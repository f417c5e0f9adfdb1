"""Chat templates come with models of others: one that loops, explodes or reaches outside ends with an error in seconds."""

import time
from pathlib import Path
from typing import Any

import pytest

from teachers.errors import TeacherError
from teachers.prompts.chats import Chat, Refused

MESSAGES = [{"role": "user", "content": "rank"}]
SANE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"


class Tokenizer:
    """A tokenizer as far as a chat needs one: a template and its special tokens."""

    special_tokens_map: dict[str, Any] = {"bos_token": "<s>"}  # noqa: RUF012

    def __init__(self, template: str) -> None:
        self.template = template

    def get_chat_template(self) -> str:
        return self.template


def chat(template: str) -> Chat:
    return Chat(Tokenizer(template), {})


def test_a_sane_template_renders() -> None:
    assert chat(SANE).render(MESSAGES) == "<user>rank"


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}",
        pytest.param(
            "{% set n = namespace(i=0) %}{% for a in range(99999) %}{% for b in range(99999) %}{% set n.i = n.i + 1 %}{% endfor %}{% endfor %}",
            marks=pytest.mark.test_all,
        ),
        pytest.param("{{ 9 ** (9 ** 9) }}", marks=pytest.mark.test_all),
        pytest.param("{{ (7 ** (10 ** 10)) | string | length }}", marks=pytest.mark.test_all),
        "{% macro again(n) %}{% for a in range(99) %}{{ again(n) }}{% endfor %}{% endmacro %}{{ again(1) }}",
        "{{ range(99999) | map('string') | join(range(99999) | join) }}",
    ],
)
def test_templates_that_loop_end_with_an_error_in_seconds(template: str) -> None:
    begun = time.monotonic()
    with pytest.raises(TeacherError, match="chat template") as caught:
        chat(template).render(MESSAGES)
    assert caught.value.hint
    assert time.monotonic() - begun < 60  # 5 s of its own time, on a machine that other tests share


@pytest.mark.parametrize(
    "template",
    [
        "{{ 'x' * 10 ** 10 }}",
        "{{ messages * 10 ** 9 }}",
        "{% set n = namespace(s='xy') %}{% for a in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}",
        "{% set n = namespace(s=[1]) %}{% for a in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}{{ n.s | length }}",
        "{{ '%999999999999d' % 1 }}",
        "{{ 'x'.ljust(10 ** 11) }}",
    ],
)
def test_templates_that_explode_end_with_an_error(template: str) -> None:
    with pytest.raises(TeacherError, match="chat template"):
        chat(template).render(MESSAGES)


@pytest.mark.parametrize(
    "template",
    [
        "{{ cycler.__init__.__globals__.os.system('touch MARKER') }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}{% for c in ().__class__.__base__.__subclasses__() %}{{ c('touch MARKER') }}{% endfor %}",
        "{% include 'MARKER' %}",
        "{{ lipsum.__globals__['os'].popen('touch MARKER').read() }}",
        "{{ raise_exception.__globals__['sys'].modules['os'].system('touch MARKER') }}",
        "{{ messages.__class__.__init__.__globals__ }}{{ open('MARKER', 'w') }}",
    ],
)
def test_templates_that_reach_outside_are_errors(template: str, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    with pytest.raises(TeacherError, match="chat template"):
        chat(template.replace("MARKER", str(marker))).render(MESSAGES)
    assert not marker.exists()


def test_after_a_template_that_ended_its_process_the_next_prompt_renders() -> None:
    # The template explodes for one message alone, as a passage could make it do.
    both = chat("{% if messages[0].content == 'big' %}{{ 'x' * 10 ** 10 }}{% else %}" + SANE + "{% endif %}")
    with pytest.raises(TeacherError):
        both.render([{"role": "user", "content": "big"}])
    assert both.render(MESSAGES) == "<user>rank"


def test_a_refusal_by_the_template_is_told_apart() -> None:
    with pytest.raises(Refused, match="no system turn"):
        chat("{{ raise_exception('no system turn') }}").render(MESSAGES)
