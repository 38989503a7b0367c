"""The records of jobs, models and endpoints, as the Describe and List calls show them."""

import datetime
import threading
from collections import defaultdict

from local_cloud import ACCOUNT_ID
from local_cloud.errors import ServiceError, invalid

MAX_PAGE = 100  # The service's own limit for MaxResults.


def now():
    """The present moment, in UTC."""
    return datetime.datetime.now(datetime.timezone.utc)


def arn(region, kind, name):
    """The ARN of a SageMaker resource; `kind` as in `training-job`."""
    return f"arn:aws:sagemaker:{region}:{ACCOUNT_ID}:{kind}/{name}"


class Store:
    """Records by kind and name; all methods are safe to call from any thread."""

    def __init__(self):
        self._lock = threading.RLock()
        self._records = defaultdict(dict)
        self._tags = defaultdict(dict)

    def add(self, kind, name, record):
        """Keep a new record; ResourceInUse where the name is taken."""
        with self._lock:
            if name in self._records[kind]:
                known = self._records[kind][name][f"{kind}Arn"]
                raise ServiceError("ResourceInUse", f"{kind} already exists: {known}")
            self._records[kind][name] = record

    def get(self, kind, name):
        """A copy of one record; ValidationException where there is none, as the service does."""
        with self._lock:
            if name not in self._records[kind]:
                raise invalid(f'Could not find {kind} "{name}". Requested resource not found.')
            return dict(self._records[kind][name])

    def has(self, kind, name):
        with self._lock:
            return name in self._records[kind]

    def change(self, kind, name, **fields):
        """Update fields of a record and the time of its last change."""
        with self._lock:
            record = self._records[kind].get(name)
            if record is not None:
                record.update(fields, LastModifiedTime=now())

    def edit(self, kind, name, function):
        """Let `function` change a record in place, alone with it."""
        with self._lock:
            record = self._records[kind].get(name)
            if record is not None:
                function(record)
                record["LastModifiedTime"] = now()

    def remove(self, kind, name):
        with self._lock:
            self.get(kind, name)
            return self._records[kind].pop(name)

    def all(self, kind):
        """Copies of all records of a kind, oldest first."""
        with self._lock:
            return [dict(record) for record in self._records[kind].values()]

    def set_tags(self, resource_arn, tags):
        with self._lock:
            self._tags[resource_arn].update({tag["Key"]: tag["Value"] for tag in tags or []})

    def remove_tags(self, resource_arn, keys):
        with self._lock:
            for key in keys:
                self._tags[resource_arn].pop(key, None)

    def tags(self, resource_arn):
        with self._lock:
            return [{"Key": k, "Value": v} for k, v in self._tags[resource_arn].items()]


def page(records, params, name_field, status_field=None, summary_fields=()):
    """One page of a List call: filtered, sorted and cut as `params` say.

    Returns:
        (summaries, next_token): the token is None on the last page.
    """
    wanted = [r for r in records if matches(r, params, name_field, status_field)]
    by_name = params.get("SortBy") == "Name"
    wanted.sort(key=lambda r: r[name_field] if by_name else r["CreationTime"])
    if params.get("SortOrder", "Ascending" if by_name else "Descending") == "Descending":
        wanted.reverse()
    try:
        first = int(params.get("NextToken") or 0)
    except ValueError:
        raise invalid("Invalid pagination token.") from None
    last = first + min(params.get("MaxResults") or MAX_PAGE, MAX_PAGE)
    summaries = [{f: r[f] for f in summary_fields if f in r} for r in wanted[first:last]]
    return summaries, (str(last) if last < len(wanted) else None)


def matches(record, params, name_field, status_field):
    """Whether a record passes the filters of a List call."""
    created = record["CreationTime"]
    checks = (
        params.get("NameContains", "").lower() in record[name_field].lower(),
        status_field is None or params.get("StatusEquals") in (None, record[status_field]),
        "CreationTimeAfter" not in params or created > moment(params["CreationTimeAfter"]),
        "CreationTimeBefore" not in params or created < moment(params["CreationTimeBefore"]),
    )
    return all(checks)


def moment(value):
    """A time from the wire (seconds since 1970) as a datetime."""
    return datetime.datetime.fromtimestamp(float(value), datetime.timezone.utc)
