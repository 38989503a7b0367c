import json
from types import SimpleNamespace

import boto3
import pytest
from botocore.stub import Stubber

from studio.costs import PRICE_PAGE, NotAgreed, agree, hourly_price

INSTANCE, REGION = "ml.g4dn.xlarge", "eu-west-1"


def product(component, usd, unit="Hrs", terms="OnDemand"):
    """One entry of a Price List answer, in the shape that the API sends (a JSON text)."""
    dimension = {
        "unit": unit,
        "description": f"${usd} per {component} {INSTANCE} hour",
        "beginRange": "0",
        "endRange": "Inf",
        "pricePerUnit": {"USD": usd},
        "appliesTo": [],
    }
    term = {
        "offerTermCode": "JRTCKXETXF",
        "priceDimensions": {"QT8U.JRTCKXETXF.6YS6EN2CT7": dimension},
    }
    attributes = {"instanceName": INSTANCE, "regionCode": REGION, "component": component}
    return json.dumps(
        {
            "product": {
                "productFamily": "ML Instance",
                "sku": "QT8U",
                "attributes": {**attributes, "platoinstancetype": component, "vCpu": "4"},
            },
            "serviceCode": "AmazonSageMaker",
            "terms": {terms: {"QT8U.JRTCKXETXF": term}},
        }
    )


PRODUCTS = [
    product("Hosting", "0.9000000000"),
    product("Training", "0.0000000000"),  # A free tier; not what a launch costs.
    product("Training", "0.5100000000", terms="Reserved"),
    product("Training", "0.0100000000", unit="GB"),
    product("Training", "0.8220000000"),
]


def expect(stub, products):
    """Answer the next request, which must be the one for this instance and region."""
    fields = {"instanceName": INSTANCE, "regionCode": REGION}
    filters = [{"Type": "TERM_MATCH", "Field": k, "Value": v} for k, v in fields.items()]
    request = {"ServiceCode": "AmazonSageMaker", "Filters": filters}
    stub.add_response("get_products", {"PriceList": products}, request)


@pytest.fixture
def pricing():
    """A real client of the Price List API whose answers are written down here."""
    client = boto3.client(
        "pricing", region_name="us-east-1", aws_access_key_id="none", aws_secret_access_key="none"
    )
    with Stubber(client) as stub:
        yield SimpleNamespace(client=client, stub=stub)


@pytest.fixture
def aws(pricing):
    """The parts of a `Cloud` on AWS that the question about costs needs."""
    session = SimpleNamespace(client=lambda service, region_name: pricing.client)
    session = SimpleNamespace(boto_session=session)
    return SimpleNamespace(is_local=False, region=REGION, session=session)


@pytest.fixture
def answering(monkeypatch):
    """Have the reader type this when asked; a second question would fail."""

    def answer(text):
        answers = [text]
        monkeypatch.setattr("builtins.input", lambda question: answers.pop())

    return answer


@pytest.mark.parametrize(("component", "price"), [("Training", 0.822), ("Hosting", 0.9)])
def test_the_price_is_the_on_demand_hour_of_that_component(pricing, component, price):
    expect(pricing.stub, PRODUCTS)
    assert hourly_price(pricing.client, INSTANCE, component, REGION) == price


def test_a_price_that_aws_does_not_name_is_unknown(pricing):
    expect(pricing.stub, PRODUCTS)
    assert hourly_price(pricing.client, INSTANCE, "Processing", REGION) is None


def test_yes_goes_on_after_the_price_was_named(aws, pricing, answering, capsys):
    expect(pricing.stub, PRODUCTS)
    answering(" Yes ")
    agree(aws, "the search", "Training", INSTANCE, max_hours=0.5, count=6)
    assert capsys.readouterr().out == (
        f"About to start the search on AWS. 6 × {INSTANCE} at $0.822 an hour in {REGION}, "
        "for 0.5 h at most: $2.47 at most.\n"
    )


@pytest.mark.parametrize("text", ["", "y", "no", "yes please", "YES!"])
def test_anything_but_yes_starts_nothing(aws, pricing, answering, text):
    expect(pricing.stub, PRODUCTS)
    answering(text)
    with pytest.raises(NotAgreed, match="the search was not started"):
        agree(aws, "the search", "Training", INSTANCE, max_hours=1)


def test_an_unknown_price_names_the_page_and_still_asks(aws, pricing, answering, capsys):
    expect(pricing.stub, [])
    answering("no")
    with pytest.raises(NotAgreed):
        agree(aws, "the endpoint", "Hosting", INSTANCE, max_hours=1)
    assert PRICE_PAGE in capsys.readouterr().out


def test_a_refused_price_request_names_the_page_too(aws, pricing, answering, capsys):
    pricing.stub.add_client_error("get_products", "AccessDeniedException", "not authorized")
    answering("yes")
    agree(aws, "the endpoint", "Hosting", INSTANCE, max_hours=1)
    assert PRICE_PAGE in capsys.readouterr().out


def test_on_this_machine_nothing_is_asked(answering, capsys):
    answering("no")
    agree(SimpleNamespace(is_local=True), "the search", "Training", INSTANCE, max_hours=1)
    assert capsys.readouterr().out == "Starting the search on this machine: no cost.\n"
