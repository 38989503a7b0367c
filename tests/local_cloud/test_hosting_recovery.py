"""What becomes of endpoints and transform jobs when the server ends and starts again."""

from endpoints import Endpoint, create_config, create_model, multiplier, variant
from harness import BUCKET, Cloud, archive, command_line

SLOW = """
import time

def model_fn(model_dir):
    print("loading")
    time.sleep(3)

def transform_fn(model, body, content_type, accept):
    return "late"
"""


def start(home):
    started = command_line(home, "start")
    assert started.returncode == 0, started.stderr
    return Cloud(home)


def test_endpoints_serve_again(own_home):
    cloud = start(own_home)
    cloud.s3.create_bucket(Bucket=BUCKET)
    double, triple = (create_model(cloud, multiplier(factor)) for factor in (2, 3))
    config = create_config(cloud, variant(double, "double"), variant(triple, "triple"))
    scaled = Endpoint(cloud, config).serve()
    scaled.scale(
        {"VariantName": "double", "DesiredWeight": 0},
        {"VariantName": "triple", "DesiredInstanceCount": 2},
    )
    scaled.wait()
    slow = create_model(cloud, archive({"code/inference.py": SLOW}))
    creating = Endpoint(cloud, create_config(cloud, variant(slow)))
    updating = Endpoint(cloud, create_config(cloud, variant(double)))
    updating.serve()
    updating.update(create_config(cloud, variant(slow)))
    broken = create_model(cloud, archive({"code/inference.py": "1 / 0"}))
    failed = Endpoint(cloud, create_config(cloud, variant(broken)))
    assert failed.wait()["EndpointStatus"] == "Failed"
    # What an endpoint is made of may be deleted while it serves.
    cloud.sagemaker.delete_endpoint_config(EndpointConfigName=config)
    cloud.sagemaker.delete_model(ModelName=triple)
    job = {
        "TransformJobName": "interrupted",
        "ModelName": slow,
        "TransformInput": {
            "DataSource": {
                "S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": cloud.put("in/a", b"1")}
            }
        },
        "TransformOutput": {"S3OutputPath": f"s3://{BUCKET}/out"},
        "TransformResources": {"InstanceType": "ml.m5.large", "InstanceCount": 1},
    }
    cloud.sagemaker.create_transform_job(**job)
    command_line(own_home, "stop")

    again = start(own_home)
    for endpoint in (scaled, creating, updating, failed):
        endpoint.cloud = again
    interrupted = again.sagemaker.describe_transform_job(TransformJobName="interrupted")
    assert interrupted["TransformJobStatus"] == "Failed"
    assert "the local cloud ended while the job ran" in interrupted["FailureReason"]
    shares = [
        (v["VariantName"], v["DesiredWeight"], v["DesiredInstanceCount"])
        for v in scaled.serve().describe()["ProductionVariants"]
    ]
    assert shares == [("double", 0, 1), ("triple", 1, 2)]
    answers = [scaled.ask({"x": 5}) for _ in range(4)]
    assert [answer["product"] for answer in answers] == [15] * 4
    assert len({answer["pid"] for answer in answers}) == 2
    # The update did not end, so the endpoint serves what it served before.
    assert updating.serve().ask({"x": 5})["product"] == 10
    assert "PendingDeploymentSummary" not in updating.describe()
    assert failed.describe()["EndpointStatus"] == "Failed"
    assert creating.serve().invoke(b"x")["Body"].read() == b"late"
    for endpoint in (scaled, creating, updating, failed):
        endpoint.delete()
    assert (own_home / "server.log").read_text() == ""
