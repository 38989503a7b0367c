"""Prices, the question before a launch, and the bill of jobs that really ran."""

import dataclasses
import datetime
import json
import time
from types import SimpleNamespace

import boto3
import pytest
from botocore.config import Config
from botocore.stub import Stubber
from IPython.core.error import StdinNotImplementedError
from sagemaker.core.common_utils import name_from_base
from sagemaker.train.utils import _get_unique_name
from tiny_jobs import (
    create_config,
    echo_model,
    start_endpoint,
    start_processing,
    start_training,
    start_tuning,
)

from studio import cloud as clouds
from studio.costs import (
    BUDGET,
    PRICE_PAGE,
    PRICES,
    NotAgreed,
    agree,
    bill,
    bill_sentence,
    cost_of,
    hourly_price,
    price_of,
)
from studio.jobs import JobFailed, follow, follow_tuning, wait_for_endpoint
from studio.usage import named

INSTANCE, REGION = "ml.g4dn.xlarge", "eu-west-1"
RUN = "course-261128-010203"
SPOT = {
    "EnableManagedSpotTraining": True,
    "StoppingCondition": {"MaxRuntimeInSeconds": 60, "MaxWaitTimeInSeconds": 60},
}


# ---- the table of prices ----


def test_every_price_of_the_table_is_dated_and_has_a_source():
    for source in PRICES["sources"].values():
        assert datetime.date.fromisoformat(source["date"]) <= datetime.date.today()
        assert source["address"].startswith("https://")
        assert source["read"]
    assert datetime.date.fromisoformat(PRICES["date"]) >= max(
        datetime.date.fromisoformat(source["date"]) for source in PRICES["sources"].values()
    )
    assert PRICES["currency"] == "USD"
    used = set()
    for instances in PRICES["hourly"].values():
        for instance, entry in instances.items():
            assert instance.startswith("ml.")
            assert 0 < entry["usd"] < 100
            used.add(entry["source"])
    assert used == set(PRICES["sources"])


def test_every_instance_that_the_course_starts_is_in_the_table():
    assert set(PRICES["hourly"]) == {"Training", "Processing", "Hosting"}
    assert clouds.TRAINING_INSTANCE in PRICES["hourly"]["Training"]
    assert clouds.PROCESSING_INSTANCE in PRICES["hourly"]["Processing"]
    assert clouds.HOSTING_INSTANCE in PRICES["hourly"]["Hosting"]


def test_more_of_the_same_machine_costs_more():
    size = {"medium": 1, "large": 2, "xlarge": 4, "2xlarge": 8, "4xlarge": 16, "12xlarge": 48}
    for instances in PRICES["hourly"].values():
        families = {}
        for instance, entry in instances.items():
            _, family, which = instance.split(".")
            families.setdefault(family, []).append((size[which], entry["usd"]))
        for entries in families.values():
            assert sorted(entries) == sorted(entries, key=lambda entry: entry[1])


# ---- what AWS answers ----


def product(component, usd, unit="Hrs", terms="OnDemand", kind="Train"):
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
    attributes["usagetype"] = f"EU-{kind}:{INSTANCE}"
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
    product("Training", "0.2500000000", kind="TrSpt"),  # Managed spot training.
    product("Training", "0.8220000000"),
]


def expect(stub, products):
    """Answer the next request, which must be the one for this instance and region."""
    fields = {"instanceName": INSTANCE, "regionCode": REGION}
    filters = [{"Type": "TERM_MATCH", "Field": k, "Value": v} for k, v in fields.items()]
    request = {"ServiceCode": "AmazonSageMaker", "Filters": filters}
    stub.add_response("get_products", {"PriceList": products}, request)


def pricing_client(**options):
    """A real client of the Price List API, with credentials that no account has."""
    return boto3.client(
        "pricing",
        region_name="us-east-1",
        aws_access_key_id="none",
        aws_secret_access_key="none",
        **options,
    )


@pytest.fixture
def pricing():
    """Such a client whose answers are written down here."""
    client = pricing_client()
    with Stubber(client) as stub:
        yield SimpleNamespace(client=client, stub=stub)


def as_aws(cloud, pricing, region):
    """The local cloud in the guise of AWS: all of it is real but what the Price List API says."""
    services = cloud.session.boto_session

    def client(service, region_name=None):
        return pricing if service == "pricing" else services.client(service)

    session = SimpleNamespace(boto_session=SimpleNamespace(client=client))
    return dataclasses.replace(cloud, where="aws", session=session, region=region)


@pytest.fixture
def aws(cloud, pricing):
    """A run on AWS that has not started anything yet."""
    fresh = dataclasses.replace(cloud, run="course-991231-235959")
    return as_aws(fresh, pricing.client, REGION)


@pytest.fixture(scope="module")
def silent_aws(cloud):
    """AWS, in the region of the table, where the Price List API cannot be reached."""
    closed = pricing_client(
        endpoint_url="http://127.0.0.1:9", config=Config(retries={"total_max_attempts": 1})
    )
    return as_aws(cloud, closed, PRICES["region"])


@pytest.fixture
def answering(monkeypatch):
    """Have the reader type this when asked; a second question would fail."""

    def answer(*texts):
        answers = list(texts)
        monkeypatch.setattr("builtins.input", lambda question: answers.pop())

    return answer


@pytest.mark.parametrize(("component", "price"), [("Training", 0.822), ("Hosting", 0.9)])
def test_the_price_is_the_on_demand_hour_of_that_component(pricing, component, price):
    expect(pricing.stub, PRODUCTS)
    assert hourly_price(pricing.client, INSTANCE, component, REGION) == price


def test_a_price_that_aws_does_not_name_is_unknown(pricing):
    expect(pricing.stub, PRODUCTS)
    assert hourly_price(pricing.client, INSTANCE, "Processing", REGION) is None


def test_aws_is_asked_before_the_table(aws, pricing):
    expect(pricing.stub, PRODUCTS)
    price = price_of(aws, "Training", INSTANCE)
    assert price.usd == 0.822
    assert price.date == datetime.datetime.now(datetime.timezone.utc).date().isoformat()


def test_where_aws_does_not_answer_the_table_stands_in_for_its_own_region_only(silent_aws):
    price = price_of(silent_aws, "Training", INSTANCE)
    assert price.usd == PRICES["hourly"]["Training"][INSTANCE]["usd"]
    assert price.date < PRICES["date"]
    assert price_of(dataclasses.replace(silent_aws, region=REGION), "Training", INSTANCE) is None


# ---- the question ----


def test_above_the_budget_yes_goes_on_after_the_price_was_named(aws, pricing, answering, capsys):
    expect(pricing.stub, PRODUCTS)
    answering(" Yes ")
    agree(aws, "the search", "Training", INSTANCE, max_hours=0.5, count=6, budget=2.46)
    today = datetime.datetime.now(datetime.timezone.utc).date()
    assert capsys.readouterr().out.splitlines() == [
        "About to start the search on AWS:",
        f"6 × {INSTANCE} at 0.822 USD an hour ({REGION}, {today}), for 0.5 h at most: "
        "2.47 USD at most.",
        "With 0.00 USD so far that is above the budget of 2.46 USD.",
    ]


def test_within_the_budget_nothing_is_asked(aws, pricing, answering, capsys):
    expect(pricing.stub, PRODUCTS)
    answering()
    agree(aws, "the search", "Training", INSTANCE, max_hours=0.5, count=6, budget=2.47)
    assert "is within the budget of 2.47 USD" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["", "y", "no", "yes please", "YES!"])
def test_anything_but_yes_starts_nothing(aws, pricing, answering, text):
    expect(pricing.stub, PRODUCTS)
    answering(text)
    with pytest.raises(NotAgreed, match="the search was not started"):
        agree(aws, "the search", "Training", INSTANCE, max_hours=2)


@pytest.mark.parametrize("error", [EOFError, StdinNotImplementedError])
def test_where_nobody_can_be_asked_nothing_starts_and_the_way_out_is_named(
    aws, pricing, monkeypatch, error
):
    def nobody(question):
        raise error

    expect(pricing.stub, PRODUCTS)
    monkeypatch.setattr("builtins.input", nobody)
    with pytest.raises(NotAgreed, match="nobody can be asked here"):
        agree(aws, "the search", "Training", INSTANCE, max_hours=2)


def test_a_budget_of_nothing_always_asks(aws, pricing, answering):
    expect(pricing.stub, PRODUCTS)
    answering("no")
    with pytest.raises(NotAgreed):
        agree(aws, "a second", "Training", INSTANCE, max_hours=1 / 3600, budget=0)


def test_an_unknown_price_names_the_page_and_asks_whatever_the_budget(
    aws, pricing, answering, capsys
):
    expect(pricing.stub, [])
    answering("no")
    with pytest.raises(NotAgreed):
        agree(aws, "the endpoint", "Hosting", INSTANCE, max_hours=1, budget=1000)
    printed = capsys.readouterr().out
    assert PRICE_PAGE in printed
    assert "How it stands to the budget is not known." in printed


def test_a_refused_price_request_names_the_page_too(aws, pricing, answering, capsys):
    pricing.stub.add_client_error("get_products", "AccessDeniedException", "not authorized")
    answering("yes")
    agree(aws, "the endpoint", "Hosting", INSTANCE, max_hours=1)
    assert PRICE_PAGE in capsys.readouterr().out


def test_spot_names_the_full_price_as_the_most(aws, pricing, answering, capsys):
    expect(pricing.stub, PRODUCTS)
    answering("no")
    with pytest.raises(NotAgreed):
        agree(aws, "the training", "Training", INSTANCE, max_hours=10, spot=True, budget=8)
    assert "8.22 USD at most, or up to 90% less on spot capacity." in capsys.readouterr().out


def test_an_endpoint_has_no_longest_time(aws, pricing, answering, capsys):
    expect(pricing.stub, PRODUCTS)
    answering()
    agree(aws, "the endpoint", "Hosting", INSTANCE, max_hours=2, count=3, budget=5.4)
    assert "5.40 USD in 2 h, and on until it is deleted." in capsys.readouterr().out


@pytest.mark.parametrize("budget", [-0.01, "1.00", None, True, float("nan")])
def test_a_budget_that_is_no_amount_is_refused_in_a_sentence(aws, budget):
    with pytest.raises(ValueError, match=r"^BUDGET must be a number of US dollars, 0 or more, not"):
        agree(aws, "the search", "Training", INSTANCE, max_hours=1, budget=budget)


@pytest.mark.parametrize(("hours", "place"), [(1, "within"), (2, "above")])
def test_on_this_machine_the_price_is_named_and_nothing_asked(
    cloud, answering, capsys, hours, place
):
    answering()
    fresh = dataclasses.replace(cloud, run="course-991231-235959")
    agree(fresh, "the search", "Training", INSTANCE, max_hours=hours)
    entry = PRICES["hourly"]["Training"][INSTANCE]
    first, second, third = capsys.readouterr().out.splitlines()
    assert first == "Starting the search on this machine, at no cost. On AWS:"
    assert f"1 × {INSTANCE} at {entry['usd']} USD an hour (us-east-1, 2026-" in second
    assert third == f"With 0.00 USD so far that is {place} the budget of {BUDGET:.2f} USD."


# ---- the bill of a run ----


@dataclasses.dataclass
class Run:
    """What ran, by the descriptions that the API gave at its end."""

    cloud: object
    jobs: dict
    bill: object
    seconds: float  # From before the endpoint was made until the bill.

    def line(self, launch):
        (line,) = self.bill[self.bill["launch"] == launch].to_dict("records")
        return line


def launch_all(cloud):
    """One launch of every kind; return the descriptions of the jobs by a word of our own."""
    client = cloud.client("sagemaker")
    two = {"InstanceType": "ml.g5.2xlarge", "InstanceCount": 2, "VolumeSizeInGB": 1}
    names = {
        "spot": start_training(cloud, "spot-20261128010203", "sleep 4", ResourceConfig=two, **SPOT),
        "plain": start_training(cloud, "plain", "sleep 2"),
        "failed": start_training(cloud, "wrong", "sleep 1; exit 3"),
        "stopped": start_training(cloud, "long", "sleep 60"),
    }
    processing = start_processing(cloud, "evaluate-2026-11-28-01-02-03-456", "sleep 2", count=2)
    search = start_tuning(cloud, "261128-0102", limit=1, trials=3)
    follow_tuning(cloud, search)
    time.sleep(1)
    client.stop_training_job(TrainingJobName=names["stopped"])
    with pytest.raises(JobFailed):
        follow(cloud, names["failed"])
    jobs = {word: client.describe_training_job(TrainingJobName=names["failed"]) for word in names}
    jobs |= {word: follow(cloud, names[word]) for word in ("spot", "plain", "stopped")}
    jobs["processing"] = follow(cloud, processing, kind="ProcessingJob")
    jobs["search"] = client.describe_hyper_parameter_tuning_job(HyperParameterTuningJobName=search)
    return jobs


@pytest.fixture(scope="module")
def run(cloud):
    jobs = launch_all(cloud)
    began = time.monotonic()
    wait_for_endpoint(cloud, start_endpoint(cloud, "page", echo_model(cloud), {"ml.m5.large": 2}))
    time.sleep(1)
    table = bill(cloud)
    return Run(cloud, jobs, table, time.monotonic() - began)


def usd(component, instance, seconds):
    return seconds / 3600 * PRICES["hourly"][component][instance]["usd"]


def test_the_bill_has_a_row_for_every_launch_and_none_for_a_trial(run):
    assert set(run.bill["launch"]) == {
        "training job “spot”",
        "training job “plain”",
        "training job “wrong”, failed",
        "training job “long”, stopped",
        "search (3 trials)",
        "processing job “evaluate”",
        "endpoint “page”",
        "total",
    }
    assert run.bill["launch"].is_unique
    in_order = run.bill["launch"].tolist()
    assert (in_order[0], *in_order[-2:]) == ("training job “spot”", "endpoint “page”", "total")


@pytest.mark.parametrize(
    ("stamped", "part"),
    [
        pytest.param(_get_unique_name, "batch-512", id="ModelTrainer"),
        pytest.param(name_from_base, "report-16", id="processor"),
        pytest.param(str, "batch-1024", id="no stamp"),
    ],
)
def test_a_launch_keeps_the_numbers_of_its_own_name(stamped, part):
    name = stamped(f"{RUN}-{part}")
    assert named("job", SimpleNamespace(run=RUN), name, "Completed") == f"job “{part}”"


def test_a_spot_training_pays_for_its_billable_time_on_every_instance(run):
    job, line = run.jobs["spot"], run.line("training job “spot”")
    billed, worked = job["BillableTimeInSeconds"], job["TrainingTimeInSeconds"]
    assert billed < worked
    assert line["count"] == 2
    assert line["hours"] == pytest.approx(2 * worked / 3600)
    assert line["spot"] == pytest.approx(1 - billed / worked)
    assert line["usd"] == pytest.approx(usd("Training", "ml.g5.2xlarge", 2 * billed), abs=5e-5)
    assert line["usd"] > 0
    without = line["hours"] * line["usd_an_hour"]
    assert line["usd"] == pytest.approx(without * (1 - line["spot"]), abs=5e-5)


@pytest.mark.parametrize(
    ("word", "launch"),
    [
        ("plain", "training job “plain”"),
        ("failed", "training job “wrong”, failed"),
        ("stopped", "training job “long”, stopped"),
    ],
)
def test_a_training_pays_for_its_time_however_it_ended(run, word, launch):
    job, line = run.jobs[word], run.line(launch)
    assert job["BillableTimeInSeconds"] >= 1
    assert line["hours"] == pytest.approx(job["BillableTimeInSeconds"] / 3600)
    assert line["usd_an_hour"] == PRICES["hourly"]["Training"]["ml.m5.large"]["usd"]
    assert line["spot"] != line["spot"]


def test_a_search_pays_for_all_its_trials(run):
    client, line = run.cloud.client("sagemaker"), run.line("search (3 trials)")
    name = run.jobs["search"]["HyperParameterTuningJobName"]
    summaries = client.list_training_jobs_for_hyper_parameter_tuning_job(
        HyperParameterTuningJobName=name
    )["TrainingJobSummaries"]
    trials = [
        client.describe_training_job(TrainingJobName=each["TrainingJobName"]) for each in summaries
    ]
    assert len(trials) == line["count"] == 3
    seconds = sum(trial["BillableTimeInSeconds"] for trial in trials)
    assert line["hours"] == pytest.approx(seconds / 3600)


def test_a_processing_job_pays_from_start_to_end_on_every_instance(run):
    job, line = run.jobs["processing"], run.line("processing job “evaluate”")
    seconds = (job["ProcessingEndTime"] - job["ProcessingStartTime"]).total_seconds()
    assert seconds >= 2
    assert line["component"] == "Processing"
    assert line["count"] == 2
    assert line["hours"] == pytest.approx(2 * seconds / 3600)
    assert line["usd"] == pytest.approx(usd("Processing", "ml.m5.large", 2 * seconds), abs=5e-5)


def test_an_endpoint_pays_for_every_instance_since_its_creation(run):
    line = run.line("endpoint “page”")
    assert line["component"] == "Hosting"
    assert line["count"] == 2
    assert 2 * 1 < line["hours"] * 3600 <= 2 * run.seconds
    assert line["usd"] == pytest.approx(
        usd("Hosting", "ml.m5.large", line["hours"] * 3600), abs=5e-5
    )


def test_the_total_is_the_sum_of_the_rows_as_they_are_shown(run):
    shown = run.bill.written()["USD"].astype(float)
    assert shown.iloc[-1] == pytest.approx(shown.iloc[:-1].sum(), abs=1e-9)
    assert run.bill.spent == run.bill["usd"].iloc[-1] == shown.iloc[-1] > 0
    for text in (repr(run.bill), run.bill._repr_html_()):
        assert f"{shown.iloc[-1]:.4f}" in text
        assert "nan" not in text.lower()
        assert "–" not in text


def test_the_sentence_says_total_saving_prices_and_what_it_cannot_know(run):
    sentence = bill_sentence(run.bill)
    line = run.line("training job “spot”")
    saved = line["hours"] * line["usd_an_hour"] * line["spot"]
    assert f"this run would have cost **{run.bill.spent:.4f} USD**" in sentence
    assert f"spot capacity saved {saved:.4f} USD." in sentence
    month = 2 * PRICES["hourly"]["Hosting"]["ml.m5.large"]["usd"] * 730
    assert f"**{month:.0f} USD a month**" in sentence
    assert (
        "us-east-1, on demand, as AWS named them on 2026-07-30, 2026-08-11, 2026-08-20" in sentence
    )
    assert PRICE_PAGE in sentence
    assert "The hours are those of this machine" in sentence
    assert "Not in it" not in sentence
    assert "$" not in sentence


def test_the_bill_of_aws_says_what_it_has_cost(run, silent_aws):
    table = bill(silent_aws)
    jobs = run.bill["launch"].str.contains("job|search")
    assert table["usd"][jobs].tolist() == run.bill["usd"][jobs].tolist()
    assert "On AWS this run has cost" in bill_sentence(table)
    assert "of this machine" not in bill_sentence(table)


def test_a_sentence_for_every_kind_of_job(run):
    job = run.jobs["spot"]
    billed, worked = 2 * job["BillableTimeInSeconds"], 2 * job["TrainingTimeInSeconds"]
    price = PRICES["hourly"]["Training"]["ml.g5.2xlarge"]["usd"]
    assert cost_of(run.cloud, job) == (
        f"On AWS the training job “spot” would have cost "
        f"**{usd('Training', 'ml.g5.2xlarge', billed):.4f} USD**: 2 × ml.g5.2xlarge, {worked} s in "
        f"all, charged as {billed}: spot saves {1 - billed / worked:.0%}, at {price} USD an hour "
        f"(us-east-1, 2026-08-20)."
    )
    search = cost_of(run.cloud, run.jobs["search"])
    assert "the search (3 trials) would have cost" in search
    assert "3 × ml.m5.large" in search
    assert "spot" not in search
    processing = cost_of(run.cloud, run.jobs["processing"])
    assert "the processing job “evaluate” would have cost" in processing
    assert "at 0.115 USD an hour (us-east-1, 2026-07-30)" in processing


def test_the_question_counts_what_the_run_has_cost_so_far(run, silent_aws, answering):
    hour = PRICES["hourly"]["Training"][INSTANCE]["usd"]
    answering("no")
    # Enough for this launch alone, but not for it and what was spent before.
    with pytest.raises(NotAgreed):
        agree(silent_aws, "one more", "Training", INSTANCE, max_hours=1, budget=hour)
    answering()
    agree(silent_aws, "one more", "Training", INSTANCE, max_hours=1, budget=hour + 1)


def test_a_job_without_a_price_is_a_dash_is_named_and_makes_aws_ask(cloud, silent_aws, answering):
    other = {"run": "course-991231-000001"}
    here, there = (dataclasses.replace(each, **other) for each in (cloud, silent_aws))
    odd = {"InstanceType": "ml.m4.xlarge", "InstanceCount": 1, "VolumeSizeInGB": 1}
    job = follow(here, start_training(here, "odd", "true", ResourceConfig=odd))
    follow(here, start_training(here, "even", "true"))
    table = bill(here)
    written = table.written().set_index("launch")
    assert written.loc["training job “odd”", ["USD an hour", "USD"]].tolist() == ["–", "–"]
    assert written.loc["training job “odd”", "price of"] == ""
    assert table["usd"].iloc[-1] == table.set_index("launch")["usd"]["training job “even”"]
    assert table.spent is None
    assert "Not in it, because the price is not known: training job “odd”." in bill_sentence(table)
    assert PRICE_PAGE in cost_of(here, job)
    answering("no")
    with pytest.raises(NotAgreed):
        agree(there, "one more", "Training", INSTANCE, max_hours=0.01, budget=1000)


def test_a_run_that_started_nothing_has_a_bill_of_nothing(cloud):
    table = bill(dataclasses.replace(cloud, run="course-991231-000002"))
    assert table["launch"].tolist() == ["total"]
    assert table.spent == 0
    assert "**0.00 USD**" in bill_sentence(table)


def test_an_updated_endpoint_pays_for_the_instances_that_it_had(cloud):
    here = dataclasses.replace(cloud, run="course-991231-000003")
    client, model, began = here.client("sagemaker"), echo_model(here), time.monotonic()
    name = start_endpoint(here, "candidates", model, {"ml.m5.large": 1, "ml.m5.xlarge": 2})
    started = time.monotonic()
    wait_for_endpoint(here, name)
    time.sleep(1)
    chosen = create_config(here, "chosen", model, {"ml.m5.large": 1})
    client.update_endpoint(EndpointName=name, EndpointConfigName=chosen)
    wait_for_endpoint(here, name)
    updated = time.monotonic() - began
    first, between = bill(here), time.monotonic()
    time.sleep(2)
    asked = time.monotonic()
    second = bill(here)
    keys = [("endpoint “candidates”", "ml.m5.large"), ("endpoint “candidates”", "ml.m5.xlarge")]
    keys += [("endpoint “chosen”", "ml.m5.large"), ("total", "")]
    hours = [table.set_index(["launch", "instance"])["hours"] for table in (first, second)]
    assert set(hours[0].index) == set(hours[1].index) == set(keys)
    # What was replaced is paid for no longer; what serves now, is.
    assert hours[1][keys[0]] == hours[0][keys[0]]
    assert hours[1][keys[2]] - hours[0][keys[2]] >= (asked - between) / 3600 >= 2 / 3600
    assert hours[0][keys[1]] == pytest.approx(2 * hours[0][keys[0]])
    assert 1 / 3600 < hours[0][keys[0]] <= updated / 3600
    # Side by side for a moment, while one took over from the other.
    assert hours[1][keys[0]] + hours[1][keys[2]] >= (asked - started) / 3600


def test_an_endpoint_that_outlives_its_configuration_is_not_forgotten(cloud):
    here = dataclasses.replace(cloud, run="course-991231-000004")
    name = start_endpoint(here, "page", echo_model(here))
    wait_for_endpoint(here, name)
    here.client("sagemaker").delete_endpoint_config(EndpointConfigName=name)
    table = bill(here)
    assert table["launch"].tolist() == ["endpoint “page”", "total"]
    assert table["instance"].iloc[0] == "type not known"
    assert table.spent is None
