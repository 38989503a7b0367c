"""The jobs' own clients of S3 and the logs."""

import sys
import threading

import pytest

from local_cloud.aws import LocalAws, split_uri
from local_cloud.cluster import Cluster
from local_cloud.errors import JobFailed
from local_cloud.instance import Instance


@pytest.fixture
def eager_threads():
    """Threads take turns so often that what is unsafe among them shows."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def test_threads_that_use_a_client_first_agree_on_its_exceptions(cloud, eager_threads):
    for _ in range(5):
        aws = LocalAws(Instance(**cloud.server))
        barrier, seen = threading.Barrier(4), []

        def look(aws=aws, barrier=barrier, seen=seen):
            barrier.wait()
            exceptions = aws.client("logs", "us-east-1").exceptions
            seen.append(exceptions.ResourceAlreadyExistsException)

        threads = [threading.Thread(target=look) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(seen) == 4
        assert len(set(seen)) == 1


def test_a_host_without_a_log_fails_the_job(cloud, tmp_path):
    cluster = Cluster(tmp_path / "job", LocalAws(Instance(**cloud.server)), "us-east-1", 1)
    with pytest.raises(Exception, match="InvalidParameterException"):
        # CloudWatch Logs takes names of up to 512 characters.
        cluster.run([["true"]], [tmp_path], "x" * 600, "job", print, None, None)
    cluster.remove()


@pytest.mark.parametrize(
    ("uri", "place"),
    [
        ("s3://bucket/a/b?c#d", ("bucket", "a/b?c#d")),
        ("s3://bucket", ("bucket", "")),
        ("https://my.bucket.s3.eu-west-1.amazonaws.com/a/b", ("my.bucket", "a/b")),
        ("https://bucket.s3-us-east-1.amazonaws.com/a", ("bucket", "a")),
        ("https://bucket.s3.amazonaws.com/a", ("bucket", "a")),
        ("https://s3.us-east-1.amazonaws.com/bucket/a/b", ("bucket", "a/b")),
    ],
)
def test_addresses_of_objects(uri, place):
    assert split_uri(uri) == place


@pytest.mark.parametrize(
    "uri",
    [
        "s3://",
        "bucket/key",
        "http://bucket.s3.amazonaws.com/a",
        "https://example.com/bucket/a",
        "https://bucket.s3.amazonaws.com.example.com/a",
        "https://s3.us-east-1.amazonaws.com/",
        "file:///etc/passwd",
    ],
)
def test_addresses_of_other_things(uri):
    with pytest.raises(JobFailed, match="is not an S3 address"):
        split_uri(uri)
