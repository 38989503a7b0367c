"""Production variants: several instances of one model, and a share of an endpoint's traffic."""

import threading

from local_cloud.errors import ServiceError
from local_cloud.serving import STARTUP_TIMEOUT, NotReady, definitions, make_instance
from local_cloud.store import now

LOG_GROUP = "/aws/sagemaker/Endpoints"


class Variant:
    """The instances that serve one production variant.

    Args:
        definition: a `ProductionVariant` of CreateEndpointConfig.
        model: the record of its model.
        count: number of instances; 1 for a serverless variant.
        weight: its share of the traffic, relative to the other variants'.
    """

    def __init__(self, aws, region, endpoint_name, definition, model, count, weight):
        self.aws, self.region, self.endpoint_name = aws, region, endpoint_name
        self.definition, self.model = definition, model
        self.name = definition["VariantName"]
        self.weight = weight
        self.credit = 0.0  # Of the smooth weighted round robin between variants.
        self.serverless = definition.get("ServerlessConfig")
        self.instances = [self.make_instance() for _ in range(count)]
        self._turn = 0

    def make_instance(self):
        timeout = self.definition.get("ContainerStartupHealthCheckTimeoutInSeconds")
        return make_instance(
            self.aws,
            self.region,
            self.model,
            f"{LOG_GROUP}/{self.endpoint_name}",
            self.name,
            startup_timeout=timeout or STARTUP_TIMEOUT,
            owner=f" for production variant {self.name}",
        )

    def next_instance(self):
        """The next instance that answers, in turn.

        Raises:
            NotReady: all of them are starting again.
            ServiceError: ThrottlingException where a serverless variant is at its concurrency.
        """
        if self.serverless:
            busy = sum(instance.in_flight for instance in self.instances)
            if busy >= self.serverless["MaxConcurrency"]:
                raise ServiceError("ThrottlingException", "Rate exceeded", 429)
        for _ in self.instances:
            self._turn = (self._turn + 1) % len(self.instances)
            if self.instances[self._turn].is_ready:
                return self.instances[self._turn]
        raise NotReady("the model server is starting again")

    def summary(self, status=None):
        """The entry of `ProductionVariants` in DescribeEndpoint.

        Args:
            status: `Creating` or `Updating`, while that is going on.
        """
        images = [d["Image"] for d in definitions(self.model) if d.get("Image")]
        entry = {
            "VariantName": self.name,
            "DeployedImages": [
                {"SpecifiedImage": image, "ResolvedImage": image, "ResolutionTime": now()}
                for image in images
            ],
            "CurrentWeight": self.weight,
            "DesiredWeight": self.weight,
        }
        if self.serverless:
            entry.update(
                CurrentServerlessConfig=self.serverless, DesiredServerlessConfig=self.serverless
            )
        else:
            count = len(self.instances)
            current = 0 if status == "Creating" else count
            entry.update(CurrentInstanceCount=current, DesiredInstanceCount=count)
        if status:
            entry["VariantStatus"] = [{"Status": status, "StartTime": now()}]
        if not images:
            del entry["DeployedImages"]  # The SDK's models refuse empty lists.
        return entry


def choose(variants):
    """The variant whose turn it is, so that n requests are shared out exactly by the weights.

    Smooth weighted round robin, as nginx does it: every variant gains its weight, the richest is
    chosen and pays the sum. None where no variant has a weight.
    """
    weighted = [variant for variant in variants if variant.weight > 0]
    if not weighted:
        return None
    for variant in weighted:
        variant.credit += variant.weight
    chosen = max(weighted, key=lambda variant: variant.credit)
    chosen.credit -= sum(variant.weight for variant in weighted)
    return chosen


def in_parallel(function, items):
    """Call `function` with every item, each in a thread of its own, and wait for all."""
    threads = [threading.Thread(target=function, args=(item,), daemon=True) for item in items]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
