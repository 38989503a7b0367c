"""What a launch costs on AWS, asked of AWS itself, and the yes that it needs."""

import json

from botocore.exceptions import BotoCoreError, ClientError

PRICE_PAGE = "https://aws.amazon.com/sagemaker/ai/pricing/"
PRICE_REGION = "us-east-1"  # The Price List API answers there for all regions.


class NotAgreed(Exception):
    """The reader did not say yes; nothing was started."""


def hourly_price(pricing, instance_type, component, region):
    """On-demand price of an instance in US dollars an hour, or None where AWS names none.

    Args:
        pricing: boto3 client of the AWS Price List API.
        component: "Training", "Processing" or "Hosting".
    """
    filters = {"instanceName": instance_type, "regionCode": region}
    answer = pricing.get_products(
        ServiceCode="AmazonSageMaker",
        Filters=[
            {"Type": "TERM_MATCH", "Field": field, "Value": value}
            for field, value in filters.items()
        ],
    )
    for text in answer["PriceList"]:
        product = json.loads(text)
        attributes = product["product"]["attributes"]
        if component not in (attributes.get("component"), attributes.get("platoinstancetype")):
            continue
        for term in product["terms"].get("OnDemand", {}).values():
            for dimension in term["priceDimensions"].values():
                price = float(dimension["pricePerUnit"].get("USD", 0))
                if dimension["unit"].lower().startswith("h") and price > 0:
                    return price
    return None


def agree(cloud, what, component, instance_type, max_hours, count=1):
    """Name the price of what is about to start and go on only after an explicit yes.

    On this machine it costs nothing, says so and goes on.

    Args:
        what: the launch in plain words, as in "the training job".
        max_hours: the longest that each instance can run, in hours.
        count: number of instances, one after the other or together.

    Raises:
        NotAgreed: the answer was not yes.
    """
    if cloud.is_local:
        print(f"Starting {what} on this machine: no cost.")
        return
    price = price_sentence(cloud, component, instance_type, max_hours, count)
    print(f"About to start {what} on AWS. {price}")
    if input("Type yes to start it: ").strip().lower() != "yes":
        raise NotAgreed(f"{what} was not started.")


def price_sentence(cloud, component, instance_type, max_hours, count):
    """The price of a launch in words, or where to read it if AWS does not say."""
    pricing = cloud.session.boto_session.client("pricing", region_name=PRICE_REGION)
    try:
        price = hourly_price(pricing, instance_type, component, cloud.region)
    except (BotoCoreError, ClientError, KeyError, ValueError):
        price = None
    if price is None:
        return f"The price of {count} × {instance_type} is on {PRICE_PAGE}."
    most = price * max_hours * count
    return (
        f"{count} × {instance_type} at ${price:.3f} an hour in {cloud.region}, "
        f"for {max_hours:g} h at most: ${most:.2f} at most."
    )
