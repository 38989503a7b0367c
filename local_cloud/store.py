"""The records of jobs, models and endpoints, as the Describe and List calls show them."""

import base64
import copy
import datetime
import json
import logging
import sqlite3
import threading
from collections import defaultdict
from dataclasses import dataclass

from local_cloud import ACCOUNT_ID
from local_cloud.disk import from_json, to_json
from local_cloud.errors import ServiceError, invalid

MAX_TAGS = 50  # Of one resource, as on AWS.
MIN_PAGE_OF_TAGS = 50
INSERT = "INSERT OR REPLACE INTO records (kind, name, number, body) VALUES (?, ?, ?, ?)"
log = logging.getLogger(__name__)


def now():
    """The present moment, in UTC."""
    return datetime.datetime.now(datetime.timezone.utc)


def arn(region, kind, name):
    """The ARN of a SageMaker resource; `kind` as in `training-job`."""
    return f"arn:aws:sagemaker:{region}:{ACCOUNT_ID}:{kind}/{name}"


class Store:
    """Records by kind and name; all methods are safe to call from any thread.

    Every change is written to the disk before the call returns.

    Args:
        disk: the `Disk` that keeps the records over a restart.
    """

    def __init__(self, disk):
        self._disk = disk
        self._lock = threading.RLock()
        self._records = defaultdict(dict)
        self._tags = defaultdict(dict)
        self._numbers = {}  # The order in which records were added.
        self._unsaved = set()  # Changes that the disk refused; tried again with the next one.
        self._frozen = False
        for kind, name, number, body in disk.query(
            "SELECT kind, name, number, body FROM records ORDER BY number"
        ):
            self._records[kind][name] = from_json(body)
            self._numbers[kind, name] = number
        self._next = max(self._numbers.values(), default=0) + 1
        for resource, key, value in disk.query("SELECT arn, key, value FROM tags"):
            self._tags[resource][key] = value

    def add(self, kind, name, record, tags=None):
        """Keep a new record and the tags of its ARN, both or none.

        Raises:
            ServiceError: the name is taken, or the disk is full.
        """
        with self._lock:
            if name in self._records[kind]:
                raise taken(kind, self._records[kind][name].get(f"{kind}Arn", name))
            number = self._next
            resource_arn, tags = record.get(f"{kind}Arn"), named(tags)
            with self._disk.transaction():
                self._disk.execute(INSERT, kind, name, number, to_json(record))
                self._insert_tags(resource_arn, tags)
            self._tags[resource_arn].update(tags)
            self._next += 1
            self._numbers[kind, name] = number
            self._records[kind][name] = record

    def get(self, kind, name):
        """A copy of one record; an error in the service's words where there is none."""
        with self._lock:
            if name not in self._records[kind]:
                raise missing(kind, name)
            return copy.deepcopy(self._records[kind][name])

    def has(self, kind, name):
        with self._lock:
            return name in self._records[kind]

    def change(self, kind, name, **fields):
        """Update fields of a record and the time of its last change."""
        self.edit(kind, name, lambda record: record.update(fields))

    def edit(self, kind, name, function):
        """Let `function` change a record in place, alone with it."""
        with self._lock:
            record = self._records[kind].get(name)
            if record is not None:
                function(record)
                record["LastModifiedTime"] = now()
                self._unsaved.add((kind, name))
                self._save()

    def freeze(self):
        """Keep the records as they are on the disk: the server ends, and everything with it.

        What its jobs and endpoints make of that is not how they ended; the next start says so.
        """
        with self._lock:
            self._save()  # What the disk did not take before, it may take now.
            self._frozen = True

    def _save(self):
        """Write what has changed; a job must reach its end also while the disk is full."""
        if self._frozen:
            return
        try:
            for kind, name in sorted(self._unsaved):
                body = to_json(self._records[kind][name])
                self._disk.execute(INSERT, kind, name, self._numbers[kind, name], body)
                self._unsaved.discard((kind, name))
        except sqlite3.Error as error:
            log.error("a change of %s %s is not on the disk yet: %s", kind, name, error)

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
        """Forget a record and its tags; the record."""
        with self._lock:
            record = self.get(kind, name)
            with self._disk.transaction():
                self._disk.execute("DELETE FROM records WHERE kind = ? AND name = ?", kind, name)
                self._disk.execute("DELETE FROM tags WHERE arn = ?", record.get(f"{kind}Arn"))
            self._tags.pop(record.get(f"{kind}Arn"), None)
            self._unsaved.discard((kind, name))
            del self._records[kind][name], self._numbers[kind, name]
            return record

    def all(self, kind):
        """Copies of all records of a kind, oldest first."""
        with self._lock:
            return copy.deepcopy(list(self._records[kind].values()))

    def set_tags(self, resource_arn, tags):
        """Add tags to a resource; ResourceLimitExceeded where they become too many."""
        with self._lock:
            changed = named(tags)
            if len(self._tags[resource_arn] | changed) > MAX_TAGS:
                raise ServiceError(
                    "ResourceLimitExceeded", f"A resource has at most {MAX_TAGS} tags."
                )
            self._insert_tags(resource_arn, changed)
            self._tags[resource_arn].update(changed)

    def _insert_tags(self, resource_arn, tags):
        rows = [(resource_arn, key, value) for key, value in tags.items()]
        self._disk.execute_many("INSERT OR REPLACE INTO tags VALUES (?, ?, ?)", rows)

    def remove_tags(self, resource_arn, keys):
        with self._lock:
            rows = [(resource_arn, key) for key in keys]
            self._disk.execute_many("DELETE FROM tags WHERE arn = ? AND key = ?", rows)
            for key in keys:
                self._tags[resource_arn].pop(key, None)

    def tags(self, resource_arn):
        with self._lock:
            return [{"Key": k, "Value": v} for k, v in self._tags[resource_arn].items()]

    def has_arn(self, resource_arn):
        """Whether any record has this ARN."""
        with self._lock:
            return any(
                record.get(f"{kind}Arn") == resource_arn
                for kind, records in self._records.items()
                for record in records.values()
            )


def named(tags):
    """Tags of a request, or None, as a dictionary."""
    return {tag["Key"]: tag["Value"] for tag in tags or []}


def words(kind):
    """`EndpointConfig` as the service writes it in sentences: `endpoint configuration`."""
    special = {"EndpointConfig": "endpoint configuration"}
    split = "".join(f" {c.lower()}" if c.isupper() else c for c in kind).strip()
    return special.get(kind, split)


def missing(kind, name):
    """The error for a name that is not there; the service's code and words differ by kind."""
    if kind == "TrainingJob":
        return invalid("Requested resource not found.")
    if kind in ("ProcessingJob", "TransformJob"):
        return invalid(f"Could not find requested job with name: {name}")
    if kind == "HyperParameterTuningJob":
        return ServiceError(
            "ResourceNotFound", f"Amazon SageMaker can't find a tuning job with the name {name}."
        )
    return invalid(f'Could not find {words(kind)} "{name}".')


def taken(kind, known_arn):
    """The error for a name that is taken; the service's code and words differ by kind."""
    if kind.endswith("Job"):
        return ServiceError(
            "ResourceInUse",
            "Job name must be unique within an AWS account and region, and a "
            f"{words(kind)} with this name already exists ({known_arn}).",
        )
    return invalid(f'Cannot create already existing {words(kind)} "{known_arn}".')


@dataclass(frozen=True)
class Listing:
    """The defaults of one List call, from the service's description."""

    sort_by: str
    sort_order: str
    size: int = 100  # Entries of a page where MaxResults does not say.


LISTINGS = {
    "TrainingJobName": Listing("CreationTime", "Ascending"),
    "ProcessingJobName": Listing("CreationTime", "Ascending"),
    "HyperParameterTuningJobName": Listing("Name", "Ascending", 10),
    "TransformJobName": Listing("CreationTime", "Descending", 10),
    "ModelName": Listing("CreationTime", "Descending"),
    "EndpointConfigName": Listing("CreationTime", "Descending"),
    "EndpointName": Listing("CreationTime", "Descending", 10),
}


def page(records, params, name_field, status_field=None, summary_fields=()):
    """One page of a List call: filtered, sorted and cut as `params` say.

    The token of the next page names the last record of this one, so that records that come or go
    meanwhile neither repeat nor hide others.

    Returns:
        (summaries, next_token): the token is None on the last page.
    """
    listing = LISTINGS[name_field]
    fields = {"Name": name_field, "Status": status_field}
    sort_by = params.get("SortBy", listing.sort_by)
    descending = params.get("SortOrder", listing.sort_order) == "Descending"

    def place(record):
        value = record[fields.get(sort_by, sort_by)]
        value = value.isoformat() if isinstance(value, datetime.datetime) else value
        return value, record[name_field]

    wanted = [r for r in records if matches(r, params, name_field, status_field)]
    wanted.sort(key=place, reverse=descending)
    if params.get("NextToken"):
        last = read_token(params["NextToken"], str)
        wanted = [r for r in wanted if (place(r) < last if descending else place(r) > last)]
    size = params.get("MaxResults", listing.size)
    token = make_token(place(wanted[size - 1])) if len(wanted) > size else None
    return [{f: r[f] for f in summary_fields if f in r} for r in wanted[:size]], token


def cut(records, params, size=100):
    """The part of sorted records that a List call asks for, and the token of the next part."""
    first = read_token(params["NextToken"], int)[0] if params.get("NextToken") else 0
    last = first + params.get("MaxResults", size)
    return records[first:last], (make_token((last, "")) if last < len(records) else None)


def make_token(place):
    return base64.urlsafe_b64encode(json.dumps(place).encode()).decode()


def read_token(token, kind):
    """The place that `make_token` wrote, its value of the type `kind`; else ValidationException."""
    try:
        value, name = json.loads(base64.b64decode(token, altchars=b"-_", validate=True))
        if isinstance(value, kind) and isinstance(name, str) and value >= kind():
            return value, name
    except (ValueError, TypeError, RecursionError):
        pass
    raise invalid("Invalid pagination token.")


def matches(record, params, name_field, status_field):
    """Whether a record passes the filters of a List call."""
    if params.get("NameContains", "").lower() not in record[name_field].lower():
        return False
    if status_field and params.get("StatusEquals") not in (None, record[status_field]):
        return False
    if params.get("WarmPoolStatusEquals"):
        return False  # There are none here.
    plan = params.get("TrainingPlanArnEquals")
    if plan and record.get("ResourceConfig", {}).get("TrainingPlanArn") != plan:
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
