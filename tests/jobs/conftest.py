"""The entry points as jobs of a real local cloud, on pictures of 16 pixels."""

import pytest
from course_jobs import CourseJobs


@pytest.fixture(scope="module")
def jobs(cloud, stripes, tmp_path_factory):
    return CourseJobs(cloud, stripes, tmp_path_factory.mktemp("jobs"))
