"""Data capture: requests and answers of an endpoint as JSON Lines in S3.

Format and layout: Amazon SageMaker Developer Guide, "Data capture".
"""

import base64
import datetime
import json
import logging
import random
import threading
import uuid
from collections import defaultdict

from local_cloud.aws import split_uri

FLUSH_SECONDS = 1.0  # How long a record waits at most until it is sent.
MAX_WAITING = 64 << 20  # Bytes that wait; what comes on top is not captured, as on a full disk.
log = logging.getLogger(__name__)


def is_enabled(config):
    """Whether a `DataCaptureConfig` asks for anything; it is on unless switched off."""
    return bool(config) and config.get("EnableCapture", True)


def summary(config):
    """What DescribeEndpoint shows of a `DataCaptureConfig`."""
    enabled = is_enabled(config)
    return {
        "EnableCapture": enabled,
        "CaptureStatus": "Started" if enabled else "Stopped",
        "CurrentSamplingPercentage": config["InitialSamplingPercentage"],
        "DestinationS3Uri": config["DestinationS3Uri"],
        "KmsKeyId": config.get("KmsKeyId", ""),
    }


class DataCapture:
    """Collects the records of one endpoint and writes them to S3 about once a second.

    Args:
        aws: a `LocalAws`.
        endpoint_name: part of the keys.
        config: a `DataCaptureConfig` of CreateEndpointConfig.
    """

    def __init__(self, aws, endpoint_name, config):
        self.aws, self.endpoint_name, self.config = aws, endpoint_name, config
        self.modes = {option["CaptureMode"] for option in config["CaptureOptions"]}
        kinds = config.get("CaptureContentTypeHeader", {})
        self.encodings = {
            **dict.fromkeys(kinds.get("CsvContentTypes", []), "CSV"),
            **dict.fromkeys(kinds.get("JsonContentTypes", []), "JSON"),
        }
        self._lines = defaultdict(list)
        self._waiting = 0
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._write_until_closed, daemon=True)
        self._thread.start()

    def offer(self, variant, request, answer, headers):
        """Keep one request and its answer, if it is among the sampled.

        Args:
            variant: name of the variant that answered.
            request, answer: pairs (body as bytes, content type or None).
            headers: the caller's headers.
        """
        if random.random() * 100 >= self.config["InitialSamplingPercentage"]:  # noqa: S311
            return
        size = len(request[0]) + len(answer[0])
        moment = datetime.datetime.now(datetime.timezone.utc)
        with self._lock:
            if self._waiting + size > MAX_WAITING:
                return
            self._waiting += size
            self._lines[variant, moment.strftime("%Y/%m/%d/%H")].append(
                (moment, request, answer, headers)
            )

    def close(self):
        """Write what is left."""
        self._closed.set()
        self._thread.join()

    def _write_until_closed(self):
        while not self._closed.wait(FLUSH_SECONDS):
            self._write()
        self._write()

    def _write(self):
        with self._lock:
            batches, self._lines, self._waiting = self._lines, defaultdict(list), 0
        bucket, prefix = split_uri(self.config["DestinationS3Uri"])
        for (variant, hour), records in batches.items():
            name = f"{records[0][0].strftime('%M-%S-%f')[:-3]}-{uuid.uuid4()}.jsonl"
            parts = [prefix.rstrip("/"), self.endpoint_name, variant, hour, name]
            text = "".join(json.dumps(self._record(*record)) + "\n" for record in records)
            try:
                self.aws.s3.put_object(
                    Bucket=bucket, Key="/".join(filter(None, parts)), Body=text.encode()
                )
            except Exception:  # Whatever S3 says, the endpoint goes on answering.
                log.exception("data capture of %s", self.endpoint_name)

    def _record(self, moment, request, answer, headers):
        data = {}
        if self.modes & {"Input", "InputAndOutput"}:
            data["endpointInput"] = self._side("INPUT", *request)
        if self.modes & {"Output", "InputAndOutput"}:
            data["endpointOutput"] = self._side("OUTPUT", *answer)
        metadata = {
            "eventId": str(uuid.uuid4()),
            "inferenceTime": moment.strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        attributes = headers.get("X-Amzn-SageMaker-Custom-Attributes")
        if attributes:
            metadata["customAttributes"] = [attributes]
        inference_id = headers.get("X-Amzn-SageMaker-Inference-Id")
        if inference_id:
            metadata["inferenceId"] = inference_id
        return {"captureData": data, "eventMetadata": metadata, "eventVersion": "0"}

    def _side(self, mode, body, content_type):
        encoding = self.encodings.get((content_type or "").partition(";")[0].strip(), "BASE64")
        if encoding == "BASE64":
            text = base64.b64encode(body).decode()
        else:
            text = body.decode("utf-8", "replace")
        side = {"mode": mode, "data": text, "encoding": encoding}
        return {"observedContentType": content_type, **side} if content_type else side
