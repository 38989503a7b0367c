"""Models, endpoint configurations and endpoints: what the control plane answers about them."""

import sqlite3
import threading

from local_cloud.aws import split_uri
from local_cloud.endpoint import ENDPOINT, Endpoint, pending
from local_cloud.errors import JobFailed, ServiceError, invalid
from local_cloud.images import check_image
from local_cloud.invocation import Runtime
from local_cloud.serving import definitions, model_sources, submitted_code
from local_cloud.store import arn, now, page

MODEL, CONFIG = "Model", "EndpointConfig"
MAX_INSTANCES = 8  # Processes of one endpoint; each may hold a whole model in memory.
IN_PROGRESS = ("Creating", "Updating", "SystemUpdating", "RollingBack")
PRIVATE = "Deployment"  # Field of an endpoint's record: what it is made of.
RETAINED = ("DesiredInstanceCount", "DesiredWeight", "DataCaptureConfig")


class Hosting:
    """The operations on models, endpoint configurations and endpoints."""

    def __init__(self, store, aws):
        self.store, self.aws = store, aws
        self.endpoints = {}
        self._lock = threading.Lock()  # An endpoint's record and its object come and go together.
        self.runtime = Runtime(store, self.endpoints)
        self.operations = {
            "CreateModel": self.create_model,
            "DescribeModel": lambda p, _: self.store.get(MODEL, p["ModelName"]),
            "ListModels": self.list_models,
            "DeleteModel": lambda p, _: self.delete(MODEL, p["ModelName"]),
            "CreateEndpointConfig": self.create_config,
            "DescribeEndpointConfig": lambda p, _: self.store.get(CONFIG, p["EndpointConfigName"]),
            "ListEndpointConfigs": self.list_configs,
            "DeleteEndpointConfig": lambda p, _: self.delete(CONFIG, p["EndpointConfigName"]),
            "CreateEndpoint": self.create_endpoint,
            "DescribeEndpoint": self.describe_endpoint,
            "ListEndpoints": self.list_endpoints,
            "UpdateEndpoint": self.update_endpoint,
            "UpdateEndpointWeightsAndCapacities": self.update_weights,
            "DeleteEndpoint": self.delete_endpoint,
        }

    def keep(self, kind, name, arn_kind, params, region, **fields):
        """Store a new record made of the request and `fields`."""
        resource = arn(region, arn_kind, name)
        record = {key: value for key, value in params.items() if key != "Tags"}
        record.update({f"{kind}Arn": resource, "CreationTime": now(), **fields})
        self.store.add(kind, name, record, params.get("Tags"))
        return {f"{kind}Arn": resource}

    def delete(self, kind, name):
        self.store.remove(kind, name)

    def create_model(self, params, region):
        check_model(params)
        return self.keep(MODEL, params["ModelName"], "model", params, region)

    def create_config(self, params, region):
        check_config(params)
        for variant in params["ProductionVariants"]:
            self.store.get(MODEL, variant["ModelName"])
        name = params["EndpointConfigName"]
        return self.keep(CONFIG, name, "endpoint-config", params, region)

    def create_endpoint(self, params, region):
        name = params["EndpointName"]
        check_deployment_config(params)
        snapshot = self.snapshot(params["EndpointConfigName"])
        shares = initial_shares(snapshot["Config"])
        check_instances(shares)
        endpoint = Endpoint(self.store, self.aws, name, region)
        deployment = endpoint.make_deployment(snapshot, shares)
        kept = {key: value for key, value in params.items() if key != "DeploymentConfig"}
        fields = {**deployment.fields(), "ProductionVariants": deployment.summaries("Creating")}
        fields.update(EndpointStatus="Creating", LastModifiedTime=now())
        with self._lock:
            answer = self.keep(ENDPOINT, name, "endpoint", kept, region, **fields)
            self.endpoints[name] = endpoint
            endpoint.create(deployment)
        return answer

    def snapshot(self, config_name):
        """What an endpoint is made of, as it is now: the configuration and its models."""
        config = self.store.get(CONFIG, config_name)
        names = {variant["ModelName"] for variant in config["ProductionVariants"]}
        return {"Config": config, "Models": {name: self.store.get(MODEL, name) for name in names}}

    def describe_endpoint(self, params, region):
        record = self.store.get(ENDPOINT, params["EndpointName"])
        record.pop(PRIVATE, None)
        return record

    def update_endpoint(self, params, region):
        name = params["EndpointName"]
        check_deployment_config(params)
        record = self.store.get(ENDPOINT, name)
        snapshot = self.snapshot(params["EndpointConfigName"])
        shares = initial_shares(snapshot["Config"])
        if params.get("RetainAllVariantProperties"):
            excluded = params.get("ExcludeRetainedVariantProperties", [])
            kept = set(RETAINED) - {entry["VariantPropertyType"] for entry in excluded}
            retain(snapshot, shares, record, kept)
        check_instances(shares)
        endpoint = self.begin_to_update(record)
        deployment = endpoint.make_deployment(snapshot, shares)
        fields = {"PendingDeploymentSummary": pending(deployment)}
        if "DeploymentConfig" in params:
            fields["LastDeploymentConfig"] = params["DeploymentConfig"]
        self.store.change(ENDPOINT, name, **fields)
        endpoint.update(deployment)
        return {"EndpointArn": record["EndpointArn"]}

    def update_weights(self, params, region):
        record = self.store.get(ENDPOINT, params["EndpointName"])
        shares = wanted_shares(record, params["DesiredWeightsAndCapacities"])
        check_instances(shares)
        endpoint = self.begin_to_update(record)
        for entry in record["ProductionVariants"]:
            count, entry["DesiredWeight"] = shares[entry["VariantName"]]
            if "DesiredInstanceCount" in entry:
                entry["DesiredInstanceCount"] = count
        variants = record["ProductionVariants"]
        self.store.change(ENDPOINT, params["EndpointName"], ProductionVariants=variants)
        endpoint.scale(shares)
        return {"EndpointArn": record["EndpointArn"]}

    def begin_to_update(self, record):
        """Mark an endpoint as updating and return it.

        Raises:
            ServiceError: it is not in service.
        """
        name = record["EndpointName"]
        message = f'Cannot update in-progress endpoint "{record["EndpointArn"]}".'
        if record["EndpointStatus"] == "Failed":
            raise invalid(f"Endpoint {name} is in status Failed; delete it and create it again.")
        refused = (*IN_PROGRESS, "Deleting", "Failed")
        self.store.begin(ENDPOINT, name, "Updating", refused, message)
        return self.endpoints[name]

    def delete_endpoint(self, params, region):
        name = params["EndpointName"]
        message = f"Cannot delete endpoint {name} while it is in status {{status}}."
        refused = ("Updating", "SystemUpdating", "RollingBack", "Deleting")
        with self._lock:
            self.store.begin(ENDPOINT, name, "Deleting", refused, message)
            endpoint = self.endpoints.pop(name, None)
        if endpoint is None:  # It failed before a restart.
            self.forget(name)
        else:
            endpoint.close(lambda: self.forget(name))

    def forget(self, name):
        """Remove the record of an endpoint that has ended, or let it say why that is impossible."""
        try:
            self.store.remove(ENDPOINT, name)
        except sqlite3.Error as error:
            reason = (
                f"local_cloud cannot write to its state folder ({error}): make room there, then "
                "delete the endpoint again."
            )
            self.store.change(ENDPOINT, name, EndpointStatus="Failed", FailureReason=reason)

    def list_models(self, params, region):
        fields = ("ModelName", "ModelArn", "CreationTime")
        return listing("Models", *page(self.store.all(MODEL), params, "ModelName", None, fields))

    def list_configs(self, params, region):
        fields = ("EndpointConfigName", "EndpointConfigArn", "CreationTime")
        records = self.store.all(CONFIG)
        return listing(
            "EndpointConfigs", *page(records, params, "EndpointConfigName", None, fields)
        )

    def list_endpoints(self, params, region):
        fields = ("EndpointName", "EndpointArn", "CreationTime", "LastModifiedTime")
        fields += ("EndpointStatus",)
        names = ("EndpointName", "EndpointStatus")
        return listing("Endpoints", *page(self.store.all(ENDPOINT), params, *names, fields))

    def recover(self):
        """Serve again, after a restart of the server, every endpoint that was not deleted."""
        for record in self.store.all(ENDPOINT):
            name = record["EndpointName"]
            if record["EndpointStatus"] == "Deleting":
                self.forget(name)
            if record["EndpointStatus"] not in ("InService", *IN_PROGRESS):
                continue
            region = record["EndpointArn"].split(":")[3]
            endpoint = Endpoint(self.store, self.aws, name, region)
            shares = {v["VariantName"]: present_share(v) for v in record["ProductionVariants"]}
            self.endpoints[name] = endpoint
            self.store.change(ENDPOINT, name, EndpointStatus="Creating")
            endpoint.create(endpoint.make_deployment(record[PRIVATE], shares))


def listing(name, summaries, token):
    return {name: summaries, **({"NextToken": token} if token else {})}


def check_model(params):
    """Refuse, before it is created, a model that could not be served here."""
    if ("PrimaryContainer" in params) == bool(params.get("Containers")):
        raise invalid("A model has either a PrimaryContainer or Containers.")
    containers = definitions(params)
    for definition in containers:
        check_container(definition)
    mode = params.get("InferenceExecutionConfig", {}).get("Mode")
    names = [definition.get("ContainerHostname") for definition in containers]
    if mode == "Direct" and (None in names or len(set(names)) < len(names)):
        raise invalid("In the mode Direct every container needs a ContainerHostname of its own.")


def check_container(definition):
    """Refuse a container that is an image and nothing more, or that needs another service."""
    if definition.get("Mode") == "MultiModel":
        raise invalid("local_cloud does not serve multi-model containers (Mode MultiModel).")
    if "ModelPackageName" in definition:
        raise invalid("local_cloud has no model registry: name the model data of the package.")
    check_image(definition.get("Image", ""), brings_code=True, needs="")
    if not model_sources(definition) and not submitted_code(definition):
        raise invalid(
            "local_cloud runs scripts, not images: a container needs ModelDataUrl, ModelDataSource "
            "or code in the s3:// address SAGEMAKER_SUBMIT_DIRECTORY."
        )
    for source, _ in model_sources(definition):
        if source["S3DataType"] == "S3Prefix" and not source["S3Uri"].endswith("/"):
            raise invalid(
                f"The S3Uri of an S3Prefix must end with '/'; {source['S3Uri']!r} does not."
            )


def check_config(params):
    """Refuse an endpoint configuration that could not be carried out here."""
    for field in ("ShadowProductionVariants", "ExplainerConfig"):
        if params.get(field):
            raise invalid(f"local_cloud does not offer {field}.")
    variants = params["ProductionVariants"]
    names = [variant["VariantName"] for variant in variants]
    if len(set(names)) < len(names):
        raise invalid("Every production variant needs a name of its own.")
    for variant in variants:
        check_variant(variant)
    if params.get("AsyncInferenceConfig"):
        check_async(params["AsyncInferenceConfig"], variants)
    if params.get("DataCaptureConfig"):
        check_bucket(params["DataCaptureConfig"]["DestinationS3Uri"], "DestinationS3Uri")


def check_variant(variant):
    name = variant["VariantName"]
    if "ModelName" not in variant:
        raise invalid(f"Variant {name}: local_cloud does not offer inference components.")
    if "ServerlessConfig" in variant:
        if variant["ServerlessConfig"]["MemorySizeInMB"] % 1024:
            raise invalid(f"Variant {name}: MemorySizeInMB must be a multiple of 1024.")
        if "InstanceType" in variant or "InitialInstanceCount" in variant:
            raise invalid(f"Variant {name} is serverless and must not name any instances.")
    elif "InstanceType" not in variant or "InitialInstanceCount" not in variant:
        raise invalid(f"Variant {name} needs InstanceType and InitialInstanceCount.")


def check_async(config, variants):
    output = config["OutputConfig"]
    if "S3OutputPath" not in output:
        raise invalid("AsyncInferenceConfig needs an S3OutputPath.")
    check_bucket(output["S3OutputPath"], "S3OutputPath")
    if "S3FailurePath" in output:
        check_bucket(output["S3FailurePath"], "S3FailurePath")
    if len(variants) > 1 or "ServerlessConfig" in variants[0]:
        raise invalid("An asynchronous endpoint has one production variant, with instances.")


def check_bucket(uri, field):
    try:
        split_uri(uri)
    except JobFailed:
        raise invalid(f"{field} must be an s3:// address; {uri!r} is not.") from None


def check_deployment_config(params):
    """Refuse update policies that shift traffic step by step: here it shifts all at once."""
    config = params.get("DeploymentConfig", {})
    policy = config.get("BlueGreenUpdatePolicy", {}).get("TrafficRoutingConfiguration", {})
    if "RollingUpdatePolicy" in config or policy.get("Type", "ALL_AT_ONCE") != "ALL_AT_ONCE":
        raise invalid("local_cloud shifts the traffic of an endpoint ALL_AT_ONCE only.")
    if config.get("AutoRollbackConfiguration", {}).get("Alarms"):
        raise invalid("local_cloud has no CloudWatch alarms that could roll back an update.")


def initial_shares(config):
    """{variant name: (number of instances, weight)} of a new endpoint."""
    return {
        variant["VariantName"]: (
            variant.get("InitialInstanceCount", 1),
            variant.get("InitialVariantWeight", 1.0),
        )
        for variant in config["ProductionVariants"]
    }


def present_share(variant):
    """Number of instances and weight of an entry of DescribeEndpoint's `ProductionVariants`."""
    return variant.get("DesiredInstanceCount", 1), variant["DesiredWeight"]


def wanted_shares(record, wanted):
    """The shares of an endpoint's variants after a change of some of them.

    Args:
        record: the endpoint's record.
        wanted: `DesiredWeightsAndCapacities`.
    """
    entries = {entry["VariantName"]: entry for entry in record["ProductionVariants"]}
    shares = {name: present_share(entry) for name, entry in entries.items()}
    for desired in wanted:
        name = desired["VariantName"]
        if name not in entries:
            raise invalid(f'Could not find variant "{name}".')
        if "ServerlessUpdateConfig" in desired or (
            "DesiredInstanceCount" in desired and "DesiredInstanceCount" not in entries[name]
        ):
            raise invalid("local_cloud does not change the capacity of serverless variants.")
        count, weight = shares[name]
        count = desired.get("DesiredInstanceCount", count)
        if count < 1:
            raise invalid("DesiredInstanceCount must be at least 1.")
        shares[name] = (count, desired.get("DesiredWeight", weight))
    return shares


def check_instances(shares):
    wanted = sum(count for count, _ in shares.values())
    if wanted > MAX_INSTANCES:
        raise ServiceError(
            "ResourceLimitExceeded",
            f"The limit of local_cloud is {MAX_INSTANCES} instances an endpoint, each a process "
            f"with the whole model; {wanted} were asked for.",
        )


def retain(snapshot, shares, record, kept):
    """Carry properties of a live endpoint over to its next deployment, in place.

    Args:
        snapshot, shares: of the next deployment.
        record: the endpoint's record.
        kept: names of `RETAINED`.
    """
    for variant in record["ProductionVariants"]:
        name = variant["VariantName"]
        if name not in shares:
            continue
        count, weight = shares[name]
        old_count, old_weight = present_share(variant)
        shares[name] = (
            old_count if "DesiredInstanceCount" in kept else count,
            old_weight if "DesiredWeight" in kept else weight,
        )
    capture = record[PRIVATE]["Config"].get("DataCaptureConfig")
    if "DataCaptureConfig" in kept and capture:
        snapshot["Config"]["DataCaptureConfig"] = capture
