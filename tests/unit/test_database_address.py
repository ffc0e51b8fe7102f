"""A PostgreSQL's address is a value of ours, and says what SQLAlchemy's reader, whose grammar it is, makes of it."""

from __future__ import annotations

import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from worker.settings.database import PostgresqlAddress, parse_postgresql
from worker.settings.postgresql import check_postgresql
from worker.storage.postgresql import engine_url

PIECES = st.sampled_from(
    (
        *(
            "h",
            "h.example",
            "::1",
            "a,b",
            "5432",
            "5_4",
            "-1",
            "u",
            "p%40",
            "%",
            "é",
            "+",
            " ",
            "\n",
            "d%20b",
        ),
        *("a=1", "host=a:1", "host=b", "port=1,2", "sslmode=", "options=-c x=1", "x"),
        *":/@?#&[],=",
    )
)
ADDRESSES = st.one_of(
    st.builds("{}://{}".format, st.sampled_from(["postgresql", "postgres+x"]), st.lists(PIECES).map("".join)),
    st.builds(
        "postgresql://{}{}{}{}{}".format,
        st.sampled_from(["", "u@", "u:p@", "u:@", ":p@", "u:p:q%2F@", "a@b@", "u+v:p +@"]),
        st.sampled_from(["", "h", "[::1]", "a,b", "%2Frun", "[::1", "::1", "h h"]),
        st.sampled_from(["", ":1", ":", ":x", ":99999", ":0", ": 5"]),
        st.sampled_from(["", "/", "/d", "/d%2Fe", "/d e+f", "/é"]),
        st.sampled_from(
            ["", "?", "?a=1&a=2&b=", "?host=a:1&host=b:2", "?b=%26&a=+x", "?a", "?sslmode=require\n"]
        ),
    ),
)


def read_by_sqlalchemy(text: str) -> URL | None:
    try:
        return make_url(text).set(drivername="postgresql+psycopg")
    except (ArgumentError, ValueError):
        return None


def read(text: str) -> PostgresqlAddress | None:
    try:
        return parse_postgresql(text)
    except ValueError:
        return None


@given(ADDRESSES)
def test_an_address_means_what_sqlalchemy_reads_in_it(text: str) -> None:
    # SQLAlchemy drops in silence what stands behind an address: `[::1]x/d`, a second line. It is refused here.
    assume("\n" not in text.rstrip() and not re.search(r"\][^:/?]", text))
    address, url = read(text), read_by_sqlalchemy(text)
    assert (address is None) == (url is None)
    if address is not None and url is not None:
        assert engine_url(address) == url


@given(ADDRESSES)
def test_an_address_that_is_written_out_is_read_as_the_same(text: str) -> None:
    address = read(text)
    assume(address is not None)
    assert address is not None
    assert parse_postgresql(address.render()) == address


@pytest.mark.parametrize(
    "text", ["postgresql://[::1]x/d", "postgresql://h/d?a=1\nb=2", "nonsense", "", "a b://h"]
)
def test_what_stands_behind_an_address_is_not_dropped_but_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^is not a database address$"):
        parse_postgresql(text)


@pytest.mark.parametrize("text", ["mysql://u@h/d", "Postgresql://h", "+postgresql://h", "postgresqls://h"])
def test_only_postgresql_is_a_server_we_know(text: str) -> None:
    with pytest.raises(ValueError, match=r"^must begin with sqlite:/// or postgresql://$"):
        parse_postgresql(text)


HOSTS_AND_PORTS = [
    "",
    "host=a",
    "host=a&port=1",
    "host=a:1",
    "host=a:1&port=2",
    "host=a:x",
    "host=a,b",
    "host=a,b&port=1,2",
    "host=a,b&port=1",
    "host=a,b&port=1,",
    "host=a&port=1,2",
    "host=a:1&host=b:2",
    "host=a:1&host=b",
    "host=a:1&host=b:x",
    "host=a&host=b&port=1",
    "port=1",
    "port=1,2",
    "port=x",
    "port=1&port=2",
    "host=a,b&port=1&port=2",
    "host=a,b&port=1&port=x",
    "host=%2Frun%2Fpg",
    "host=%2Frun%2Fpg&port=6432",
    "host=::1",
]


@pytest.mark.parametrize("query", HOSTS_AND_PORTS)
def test_hosts_and_ports_are_refused_here_where_the_driver_would_refuse_them_later(query: str) -> None:
    address = parse_postgresql(f"postgresql://u@/d?{query}")
    url = engine_url(address)
    try:
        url.get_dialect()().create_connect_args(url)
    except ArgumentError:
        with pytest.raises(ValueError, match="hosts and ports do not go together"):
            check_postgresql(address)
    else:
        check_postgresql(address)


def test_hosts_that_nobody_can_tell_from_their_ports_are_a_sentence() -> None:
    with pytest.raises(ValueError, match="hosts and ports do not go together"):
        check_postgresql(parse_postgresql("postgresql:///d?host=::1&host=::2"))


def test_no_text_of_an_address_holds_its_password() -> None:
    address = parse_postgresql("postgresql://u:secret-1@h/d?sslpassword=secret-2")
    assert "secret" not in f"{address!r} {address}"
