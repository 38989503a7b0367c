"""What a run costs on AWS: before each launch at most, after it by the time that it took.

On AWS the prices are asked of AWS itself, by its Price List API. `prices.json` stands in where that
does not answer. A run on this machine costs nothing; it gets the bill that AWS would write for the
same instances over the time measured here, by the prices in that file.
"""

import json
import math
from dataclasses import dataclass
from datetime import datetime, timezone

import pandas as pd
from botocore.exceptions import BotoCoreError, ClientError

from studio.cloud import ROOT
from studio.usage import usage, usage_of

PRICES = json.loads((ROOT / "studio" / "prices.json").read_text())
PRICE_PAGE = PRICES["page"]
PRICE_REGION = "us-east-1"  # The Price List API answers there for all regions.
BUDGET = 1.00  # US dollars that a run may cost on AWS without a question, unless others are named.
HOURS_A_MONTH = 365 * 24 / 12
DECIMALS = 4  # Of an amount in the bill, so that seconds of a small instance still show.
TOTAL = "total"
HEADINGS = {
    "launch": "launch",
    "component": "charged as",
    "instance": "instance",
    "count": "count",
    "hours": "hours",
    "usd_an_hour": "USD an hour",
    "price_of": "price of",
    "spot": "spot saves",
    "usd": "USD",
}
WORDS = ("launch", "component", "instance", "price_of")
FORMATS = {
    "count": ".0f",
    "hours": ".4f",
    "usd_an_hour": "g",
    "spot": ".0%",
    "usd": f".{DECIMALS}f",
}


class NotAgreed(Exception):
    """The reader did not say yes; nothing was started."""


# ---- prices ----


@dataclass(frozen=True)
class Price:
    """US dollars for one instance and hour on demand, and the day when AWS asked so much."""

    usd: float
    date: str


def price_of(cloud, component, instance_type):
    """The `Price` of an instance where the cloud is, or None where it is not known.

    Args:
        component: "Training", "Processing" or "Hosting".
    """
    if not cloud.is_local:
        pricing = cloud.session.boto_session.client("pricing", region_name=PRICE_REGION)
        try:
            usd = hourly_price(pricing, instance_type, component, cloud.region)
        except (BotoCoreError, ClientError, KeyError, ValueError):
            usd = None
        if usd is not None:
            return Price(usd, datetime.now(timezone.utc).date().isoformat())
        if cloud.region != PRICES["region"]:
            return None
    entry = PRICES["hourly"][component].get(instance_type)
    return entry and Price(entry["usd"], PRICES["sources"][entry["source"]]["date"])


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
        if "TrSpt" in attributes.get("usagetype", ""):  # Managed spot training, not on demand.
            continue
        for term in product["terms"].get("OnDemand", {}).values():
            for dimension in term["priceDimensions"].values():
                price = float(dimension["pricePerUnit"].get("USD", 0))
                if dimension["unit"].lower().startswith("h") and price > 0:
                    return price
    return None


def region_of(cloud):
    """The region whose prices count: for a run on this machine, that of `prices.json`."""
    return PRICES["region"] if cloud.is_local else cloud.region


def money(usd):
    """An amount in words; two dollar signs in a line would be a formula to Jupyter."""
    return f"{usd:.2f} USD" if usd >= 0.1 or usd == 0 else f"{usd:.{DECIMALS}f} USD"


# ---- before a launch ----


def agree(cloud, what, component, instance_type, max_hours, count=1, spot=False, budget=BUDGET):
    """Name the most that a launch can cost on AWS; there, above the budget, go on only after a yes.

    What the run has cost so far counts, too. Where a price is not known, AWS is always asked first.
    On this machine nothing is.

    Args:
        what: the launch in plain words, as in "the training job".
        max_hours: the longest that each instance can run, in hours; of an endpoint, the time that
            it is meant to stay.
        count: number of instances, one after the other or together.
        spot: whether they are managed spot capacity.
        budget: US dollars that the whole run may cost without a question.

    Raises:
        NotAgreed: the answer was not yes.
        ValueError: the budget is no amount of money.
    """
    check_budget(budget)
    price = price_of(cloud, component, instance_type)
    spent = bill(cloud).spent
    known = price is not None and spent is not None
    asks = not known or spent + price.usd * max_hours * count > budget
    here = f"Starting {what} on this machine, at no cost. On AWS:"
    print(
        here if cloud.is_local else f"About to start {what} on AWS:",
        at_most(cloud, price, component, instance_type, max_hours, count, spot),
        against(budget, spent, asks) if known else "How it stands to the budget is not known.",
        sep="\n",
    )
    if cloud.is_local or not asks:
        return
    try:
        answer = input("Type yes to start it: ")
    except (EOFError, NotImplementedError) as error:  # Jupyter's error is one of the latter.
        raise NotAgreed(
            f"{what} was not started: nobody can be asked here. Run the notebook in JupyterLab, or "
            "name a BUDGET that covers it."
        ) from error
    if answer.strip().lower() != "yes":
        raise NotAgreed(f"{what} was not started.")


def check_budget(budget):
    """Raise ValueError unless a budget is a number of US dollars."""
    is_number = isinstance(budget, (int, float)) and not isinstance(budget, bool)
    if not is_number or math.isnan(budget) or budget < 0:
        raise ValueError(f"BUDGET must be a number of US dollars, 0 or more, not {budget!r}.")


def at_most(cloud, price, component, instance_type, max_hours, count, spot):
    """The longest and dearest that a launch can become, in words."""
    instances = f"{count} × {instance_type}"
    if price is None:
        return f"The price of {instances} is on {PRICE_PAGE}."
    asked = f"{instances} at {price.usd:g} USD an hour ({region_of(cloud)}, {price.date})"
    most = money(price.usd * max_hours * count)
    if component == "Hosting":
        return f"{asked}: {most} in {max_hours:g} h, and on until it is deleted."
    less = f", or up to {PRICES['spot']['up_to']:.0%} less on spot capacity" if spot else ""
    return f"{asked}, for {max_hours:g} h at most: {most} at most{less}."


def against(budget, spent, asks):
    """A launch, and what was spent before it, beside the budget."""
    place = "above" if asks else "within"
    return f"With {money(spent)} so far that is {place} the budget of {money(budget)}."


# ---- after it ----


def cost_of(cloud, job):
    """What a job cost, or would have cost, on AWS by the time that it took, as Markdown.

    Args:
        job: description of a training, processing or tuning job, as the API gives it.
    """
    used = usage_of(cloud, job)
    price = price_of(cloud, used.component, used.instance)
    if price is None:
        return (
            f"The price of the {used.launch}, {used.count} × {used.instance}, is on {PRICE_PAGE}."
        )
    line = row(used, price)
    charged = f", charged as {used.billed:,.0f}: spot saves {line['spot']:.0%}" if used.spot else ""
    return (
        f"On AWS the {used.launch} {'would have cost' if cloud.is_local else 'cost'} "
        f"**{money(line['usd'])}**: {used.count} × {used.instance}, {used.seconds:,.0f} s in all"
        f"{charged}, at {price.usd:g} USD an hour ({region_of(cloud)}, {price.date})."
    )


def row(used, price):
    """A line of the bill.

    Args:
        price: a `Price`, or None where it is not known.
    """
    return {
        "launch": used.launch,
        "component": used.component,
        "instance": used.instance,
        "count": used.count,
        "hours": used.seconds / 3600,
        "usd_an_hour": price.usd if price else math.nan,
        "price_of": price.date if price else "",
        "spot": 1 - used.billed / used.seconds if used.spot and used.seconds else math.nan,
        "usd": round(price.usd * used.billed / 3600, DECIMALS) if price else math.nan,
    }


def bill(cloud):
    """The `Bill` of what this run has cost so far, or would have cost, on AWS.

    To be asked for before the clean-up: an endpoint that is gone cannot be found any more.
    """
    used = usage(cloud)
    kinds = {(each.component, each.instance) for each in used}
    prices = {kind: price_of(cloud, *kind) for kind in kinds}
    rows = [row(each, prices[each.component, each.instance]) for each in used]
    known = [each["usd"] for each in rows if not math.isnan(each["usd"])]
    total = dict.fromkeys(HEADINGS, math.nan) | dict.fromkeys(WORDS, "")
    table = Bill([*rows, total | {"launch": TOTAL, "usd": round(sum(known), DECIMALS)}])
    table.attrs = {"local": cloud.is_local, "region": region_of(cloud)}
    return table


class Bill(pd.DataFrame):
    """One row a launch, in the order of their start, and a last one with the total.

    Columns:
        launch, component, instance, count: as in `Usage`.
        hours: of all instances, added up.
        usd_an_hour: price of one instance on demand; NaN where it is not known.
        price_of: the day of that price.
        spot: the share of the price that spot capacity saved; NaN where there was none.
        usd: NaN where the price is not known; the total leaves that out.
    """

    @property
    def spent(self):
        """The total in US dollars, or None where the price of a launch is not known."""
        return None if self["usd"].isna().any() else self["usd"].iloc[-1]

    def _repr_html_(self):
        return self.written().to_html(index=False, border=0, notebook=True)

    def __repr__(self):
        return self.written().to_string(index=False)

    def written(self):
        """The table as text: a dash where a price is not known, nothing where none applies."""
        lines = self.to_dict("records")
        cells = [{h: written(line, column) for column, h in HEADINGS.items()} for line in lines]
        return pd.DataFrame(cells)


def written(line, column):
    """One value of a bill as text."""
    value = line[column]
    if column in WORDS:
        return value
    if math.isnan(value):
        return "–" if column in ("usd_an_hour", "usd") and line["launch"] != TOTAL else ""
    return format(value, FORMATS[column])


def bill_sentence(table):
    """What a `Bill` comes to, by which prices, and what it leaves out, as Markdown."""
    lines = table[table["launch"] != TOTAL]
    saved = (lines["hours"] * lines["usd_an_hour"] * lines["spot"]).sum()
    return " ".join(
        [
            f"On AWS this run {'would have cost' if table.attrs['local'] else 'has cost'} "
            f"**{money(table['usd'].iloc[-1])}**"
            + (f"; spot capacity saved {money(saved)}." if saved else "."),
            *left_out(lines),
            *left_running(lines),
            *measured(table, lines),
            *sources(table, lines),
        ]
    )


def left_out(lines):
    """Names what the total lacks for want of a price."""
    unknown = lines.loc[lines["usd"].isna(), "launch"]
    if len(unknown):
        yield f"Not in it, because the price is not known: {', '.join(unknown)}."


def left_running(lines):
    """Says what the last endpoint comes to if nobody deletes it."""
    endpoints = lines[(lines["component"] == "Hosting") & lines["usd"].notna()]
    if len(endpoints):
        last = endpoints.iloc[-1]
        month = last["count"] * last["usd_an_hour"] * HOURS_A_MONTH
        yield f"The endpoint is charged until it is deleted: **{month:.0f} USD a month**."


def measured(table, lines):
    """Says what a run on this machine cannot know of AWS."""
    if not table.attrs["local"]:
        return
    yield "The hours are those of this machine; the instances named would take others."
    if lines["spot"].notna().any():
        yield (
            "What spot saves is what `local_cloud` assumes: AWS names no rate beforehand, "
            f"only “up to {PRICES['spot']['up_to']:.0%}”."
        )


def sources(table, lines):
    """Names day, region and source of the prices, and what has others."""
    days = sorted(set(lines["price_of"]) - {""})
    if days:
        yield (
            f"Prices: {table.attrs['region']}, on demand, as AWS named them on {', '.join(days)} "
            f"([its page]({PRICE_PAGE}) has those of today)"
            + ("; `studio/prices.json` has the source of each." if table.attrs["local"] else ".")
        )
    yield "Storage and requests come on top."
