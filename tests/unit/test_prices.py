"""Prices: the user's own file wins, then the bundled ones of the provider at the address; else unknown."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from worker.errors import SettingsError
from worker.policy.cost import Price, Rates
from worker.prices.book import PriceBook, open_price_book, open_prices
from worker.prices.bundled import find_bundled_price, may_be_known
from worker.prices.own import OwnPrices, read_own_prices
from worker.settings import Settings, load_settings

NOW_MS = 1_795_000_000_000
OPENAI = "https://api.openai.com/v1"


def write(folder: Path, text: str) -> Path:
    file = folder / "prices.toml"
    file.write_text(text)
    return file


def bundled(model: str, base_url: str, provider: str | None = None) -> Price | None:
    return find_bundled_price(model, base_url=base_url, provider=provider, now_ms=NOW_MS)


def test_a_model_of_a_known_provider_has_a_price_without_any_setting() -> None:
    assert bundled("gpt-4o-mini", OPENAI) == Price(Rates(150_000, 600_000, 75_000))
    assert bundled("gpt-4o-mini-2024-07-18", OPENAI) == Price(Rates(150_000, 600_000, 75_000))


def test_prices_that_rise_with_the_prompt_keep_their_tiers() -> None:
    found = bundled("gemini-2.5-pro", "https://generativelanguage.googleapis.com/v1beta/openai")
    assert found is not None
    assert found.rates == Rates(1_250_000, 10_000_000, 125_000)
    assert found.tiers == ((200_000, Rates(2_500_000, 15_000_000, 250_000)),)


def test_a_price_for_each_answer_is_part_of_the_price() -> None:
    found = bundled("sonar-pro", "https://api.perplexity.ai")
    assert found is not None and found.answer_pico == 14_000_000_000  # $14 a thousand


@pytest.mark.parametrize(
    "base_url",
    [
        "http://localhost:8000/v1",
        "http://10.0.0.7/v1",
        "http://[::1]:1/v1",
        "http://vllm:8000",
        "http://gpu.local/v1",
    ],
)
def test_a_models_name_alone_has_no_price_on_ones_own_machine(base_url: str) -> None:
    assert not may_be_known(base_url)
    assert bundled("gpt-4o-mini", base_url) is None


def test_an_unknown_provider_or_model_has_no_price() -> None:
    assert bundled("gpt-4o-mini", "https://llm.example.org/v1") is None
    assert bundled("no-such-model", OPENAI) is None


def test_a_provider_that_is_named_gives_its_prices_to_any_address(tmp_path: Path) -> None:
    file = write(tmp_path, 'provider = "openai"\n')
    book = open_price_book(Settings(base_url="http://localhost:4000/v1", prices_file=file))
    assert book.find("gpt-4o-mini", now_ms=NOW_MS) == Price(Rates(150_000, 600_000, 75_000))


def test_a_provider_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        open_price_book(Settings(prices_file=write(tmp_path, 'provider = "nobody-at-all"\n')))
    assert "nobody-at-all" in caught.value.problems[0]


def test_ones_own_price_wins_by_its_name_then_by_the_first_pattern(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        'currency = "USD"\n'
        '[models."gpt-*"]\ninput = 1\noutput = 2.5\n'
        '[models."gpt-4o-mini"]\ninput = 0.1\noutput = 0.2\ncached = 0\n'
        '[models."*"]\ninput = 0\noutput = 0\n',
    )
    book = PriceBook(OPENAI, read_own_prices(file))
    assert book.find("gpt-4o-mini", now_ms=NOW_MS) == Price(Rates(100_000, 200_000, 0))
    assert book.find("gpt-5", now_ms=NOW_MS) == Price(Rates(1_000_000, 2_500_000))
    assert book.find("qwen", now_ms=NOW_MS) == Price(Rates(0, 0))


def test_a_name_with_a_dot_that_is_not_quoted_is_refused_with_the_way_to_write_it(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        read_own_prices(write(tmp_path, "[models.gpt-4.1]\ninput = 2\noutput = 8\n"))
    (problem,) = caught.value.problems
    assert 'written in quotes, as in [models."gpt-4.1"]' in problem


def test_ones_own_price_of_the_request_wins_over_a_bundled_one_of_the_answer() -> None:
    own = OwnPrices((("mini", Price(Rates(1, 2))),))
    book = PriceBook(OPENAI, own)
    assert book.find("gpt-4o-mini-2024-07-18", "mini", now_ms=NOW_MS) == Price(Rates(1, 2))


def test_ones_own_price_of_the_request_by_its_name_wins_over_a_pattern_that_fits_the_answer(
    tmp_path: Path,
) -> None:
    """Providers answer with a dated name, and a budget reserves by the name in the request."""
    file = write(tmp_path, '[models."gpt-4o"]\ninput = 2\noutput = 3\n[models."*"]\ninput = 0\noutput = 0\n')
    book = PriceBook(OPENAI, read_own_prices(file))
    assert book.find("gpt-4o-2024-08-06", "gpt-4o", now_ms=NOW_MS) == Price(Rates(2_000_000, 3_000_000))
    assert book.find("gpt-4o-2024-08-06", "gpt-4", now_ms=NOW_MS) == Price(Rates(0, 0))


def test_a_price_is_looked_up_once_in_five_minutes() -> None:
    asked: list[str] = []

    def find(model: str, **_: object) -> Price | None:
        asked.append(model)
        return None

    book = PriceBook(OPENAI, find_bundled=find)
    for after_ms in (0, 1, 299_999):
        assert book.find("m", now_ms=NOW_MS + after_ms) is None
    assert asked == ["m"]
    book.find("m", now_ms=NOW_MS + 300_000)
    assert asked == ["m", "m"]


def test_every_fault_of_the_file_is_named_at_once(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        'currency = "EUR"\nprovider = 3\nprice = 1\n'
        "[models]\nflat = 3\n"
        "[models.a]\ninput = -1\noutput = nan\n"
        "[models.b]\ninput = 1\nouput = 1\n"
        '[models.c]\ninput = true\noutput = "2"\n',
    )
    with pytest.raises(SettingsError) as caught:
        read_own_prices(file)
    told = "\n".join(caught.value.problems)
    for words in (
        "currency must be USD",
        "provider must be a name",
        "price is unknown",
        "models.flat must be",
        "models.a: input must be dollars",
        "models.a: output must be dollars",
        "models.b: ouput is unknown",
        "models.b: output is missing",
        "models.c: input must be dollars",
        "models.c: output must be dollars",
    ):
        assert words in told


@pytest.mark.parametrize("content", [b"this is = = no toml", b"\xff\xfe"])
def test_a_file_that_is_no_toml_is_said_in_a_sentence(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "prices.toml"
    file.write_bytes(content)
    with pytest.raises(SettingsError) as caught:
        read_own_prices(file)
    assert "is not TOML" in caught.value.problems[0]


def test_a_file_that_is_missing_is_said_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        read_own_prices(tmp_path / "none.toml")
    assert "cannot be read (No such file or directory)" in caught.value.problems[0]


def test_the_bundled_prices_are_imported_when_a_price_is_asked_for_and_not_before() -> None:
    code = (
        "import sys, worker.runtime, worker.prices.book\n"
        "book = worker.prices.book.PriceBook('http://127.0.0.1:8000/v1')\n"
        "assert book.find('gpt-4o-mini', now_ms=0) is None\n"
        "assert 'genai_prices' not in sys.modules and 'httpx2' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_of_several_endpoints_the_dearest_that_serves_the_model_counts_and_one_unknown_makes_it_unknown() -> (
    None
):
    told = {
        "a": {"base_url": "http://a", "models": ["m", "n"], "prices": {"m": {"input": 1, "output": 2}}},
        "b": {"base_url": "http://b", "models": ["m"], "prices": {"*": {"input": 3, "output": 1}}},
    }
    prices = open_prices(load_settings(endpoint_tables=told, _env_file=None))
    assert prices.find("m", now_ms=NOW_MS) == Price(Rates(3_000_000, 2_000_000, 3_000_000))
    assert prices.find("n", now_ms=NOW_MS) is None
    assert prices.find("z", now_ms=NOW_MS) is None
