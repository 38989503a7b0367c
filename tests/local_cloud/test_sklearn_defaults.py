"""A scikit-learn model whose script defines `model_fn` alone, as in AWS's scikit-learn images."""

import io
import json

import joblib
import numpy as np
import pytest
from endpoints import Endpoint, create_config, create_model, variant
from harness import archive

IMAGE = "683313688378.dkr.ecr.us-east-1.amazonaws.com/sagemaker-scikit-learn:1.4-2-cpu-py3"
SCRIPT = """
import os
import joblib

def model_fn(model_dir):
    return joblib.load(os.path.join(model_dir, "model.joblib"))
"""
ROWS = [[0.0, 1.0], [5.0, 4.0]]


@pytest.fixture(scope="module")
def endpoint(cloud):
    from sklearn.linear_model import LinearRegression

    x = np.arange(20.0).reshape(10, 2)
    model = LinearRegression().fit(x, x.sum(axis=1))
    buffer = io.BytesIO()
    joblib.dump(model, buffer)
    data = archive({"model.joblib": buffer.getvalue(), "code/inference.py": SCRIPT})
    config = create_config(cloud, variant(create_model(cloud, data, image=IMAGE)))
    serving = Endpoint(cloud, config).serve()
    yield serving
    serving.delete()


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        pytest.param("application/json", json.dumps(ROWS), id="json"),
        pytest.param("text/csv", "0,1\n5,4", id="csv"),
    ],
)
def test_rows_are_predicted_and_encoded(endpoint, content_type, body):
    answer = endpoint.invoke(body, content_type, Accept="application/json")
    assert json.loads(answer["Body"].read()) == pytest.approx([1.0, 9.0], abs=1e-5)


def test_the_answer_is_csv_where_the_caller_asks_for_it(endpoint):
    answer = endpoint.invoke("0,1\n5,4", "text/csv", Accept="text/csv")
    lines = answer["Body"].read().decode().split()
    assert [float(line) for line in lines] == pytest.approx([1.0, 9.0], abs=1e-5)
