"""The records of jobs, models and endpoints, as the Describe and List calls show them."""

import copy
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
            return copy.deepcopy(self._records[kind][name])

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

    def begin(self, kind, name, status, refused, message):
        """Move a record to a transitional status, unless it is in one that forbids it.

        Args:
            status: the new status, such as `Stopping`.
            refused: the statuses in which the request comes too late.
            message: says why the request is refused; `{status}` stands for the present one.

        Raises:
            ServiceError: there is no such record, or it is in one of `refused`.
        """
        with self._lock:
            present = self.get(kind, name)[f"{kind}Status"]
            if present in refused:
                raise invalid(message.format(status=present))
            self.change(kind, name, **{f"{kind}Status": status})

    def remove(self, kind, name):
        with self._lock:
            self.get(kind, name)
            return self._records[kind].pop(name)

    def all(self, kind):
        """Copies of all records of a kind, oldest first."""
        with self._lock:
            return copy.deepcopy(list(self._records[kind].values()))

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
    wanted, token = cut(wanted, params)
    return [{f: r[f] for f in summary_fields if f in r} for r in wanted], token


def cut(records, params):
    """The part of sorted records that a List call asks for, and the token of the next part."""
    token = params.get("NextToken") or "0"
    if not token.isdecimal():
        raise invalid("Invalid pagination token.")
    first = int(token)
    last = first + min(params.get("MaxResults") or MAX_PAGE, MAX_PAGE)
    return records[first:last], (str(last) if last < len(records) else None)


def matches(record, params, name_field, status_field):
    """Whether a record passes the filters of a List call."""
    if params.get("NameContains", "").lower() not in record[name_field].lower():
        return False
    if status_field and params.get("StatusEquals") not in (None, record[status_field]):
        return False
    for field in ("CreationTime", "LastModifiedTime"):
        after, before = params.get(f"{field}After"), params.get(f"{field}Before")
        if after is not None and record[field] <= moment(after):
            return False
        if before is not None and record[field] >= moment(before):
            return False
    return True


def moment(value):
    """A time from the wire (seconds since 1970) as a datetime."""
    return datetime.datetime.fromtimestamp(float(value), datetime.timezone.utc)
