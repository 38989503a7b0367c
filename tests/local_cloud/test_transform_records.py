"""How transform jobs filter and batch records: known answers, without a server."""

import pytest

from local_cloud.errors import JobFailed
from local_cloud.json_path import PathError, compile_path
from local_cloud.records import DataProcessing, batch, split

RECORD = {"id": 1, "x": [10, 20, 30], "in": {"a": "b", "c-d": 2}, "rows": [{"v": 1}, {"v": 2}]}


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("$", RECORD),
        ("$.id", 1),
        ("$['id']", 1),
        ("$.in.c-d", 2),
        ("$['in']['a']", "b"),
        ("$['id', 'x']", {"id": 1, "x": [10, 20, 30]}),
        ("$.x[0]", 10),
        ("$.x[-1]", 30),
        ("$.x[0,2]", [10, 30]),
        ("$.x[1:]", [20, 30]),
        ("$.x[:-1]", [10, 20]),
        ("$.in.*", ["b", 2]),
        ("$.rows[*].v", [1, 2]),
    ],
)
def test_paths(expression, expected):
    assert compile_path(expression)(RECORD) == expected


@pytest.mark.parametrize("expression", ["x", "", "$..x", "$.x[?(@>1)]", "$.x[", "$ .id", "$.1"])
def test_paths_that_are_not_understood(expression):
    with pytest.raises(PathError):
        compile_path(expression)


@pytest.mark.parametrize("expression", ["$.nothing", "$.x[9]", "$.id.deeper", "$.x['id']"])
def test_paths_that_do_not_fit(expression):
    with pytest.raises(PathError, match="does not fit the record"):
        compile_path(expression)(RECORD)


@pytest.mark.parametrize(
    ("strategy", "limit", "expected"),
    [
        ("SingleRecord", 4, [[b"a"], [b"bb"], [b"ccc"]]),
        ("MultiRecord", 4, [[b"a", b"bb"], [b"ccc"]]),
        ("MultiRecord", 8, [[b"a", b"bb", b"ccc"]]),
        ("MultiRecord", 0, [[b"a", b"bb", b"ccc"]]),
    ],
)
def test_batches(strategy, limit, expected):
    assert batch([b"a", b"bb", b"ccc"], strategy, limit) == expected
    assert all(len(b"\n".join(group)) <= limit or not limit for group in expected)


def test_a_record_above_the_limit():
    with pytest.raises(JobFailed, match="5 bytes is larger"):
        batch([b"12345"], "MultiRecord", 4)


def test_lines():
    assert split(b"a\r\nb\n\n c\n", "Line") == [b"a", b"b", b" c"]
    assert split(b"a\nb\n", "None") == [b"a\nb\n"]


@pytest.mark.parametrize(
    ("kind", "config", "record", "answer", "sent", "kept"),
    [
        ("text/csv", {"InputFilter": "$[0]"}, b'"a,b",2', b"3", b'"a,b"', b"3"),
        ("text/csv", {"JoinSource": "Input"}, b'"a,b",2', b"3,4", b'"a,b",2', b'"a,b",2,3,4'),
        ("application/json", {"InputFilter": "$.x"}, b'{"x":[1]}', b"7", b"[1]", b"7"),
        (
            "application/json",
            {"JoinSource": "Input"},
            b"[1]",
            b"7",
            b"[1]",
            b'{"SageMakerInput":[1],"SageMakerOutput":7}',
        ),
    ],
    ids=["csv filter", "csv join", "json filter", "json list"],
)
def test_data_processing(kind, config, record, answer, sent, kept):
    processing = DataProcessing(config, kind)
    assert processing.before(record) == sent
    assert processing.after(record, answer) == kept


@pytest.mark.parametrize("record", [b"{", b"\xff"])
def test_a_record_that_is_broken(record):
    with pytest.raises(ValueError, match=r"."):
        DataProcessing({}, "application/json").before(record)
