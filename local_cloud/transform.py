"""Batch transform jobs: a model answers every record of a data set, then its server ends."""

import gzip
import json
import logging
import threading
import time
import zlib
from collections import deque
from concurrent.futures import ThreadPoolExecutor

from botocore.exceptions import ClientError

from local_cloud.aws import LogStream, split_uri
from local_cloud.errors import JobFailed, ServiceError, invalid
from local_cloud.hosting import MODEL
from local_cloud.jobs import MAX_REASON, Jobs, begin_stopping
from local_cloud.json_path import PathError
from local_cloud.records import CSV_TYPES, DataProcessing, batch, split
from local_cloud.serving import NoAnswer, TimedOut, make_instance
from local_cloud.store import now

KIND = "TransformJob"
LOG_GROUP = "/aws/sagemaker/TransformJobs"
PAYLOAD_MB = 6  # The service's own default for MaxPayloadInMB.
MAX_PAYLOAD_MB = 100  # Its limit for MaxPayloadInMB times MaxConcurrentTransforms.
TIMEOUT = 600  # Seconds; its default for InvocationsTimeoutInSeconds.
RETRIES = 3  # Its default for InvocationsMaxRetries.
RETRY_PAUSE = 0.5  # Seconds.
POLL = 0.05  # Seconds between two looks at whether an instance is ready again.
MAX_INSTANCES = 4  # Processes of one job; each may hold a whole model in memory.
MAX_REQUESTS = 32  # At once, whatever MaxConcurrentTransforms says.
SUMMARY = (
    "TransformJobName",
    "TransformJobArn",
    "CreationTime",
    "TransformEndTime",
    "LastModifiedTime",
    "TransformJobStatus",
    "FailureReason",
)
log = logging.getLogger(__name__)


class Transform(Jobs):
    """The operations on transform jobs."""

    kind, arn_kind, summary = KIND, "transform-job", SUMMARY

    def __init__(self, store, aws):
        super().__init__(store, aws)
        self.operations = {
            "CreateTransformJob": self.create,
            "DescribeTransformJob": self.describe,
            "ListTransformJobs": self.list,
            "StopTransformJob": self.stop,
        }

    def create(self, params, region):
        name = params["TransformJobName"]
        check(params)
        model = self.store.get(MODEL, params["ModelName"])
        record = {key: value for key, value in params.items() if key != "Tags"}
        answer = self.keep(record, params.get("Tags"), region)
        self.launch(name, TransformJob(self.store, self.aws, params, model, region))
        return answer

    def describe(self, params, region):
        record = super().describe(params, region)
        del record["LastModifiedTime"]  # Only the summaries have it.
        return record


def check(params):
    """Refuse, before it is created, what could not be run here."""
    source = params["TransformInput"]
    kind = source["DataSource"]["S3DataSource"]["S3DataType"]
    if kind not in ("S3Prefix", "ManifestFile"):
        raise invalid(f"local_cloud reads S3Prefix and ManifestFile, not {kind}.")
    if source.get("SplitType", "None") not in ("None", "Line"):
        raise invalid(f"local_cloud splits input by Line only, not by {source['SplitType']}.")
    if params.get("DataCaptureConfig"):
        raise invalid("local_cloud does not capture the data of transform jobs.")
    for uri in (
        source["DataSource"]["S3DataSource"]["S3Uri"],
        params["TransformOutput"]["S3OutputPath"],
    ):
        if not uri.startswith("s3://"):
            raise invalid(f"local_cloud reads and writes s3:// addresses; {uri!r} is not one.")
    count = params["TransformResources"]["InstanceCount"]
    if count > MAX_INSTANCES:
        raise ServiceError(
            "ResourceLimitExceeded",
            f"The limit of local_cloud is {MAX_INSTANCES} instances a transform job, each a "
            f"process with the whole model; {count} were asked for.",
        )
    check_payload(params)
    check_processing(params)


def check_payload(params):
    size = params.get("MaxPayloadInMB", PAYLOAD_MB)
    if size * (params.get("MaxConcurrentTransforms") or 1) > MAX_PAYLOAD_MB:
        raise invalid(
            f"MaxPayloadInMB times MaxConcurrentTransforms must not exceed {MAX_PAYLOAD_MB} MB."
        )


def check_processing(params):
    """Refuse data processing of what is not one JSON or CSV record at a time."""
    try:
        processing_of(params)
    except PathError as error:
        raise invalid(str(error)) from None
    source, output = params["TransformInput"], params["TransformOutput"]
    if not params.get("DataProcessing"):
        return
    lines = source.get("SplitType") == "Line"
    if source["ContentType"] in CSV_TYPES and not lines:
        raise invalid("Data processing of CSV needs the SplitType Line.")
    if lines and output.get("AssembleWith") != "Line":
        raise invalid("Data processing of lines needs AssembleWith Line.")


def processing_of(params):
    """The `DataProcessing` of a request, or None where it asks for none."""
    config = params.get("DataProcessing")
    if not config:
        return None
    kind = params["TransformInput"].get("ContentType", "").partition(";")[0].strip()
    return DataProcessing(config, kind)


class TransformJob:
    """One job and the thread that carries it out.

    Args:
        params: the request.
        model: the record of its model.
    """

    def __init__(self, store, aws, params, model, region):
        self.store, self.aws, self.params = store, aws, params
        self.ended_at = None  # By the clock of `time.monotonic`.
        self.name = params["TransformJobName"]
        self.processing = processing_of(params)
        self.stopping = threading.Event()
        count = params["TransformResources"]["InstanceCount"]
        options = {"variables": environment(params), "owner": f" for transform job {self.name}"}
        self.instances = [
            make_instance(aws, region, model, LOG_GROUP, self.name, **options) for _ in range(count)
        ]
        requests = (params.get("MaxConcurrentTransforms") or 1) * count
        self.width = min(requests, MAX_REQUESTS)
        self.data_log = None
        self.region = region
        self._choice = threading.Lock()
        self._thread = threading.Thread(target=self._run, daemon=True, name=self.name)

    def start(self):
        self._thread.start()

    def stop(self):
        """End the job soon; what it has written stays.

        Raises:
            ServiceError: it has ended already.
        """
        begin_stopping(self.store, KIND, self.name)
        self.stopping.set()
        for instance in self.instances:
            for container in instance.containers:
                container.begin_to_close()

    def _run(self):
        status, reason = "Completed", None
        self.store.change(KIND, self.name, TransformStartTime=now())
        for instance in self.instances:
            instance.start()
        try:
            self.work()
        except JobFailed as error:
            status, reason = "Failed", str(error)
        except Exception as error:  # A fault of ours must not leave the job in progress forever.
            log.exception("transform job %s", self.name)
            status, reason = "Failed", f"InternalServerError: {type(error).__name__}: {error}"
        finally:
            for instance in self.instances:
                instance.close()
        self.finish(status, reason)
        self.ended_at = time.monotonic()

    def finish(self, status, reason):
        """Write the final status; a job that was asked to stop has stopped, whatever it met."""

        def edit(record):
            stopped = record["TransformJobStatus"] == "Stopping"
            record.update(
                TransformJobStatus="Stopped" if stopped else status, TransformEndTime=now()
            )
            if reason and not stopped:
                record["FailureReason"] = reason[:MAX_REASON]

        self.store.edit(KIND, self.name, edit)

    def work(self):
        inputs = self.inputs()
        for instance in self.instances:
            instance.wait()
        self.data_log = LogStream(
            self.aws, self.region, LOG_GROUP, f"{self.name}/data-log-{int(time.time())}"
        )
        pool = ThreadPoolExecutor(self.width)
        try:
            self.transform(inputs, pool)
        finally:
            pool.shutdown(cancel_futures=True)
            self.data_log.close()

    def transform(self, inputs, pool):
        """Answer all objects in order, so many at a time that every instance is busy."""
        running = deque()
        for uri, relative in inputs:
            groups = self.requests(uri)
            futures = [pool.submit(self.answers, uri, group) for group in groups]
            running.append((relative, futures))
            if len(running) > self.width:
                self.store_object(*running.popleft())
        for relative, futures in running:
            self.store_object(relative, futures)

    def inputs(self):
        """Pairs (address, key relative to the input's prefix) of all input objects.

        Raises:
            JobFailed: there are none.
        """
        source = self.params["TransformInput"]["DataSource"]["S3DataSource"]
        uri = source["S3Uri"]
        found = self.manifest(uri) if source["S3DataType"] == "ManifestFile" else self.below(uri)
        if not found:
            raise JobFailed(f"ClientError: No S3 objects found under S3 URL {uri!r}.")
        return found

    def below(self, uri):
        bucket, prefix = split_uri(uri)
        pages = self.aws.s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        try:
            keys = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
        except ClientError as error:
            raise JobFailed(f"ClientError: {uri!r} cannot be listed: {error}") from error
        if prefix in keys and not prefix.endswith("/"):
            keys = [prefix]  # One object, not those whose longer names begin alike.
        return [
            (f"s3://{bucket}/{key}", key[len(prefix) :].lstrip("/") or key.rpartition("/")[2])
            for key in keys
            if not key.endswith("/")
        ]

    def manifest(self, uri):
        """The objects of a manifest: `[{"prefix": "s3://..."}, "key", ...]`."""
        try:
            head, *keys = json.loads(self.read(uri))
            prefix = head["prefix"]
            split_uri(prefix)
            return [(prefix + key, key.lstrip("/")) for key in keys]
        except (ValueError, KeyError, TypeError) as error:
            raise JobFailed(f"ClientError: {uri!r} is not a manifest: {error!r}") from error

    def read(self, uri):
        bucket, key = split_uri(uri)
        try:
            return self.aws.s3.get_object(Bucket=bucket, Key=key)["Body"].read()
        except ClientError as error:
            raise JobFailed(f"ClientError: {uri!r} cannot be read: {error}") from error

    def requests(self, uri):
        """The records of one object in groups, each of which is one request."""
        source = self.params["TransformInput"]
        data = self.read(uri)
        if source.get("CompressionType") == "Gzip":
            try:
                data = gzip.decompress(data)
            except (OSError, EOFError, zlib.error) as error:
                raise JobFailed(f"ClientError: {uri!r} is not gzip: {error}") from error
        records = split(data, source.get("SplitType"))
        strategy = self.params.get("BatchStrategy", "MultiRecord")
        limit = self.params.get("MaxPayloadInMB", PAYLOAD_MB) << 20
        return batch(records, strategy, limit)

    def answers(self, uri, records):
        """What is stored for a group of records that goes to the model as one request."""
        try:
            if self.processing is None:
                return self.ask(uri, b"\n".join(records))
            answer = self.ask(uri, b"\n".join(self.processing.before(r) for r in records))
            parts = answer.splitlines() if len(records) > 1 else [answer]
            if len(parts) != len(records):
                raise JobFailed(
                    f"ClientError: {uri}: the model answered {len(records)} records with "
                    f"{len(parts)} lines."
                )
            return b"\n".join(self.processing.after(*pair) for pair in zip(records, parts))
        except ValueError as error:  # Also a PathError.
            raise JobFailed(f"ClientError: {uri}: {error}") from error

    def ask(self, uri, body):
        """The body of the model's answer to one request.

        Raises:
            JobFailed: it refused, or could not answer however often it was asked.
        """
        config = self.params.get("ModelClientConfig", {})
        timeout = config.get("InvocationsTimeoutInSeconds", TIMEOUT)
        for attempt in range(1 + config.get("InvocationsMaxRetries", RETRIES)):
            if self.stopping.wait(RETRY_PAUSE if attempt else 0):
                raise JobFailed("The job was stopped.")
            fault, words = "AlgorithmError", "the model did not answer"
            try:
                answer = self.send(body, timeout)
            except TimedOut:
                words = f"the model did not answer within {timeout} s"
                continue
            except NoAnswer as error:
                words = str(error)
                continue
            if answer.status < 300:
                return answer.body
            words = f"Bad HTTP status received from algorithm: {answer.status}: "
            words += answer.body.decode("utf-8", "replace")
            self.data_log.write(f"{uri}: {words}")
            if answer.status < 500:
                fault = "ClientError"
                break
        raise JobFailed(f"{fault}: {uri}: {words}")

    def send(self, body, timeout):
        """Ask the instance with the least to do."""
        instance = self.next_instance(timeout)
        try:
            return instance.invoke(body, self.headers(), timeout)
        finally:
            instance.leave()

    def next_instance(self, timeout):
        """The ready instance with the least to do, which counts one more request from now on.

        Raises:
            JobFailed: none was ready for `timeout` seconds, or the job was stopped.
        """
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            with self._choice:
                ready = [instance for instance in self.instances if instance.is_ready]
                if ready:
                    instance = min(ready, key=lambda one: one.in_flight)
                    instance.enter()
                    return instance
            if self.stopping.wait(POLL):
                raise JobFailed("The job was stopped.")
        raise JobFailed(f"AlgorithmError: no model server was ready for {timeout} s")

    def headers(self):
        kinds = {
            "Content-Type": self.params["TransformInput"].get("ContentType"),
            "Accept": self.params["TransformOutput"].get("Accept"),
        }
        return {name: value for name, value in kinds.items() if value}

    def store_object(self, relative, futures):
        """Write the answers to one input object, once all of them are there."""
        parts = [future.result() for future in futures]
        output = self.params["TransformOutput"]
        if output.get("AssembleWith") == "Line":
            body = b"".join(part.removesuffix(b"\n") + b"\n" for part in parts)
        else:
            body = b"".join(parts)
        bucket, prefix = split_uri(output["S3OutputPath"])
        key = "/".join(filter(None, [prefix.rstrip("/"), f"{relative}.out"]))
        try:
            self.aws.s3.put_object(Bucket=bucket, Key=key, Body=body)
        except ClientError as error:
            raise JobFailed(f"ClientError: {key!r} cannot be written: {error}") from error


def environment(params):
    """What a container finds in its environment while it transforms, besides its own."""
    return {
        **params.get("Environment", {}),
        "SAGEMAKER_BATCH": "true",
        "SAGEMAKER_BATCH_STRATEGY": params.get("BatchStrategy", "MultiRecord"),
        "SAGEMAKER_MAX_PAYLOAD_IN_MB": str(params.get("MaxPayloadInMB", PAYLOAD_MB)),
        "SAGEMAKER_MAX_CONCURRENT_TRANSFORMS": str(params.get("MaxConcurrentTransforms") or 1),
    }
