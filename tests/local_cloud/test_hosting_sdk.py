"""Hosting through the SageMaker SDK, unmodified: its resources and its ModelBuilder."""

import json
import re

import pytest
from botocore.exceptions import ClientError
from endpoints import Endpoint, multiplier, unique
from harness import ROLE, archive

PYTORCH = "763104351884.dkr.ecr.us-east-1.amazonaws.com/pytorch-inference:2.6.0-cpu-py312"
SERVE = """
import json

def model_fn(model_dir):
    with open(model_dir + "/factor.json") as file:
        return json.load(file)

def transform_fn(model, body, content_type, accept):
    return json.dumps([x * model for x in json.loads(body)]), accept
"""


def make_model(cloud, factor):
    """A model and a configuration of it, by the SDK's resources."""
    from sagemaker.core.resources import EndpointConfig, Model
    from sagemaker.core.shapes import ContainerDefinition, ProductionVariant

    name = unique("sdk")
    uri = cloud.put(f"sdk/{name}/model.tar.gz", multiplier(factor))
    model = Model.create(
        model_name=name,
        primary_container=ContainerDefinition(image="any/image:1", model_data_url=uri),
        execution_role_arn=ROLE,
    )
    variant = ProductionVariant(
        variant_name="AllTraffic",
        model_name=name,
        initial_instance_count=1,
        instance_type="ml.m5.large",
    )
    return model, EndpointConfig.create(endpoint_config_name=name, production_variants=[variant])


def test_resources(cloud, sdk):
    from sagemaker.core.resources import Endpoint as SdkEndpoint
    from sagemaker.core.resources import Model

    def product():
        answer = endpoint.invoke(body=json.dumps({"x": 2}), content_type="application/json")
        return json.loads(answer.body.read())["product"]

    model, config = make_model(cloud, 5)
    name = config.endpoint_config_name
    endpoint = SdkEndpoint.create(endpoint_name=name, endpoint_config_name=name)
    endpoint.wait_for_status("InService", poll=1, timeout=60)
    assert product() == 10
    assert name in [found.endpoint_name for found in SdkEndpoint.get_all()]
    _, other = make_model(cloud, 6)
    endpoint.endpoint_config_name = other.endpoint_config_name  # The SDK's way to say so.
    endpoint.update()
    endpoint.wait_for_status("InService", poll=1, timeout=60)
    assert product() == 12
    endpoint.delete()
    endpoint.wait_for_delete(poll=1, timeout=60)
    config.delete()
    model.delete()
    with pytest.raises(ClientError, match=re.escape(name)):
        Model.get(model_name=name)


def build_from_source(cloud, sdk, tmp_path):
    from sagemaker.core.training.configs import SourceCode
    from sagemaker.serve.model_builder import ModelBuilder

    (tmp_path / "serve.py").write_text(SERVE)
    uri = cloud.put(f"builder/{unique('m')}/model.tar.gz", archive({"factor.json": "7"}))
    return ModelBuilder(
        s3_model_data_url=uri,
        source_code=SourceCode(source_dir=str(tmp_path), entry_script="serve.py"),
        role_arn=ROLE,
        sagemaker_session=sdk,
        image_uri=PYTORCH,
        instance_type="ml.m5.large",
    )


def build_from_spec(cloud, sdk, tmp_path):
    from sagemaker.serve.builder.schema_builder import SchemaBuilder
    from sagemaker.serve.model_builder import ModelBuilder
    from sagemaker.serve.spec.inference_spec import InferenceSpec
    from sagemaker.serve.utils.types import ModelServer

    class Spec(InferenceSpec):
        def load(self, model_dir):
            return 7

        def invoke(self, input_object, model):
            return [x * model for x in input_object]

    return ModelBuilder(
        inference_spec=Spec(),
        schema_builder=SchemaBuilder(sample_input=[1, 2], sample_output=[7, 14]),
        role_arn=ROLE,
        sagemaker_session=sdk,
        image_uri=PYTORCH,
        instance_type="ml.m5.large",
        model_server=ModelServer.TORCHSERVE,
        model_path=str(tmp_path),
        # The SDK looks for them in a process without any environment, so without a region.
        dependencies={"auto": False},
    )


@pytest.mark.parametrize("build", [build_from_source, build_from_spec], ids=["source", "spec"])
def test_model_builder(cloud, sdk, tmp_path, build):
    builder = build(cloud, sdk, tmp_path)
    builder.build(model_name=unique("built"))
    name = unique("built")
    deployed = builder.deploy(endpoint_name=name, initial_instance_count=1, wait=False)
    endpoint = Endpoint(cloud, name=name).serve()
    answer = deployed.invoke(body=json.dumps([1, 2, 3]), content_type="application/json")
    assert json.loads(answer.body.read()) == [7, 14, 21]
    endpoint.delete()
