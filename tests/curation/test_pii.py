"""Personal data: what is replaced, what only looks like it, and that hostile text takes no longer than other text."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.config.errors import UserError
from herd.curation.pii import PIIConfig, entropy, redact

MARKS = PIIConfig(replacements={"email": "<E>", "phone": "<P>", "ipv4": "<4>", "ipv6": "<6>", "secret": "<S>"})

# Nothing that looks like a key stands in this file: scanners of repositories would report it.
RANDOM = "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8"
KEYS = [
    "AK" + "IAZ7QXJ4M2P9LKD8RW",
    "gh" + "p_" + RANDOM,
    "xo" + "xb-" + RANDOM,
    "s" + "k-" + RANDOM,
    "h" + "f_" + "kLmNoPqRsTuVwXyZaBcDeFgHiJkLmNoPq",
]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Write to Jane.Doe+x@mail.example.org, or <bob@corp.co.uk>.", "Write to <E>, or <<E>>."),
        ("@decorator, a@b, user@localhost, x @ y.z", "@decorator, a@b, user@localhost, x @ y.z"),
        ("Call +44 20 7946 0958 or (415) 555-2671 / 415-555-2671.", "Call <P> or <P> / <P>."),
        ("Tel.: 030 12345678\nfax 01/23 45 67 89", "Tel.: <P>\nfax <P>"),
        ("ISBN 978-3-16-148410-0, 2024-01-02, 1234-5678, 123.456.7890, 1999-2000", None),
        ("at 8.8.8.8, 8.8.4.4.", "at <4>, <4>."),
        ("10.0.0.1, 127.0.0.1, 999.1.1.1, version 1.2.3.4, v8.8.8.8, 1.2.3, 1.2.3.4.5", None),
        ("host 2001:4860:4860::8888 answers", "host <6> answers"),
        ("std::vector, bad::face, 12:30:45, ::1, fe80::1, a::b, 10:20", None),
        (f"key {KEYS[0]} and {KEYS[1]}", "key <S> and <S>"),
        (" ".join(KEYS), "<S> <S> <S> <S> <S>"),
        ('api_key = "a8f5f167f44f4964e6c998dee827110c"', 'api_key = "<S>"'),
        ("token: aaaaaaaaaaaaaaaaaaaa1, password = get_password_from_user, secret=short1", None),
        ("联系john@corp-mail.cn获取资料 ติดต่อjohn@corp.co.thได้", "联系<E>获取资料 ติดต่อ<E>ได้"),
        ("Пишите на почта@пример.рф, a@xn--80a.xn--p1ai, संपर्क@उदाहरण.भारत!", "Пишите на <E>, <E>, <E>!"),
        (
            "服务器8.8.8.8已关闭, 8.8.8.8-8.8.8.9, tool-1.2.3.4, 1.2.3.4-rc1",
            "服务器<4>已关闭, <4>-<4>, tool-1.2.3.4, 1.2.3.4-rc1",
        ),
        ("ping 2001:4860:4860::8888: ok, [2001:4860:4860::8888]:80 连2001:4860:4860::8888吧", "ping <6>: ok, [<6>]:80 连<6>吧"),
        ("电话:13800138000, 手机号码：138 0013 8000, тел. 8 495 123-45-67", "电话:<P>, 手机号码：<P>, тел. <P>"),
        ("020 7946 0958; 06 12 34 56 78; (020) 7946 0958; 415 555 2671; 请拨+8613800138000吧", "<P>; <P>; <P>; <P>; 请拨<P>吧"),
        ("01 23 45 67 89 ab cd, 1 234 567, 415 555 267, 100 200 3000, 2 415 555 2671, 415 555 2671 8, 0 0 0", None),
        ("1.415 555 2671, x=020 7946 0958, 000 1234 5678, 2019 2020 2021, 0.12 345 6789", None),
        (
            "postgres://user:Sup3rS3cret@host/db https://me:t0k3n@a.example.org/x",
            "postgres://user:<S>@host/db https://me:<S>@a.example.org/x",
        ),
        ("http://user:password@host http://user:{pw}@host http://host:80/a@b http://u@host", None),
        ("-----BEGIN PRIVATE " + "KEY-----\n" + RANDOM + "\n" + RANDOM + "=\nThen it ends here.", "<S>\nThen it ends here."),
        ("A file begins with -----BEGIN PRIVATE " + "KEY----- and so on.", None),
        ("-----BEGIN RSA PRIVATE " + "KEY-----\nMIIE-x\n-----END RSA PRIVATE KEY-----\nrest", "<S>\nrest"),
    ],
)
def test_by_hand(text, expected):
    assert redact(text, MARKS)[0] == (text if expected is None else expected)


def test_counts_by_kind_and_public_addresses():
    text = "a@b.org c@d.org 10.1.2.3 8.8.8.8"
    assert redact(text, PIIConfig()) == (
        "email@example.com email@example.com 10.1.2.3 192.0.2.1",
        {"email": 2, "ipv4": 1},
    )
    assert redact(text, PIIConfig(public_ips_only=False))[1] == {"email": 2, "ipv4": 2}
    assert redact(text, PIIConfig(kinds=["ipv4"]))[1] == {"ipv4": 1}
    assert redact(text, PIIConfig(kinds=[])) == (text, {})


def test_replaces_what_datatrove_replaces():
    """datatrove 0.10.1 (PIIFormatter) on this text replaces the first two addresses of each kind and keeps the private one."""
    text = "From ann@example.net and bob.b@sub.example.org: 93.184.216.34, 1.1.1.1 and 192.168.0.1"
    assert redact(text, MARKS)[0] == "From <E> and <E>: <4>, <4> and 192.168.0.1"


def test_a_password_in_an_address_is_no_mail_address():
    once, counts = redact("ftp://me:t0k3n@ftp.corp.net/x", PIIConfig())
    assert (once, counts) == ("ftp://me:REDACTED@ftp.corp.net/x", {"secret": 1})
    assert redact(once, PIIConfig()) == (once, {})


@given(st.text(st.sampled_from("ab1.@+-:( )=/\nп中"), max_size=60), st.sampled_from([PIIConfig(), MARKS]))
def test_redacting_twice_changes_nothing(text, config):
    once, _ = redact(text, config)
    assert redact(once, config) == (once, {})


@pytest.mark.parametrize(
    "unit",
    [
        "a",
        "1",
        "1.",
        "a.",
        "a@",
        "@a.",
        "a-",
        "+1 ",
        "1:",
        "::",
        "-----BEGIN PRIVATE " + "KEY-----",
        "key=a",
        "token ",
        "tel 1",
        "_",
        "eyJ",
        "п@",
        "0 12 ",
        "020 7946 ",
        "://a:",
        "://a:b@",
        "8.8.8.8-",
        "-----BEGIN PRIVATE " + "KEY-----\n" + "A" * 64 + "\n",
    ],
)
def test_time_is_linear(unit):
    text = unit * (200_000 // len(unit))
    start = time.perf_counter()
    redact(text, PIIConfig())
    assert time.perf_counter() - start < 20  # under 0.3 s on an idle core; quadratic patterns take hours


def test_entropy_and_settings():
    assert entropy("aaaa") == 0
    assert entropy("abcd") == 2
    assert entropy("") == 0
    with pytest.raises(UserError, match="'mail' is no kind"):
        PIIConfig(kinds=["mail"])
