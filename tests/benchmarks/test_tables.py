"""Tables by path, and what is wrong with them."""

import gzip

import numpy as np
import pytest

from benchmarks.tables import read_table
from predictor.errors import BadTableError

GOOD = "arch_str,phone,phone_mj,phone_us\na,1.5,9,1500\nb,2.5,8,2500\n"


@pytest.fixture
def table(tmp_path):
    def write(text, name="t.csv"):
        path = tmp_path / name
        if name.endswith(".gz"):
            path.write_bytes(gzip.compress(text.encode()))
        else:
            path.write_text(text)
        return read_table(path)

    return write


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz"])
def test_a_table_is_read_plain_or_gzipped(table, name):
    found = table(GOOD, name)
    assert len(found) == 2
    assert found.architectures() == ["a", "b"]
    np.testing.assert_array_equal(found.latencies_ms("phone"), [1.5, 2.5])


@pytest.mark.parametrize(
    ("text", "row", "message"),
    [
        ("", None, "needs a heading"),
        ("a,a\n1,2\n", None, "distinct names"),
        ("a,b\n", None, "no rows"),
        ("a,b\n1,2\n3\n", 1, "2 columns, this row 1"),
    ],
)
def test_a_file_that_is_no_table_is_refused(table, text, row, message):
    with pytest.raises(BadTableError, match=message) as caught:
        table(text)
    assert caught.value.row == row


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("fast", "is not a number"),
        ("", "is not a number"),
        ("nan", "is not finite"),
        ("inf", "is not finite"),
        ("0", "more than 0 ms"),
        ("-3", "more than 0 ms"),
    ],
)
def test_a_latency_that_is_none_is_refused_with_its_row(table, cell, message):
    with pytest.raises(BadTableError, match=message) as caught:
        table(GOOD + f"c,{cell},7,3500\n").latencies_ms("phone")
    assert (caught.value.row, caught.value.column) == (2, "phone")


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("phone_us", "multiply by 0.001"),
        ("phone_mj", "energy, not latency"),
        ("tablet", "has no column tablet; it has arch_str, phone"),
    ],
)
def test_a_column_of_another_unit_or_of_none_is_refused(table, column, message):
    with pytest.raises(BadTableError, match=message) as caught:
        table(GOOD).latencies_ms(column)
    assert caught.value.column == column


def test_a_table_that_names_no_architectures_is_refused(table):
    with pytest.raises(BadTableError, match="none of the columns arch_str"):
        table("phone\n1\n").architectures()
